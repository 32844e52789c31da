package pocketdraft.core

import com.google.gson.JsonArray
import com.google.gson.JsonObject

enum class RoundPart { DRAFT, VERIFY, HOST }

/**
 * What the rounds gave, in tokens; the counts are derived from one table of outcomes, as in `runtime/stats.py`.
 *
 * Every round ends with one token of the target's own: `corrected` where a draft was refused, `bonus` where all were
 * accepted. [cut] is what a stop token or the budget took away again. [judged] are the drafts that the target looked
 * at, by tenths of their drafter's confidence, where it told.
 *
 * Of a tree all nodes are proposed, and positions are depths.
 */
class Stats {
    /** (proposed, accepted) -> rounds. */
    val outcomes = HashMap<Pair<Int, Int>, Int>()

    /** Those of them whose proposal branched, by number proposed. */
    private val trees = HashMap<Pair<Path, Int>, Int>()

    /** (tenth of confidence, accepted) -> drafts. */
    val judged = HashMap<Pair<Int, Boolean>, Int>()
    val seconds = DoubleArray(RoundPart.entries.size)
    var emitted = 0
        private set
    var cut = 0
        private set

    fun record(proposal: Proposal, verdict: Verdict, emitted: Emitted) {
        val count = verdict.accepted.size
        outcomes.merge(proposal.size to count, 1, Int::plus)
        this.emitted += emitted.tokens.size
        cut += count + 1 - emitted.tokens.size
        if (!proposal.isChain) {
            val path = Path(proposal.reach(-1), proposal.reach(verdict.rows.last() - 1), count)
            trees.merge(path to proposal.size, 1, Int::plus)
        }
        // Confidences are those of the first nodes, a chain: the accepted path may leave it.
        val stood = verdict.rows.withIndex().count { (index, row) -> row == index } - 1
        proposal.confidences.take(stood + 1).forEachIndexed { index, confidence ->
            judged.merge(confidenceTenth(confidence) to (index < stood), 1, Int::plus)
        }
    }

    val rounds get() = outcomes.values.sum()
    val proposed get() = outcomes.entries.sumOf { (outcome, rounds) -> outcome.first * rounds }
    val accepted get() = outcomes.entries.sumOf { (outcome, rounds) -> outcome.second * rounds }
    val draftedRounds get() = outcomes.entries.sumOf { (outcome, rounds) -> if (outcome.first > 0) rounds else 0 }
    val corrected get() = count { it.accepted < it.reach }
    val bonus get() = rounds - corrected

    /** Mean over the rounds that proposed something; the target's own token is not counted. */
    val acceptedPerRound: Double
        get() = if (draftedRounds > 0) accepted.toDouble() / draftedRounds else 0.0

    /** Emitted tokens over the time of the rounds, the prompt's prefill left out. */
    val tokensPerSecond: Double get() = seconds.sum().let { if (it > 0) emitted / it else 0.0 }

    /** Of the rounds that proposed a draft k, the share that accepted it, and so all before it. */
    fun acceptanceByPosition(): List<Double> = (0 until deepest).map { k ->
        count { it.accepted > k }.toDouble() / count { it.depth > k }
    }

    /** Of the rounds that accepted all drafts before a proposed draft k, the share that accepted it too. */
    fun conditionalAcceptanceByPosition(): List<Double> = (0 until deepest).mapNotNull { k ->
        val reached = count { it.reach > k && it.accepted >= k }
        if (reached > 0) count { it.accepted > k }.toDouble() / reached else null
    }

    /** Throws where the counts contradict each other. */
    fun check() {
        check(outcomes.keys.all { (proposed, accepted) -> accepted <= proposed })
        check(trees.keys.all { (path, nodes) -> with(path) { accepted <= reach && reach <= depth && depth <= nodes } })
        check(paths().values.all { it >= 0 })
        check(accepted + rounds == emitted + cut)
    }

    fun toJson() = JsonObject().apply {
        val counts = mapOf(
            "rounds" to rounds, "proposed" to proposed, "accepted" to accepted, "corrected" to corrected,
            "bonus" to bonus, "emitted" to emitted, "cut" to cut,
        )
        counts.forEach { (name, count) -> addProperty(name, count) }
        addProperty("accepted_per_round", rounded(acceptedPerRound, 4))
        add("acceptance_by_position", shares(acceptanceByPosition()))
        add("conditional_acceptance_by_position", shares(conditionalAcceptanceByPosition()))
        add("seconds", JsonObject().also { parts ->
            RoundPart.entries.forEach { parts.addProperty(it.name.lowercase(), rounded(seconds[it.ordinal], 6)) }
        })
    }

    private val deepest get() = paths().keys.maxOfOrNull { it.depth } ?: 0

    private fun count(holds: (Path) -> Boolean) = paths().entries.sumOf { (path, rounds) -> if (holds(path)) rounds else 0 }

    /** Rounds by path; of a chain, depth and reach are its length. */
    private fun paths(): Map<Path, Int> {
        val chains = HashMap(outcomes)
        val paths = HashMap<Path, Int>()
        for ((tree, rounds) in trees) {
            chains.merge(tree.second to tree.first.accepted, -rounds, Int::plus)
            paths.merge(tree.first, rounds, Int::plus)
        }
        chains.filterValues { it != 0 }.forEach { (outcome, rounds) ->
            paths.merge(Path(outcome.first, outcome.first, outcome.second), rounds, Int::plus)
        }
        return paths
    }

    private fun shares(of: List<Double>) = JsonArray().also { list -> of.forEach { list.add(rounded(it, 4)) } }
}

/**
 * [accepted] drafts of a round: [depth] is that of the deepest node proposed, [reach] that of the deepest one at or below
 * where the target's tokens left the tree. None was refused there if they went as far.
 */
private data class Path(val depth: Int, val reach: Int, val accepted: Int)

/** 0 to 10; the last is for certainty itself. */
fun confidenceTenth(confidence: Double) = (confidence * 10).toInt()

/** To that many decimals. */
fun rounded(value: Double, decimals: Int): Double = value.toBigDecimal().setScale(decimals, java.math.RoundingMode.HALF_EVEN).toDouble()
