package pocketdraft.core

private const val REPEATED = 3 // rounds: the first ones of a width are slow
private const val SOON_DRAFTED = 5 // rounds: so many are timed after each change, about as many tokens
private const val SOON_PLAIN = 12
private const val REMEMBERED_ROUNDS = 32 // a device gets warm and slower: only the last few tell what it does now

/** Seconds of what a round is made of, as in `runtime/cost.py`. [verify] is by width, narrowest first. */
class RoundCost(private val verify: List<Pair<Int, Double>>, private val draft: Double, private val round: Double = 0.0) {
    /** The most drafts that a graph is wide enough for. */
    val longest get() = verify.last().first - 1

    /** A round that verifies so many [drafts], for which the drafter was called so often. */
    fun seconds(drafts: Int, calls: Int): Double = verify.first { it.first > drafts }.second + calls * draft + round

    companion object {
        /** Of a device where a verify takes 1, whatever its width. */
        fun flat(draft: Double, longest: Int = 64) = RoundCost(listOf(1 to 1.0, longest + 1 to 1.0), draft)
    }
}

/** What the parts of rounds took lately, by the [widths] of decoding and the verify graphs. */
class Times(private val widths: List<Int>) {
    private val verify = widths.associateWith { ArrayDeque<Double>() }
    private val draft = ArrayDeque<Double>()
    private val host = ArrayDeque<Double>()

    /** One round, that verified with the graph of this [width]. */
    fun add(width: Int, verifyS: Double, drafts: Int, draftS: Double, hostS: Double) {
        verify.getValue(width).remember(verifyS)
        host.remember(hostS)
        if (drafts > 0) draft.remember(draftS / drafts)
    }

    /** Whether a [width] has run so few times that any round of it tells something. */
    fun hardlyKnows(width: Int) = verify.getValue(width).size < REPEATED

    /** Lower quartiles. A width that has hardly run lies between those beside it. Null until a draft was timed. */
    fun cost(): RoundCost? {
        val ran = widths.filter { verify.getValue(it).isNotEmpty() }
        if (ran.isEmpty() || draft.isEmpty()) return null
        val ends = setOf(ran.first(), ran.last())
        val known = ran.filter { it in ends || !hardlyKnows(it) }.map { it to lower(verify.getValue(it)) }
        return RoundCost(widths.map { it to between(known, it) }, lower(draft), lower(host))
    }

    private fun ArrayDeque<Double>.remember(seconds: Double) {
        addLast(seconds)
        if (size > REMEMBERED_ROUNDS) removeFirst()
    }

    private fun lower(times: List<Double>) = times.sorted()[times.size / 4]

    /** Beyond the [known] ones, the nearest. */
    private fun between(known: List<Pair<Int, Double>>, width: Int): Double {
        val (from, low) = known.lastOrNull { it.first <= width } ?: return known.first().second
        val (to, high) = known.firstOrNull { it.first > width } ?: return low
        return (high - low) / (to - from) * (width - from) + low
    }
}

/**
 * Adds the rounds of one sequence, after its prompt, to [times]: those soon after it began to draft, or ceased to, which
 * gave about as many tokens (`runtime/cost.py`).
 */
class SequenceTimes(private val times: Times) {
    private var drafted: Boolean? = null
    private var alike = 0 // rounds before this one that drafted as this one did, or did not

    /** See [Times.add]. */
    fun add(width: Int, verifyS: Double, drafts: Int, draftS: Double, hostS: Double) {
        alike = if ((drafts > 0) == drafted) alike + 1 else 0
        drafted = drafts > 0
        val soon = if (drafts > 0) SOON_DRAFTED else SOON_PLAIN
        if (alike in 1..soon || times.hardlyKnows(width)) times.add(width, verifyS, drafts, draftS, hostS)
    }
}
