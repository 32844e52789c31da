package pocketdraft.core

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

    /** Lower quartiles. A width that has not run lies between its neighbours. Null until a draft was timed. */
    fun cost(): RoundCost? {
        val known = verify.filterValues { it.isNotEmpty() }.map { (width, times) -> width to lower(times) }
        if (known.isEmpty() || draft.isEmpty()) return null
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
