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
    private val outcomes = HashMap<Outcome, Int>() // -> rounds

    /** (tenth of confidence, accepted) -> drafts. */
    val judged = HashMap<Pair<Int, Boolean>, Int>()
    val seconds = DoubleArray(RoundPart.entries.size)
    var emitted = 0
        private set
    var cut = 0
        private set

    fun record(proposal: Proposal, verdict: Verdict, emitted: Emitted) {
        val count = verdict.accepted.size
        val reach = proposal.reach(verdict.rows.last() - 1)
        outcomes.merge(Outcome(proposal.size, proposal.reach(-1), reach, count), 1, Int::plus)
        this.emitted += emitted.tokens.size
        cut += count + 1 - emitted.tokens.size
        // Confidences are those of the first nodes, a chain: the accepted path may leave it.
        val stood = verdict.rows.withIndex().count { (index, row) -> row == index } - 1
        proposal.confidences.take(stood + 1).forEachIndexed { index, confidence ->
            judged.merge(confidenceTenth(confidence) to (index < stood), 1, Int::plus)
        }
    }

    val rounds get() = count { true }
    val proposed get() = outcomes.entries.sumOf { (outcome, rounds) -> outcome.proposed * rounds }
    val accepted get() = outcomes.entries.sumOf { (outcome, rounds) -> outcome.accepted * rounds }
    val draftedRounds get() = count { it.proposed > 0 }
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
        check(outcomes.keys.all { it.accepted <= it.reach && it.reach <= it.depth && it.depth <= it.proposed })
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

    private val deepest get() = outcomes.keys.maxOfOrNull { it.depth } ?: 0

    private fun count(holds: (Outcome) -> Boolean) =
        outcomes.entries.sumOf { (outcome, rounds) -> if (holds(outcome)) rounds else 0 }

    private fun shares(of: List<Double>) = JsonArray().also { list -> of.forEach { list.add(rounded(it, 4)) } }
}

/**
 * Of a round, numbers of drafts. [depth] is that of the deepest node proposed, [reach] that of the deepest one at or below
 * where the target's tokens left the tree: none was refused there if they went as far. Of a chain both are its length.
 */
private data class Outcome(val proposed: Int, val depth: Int, val reach: Int, val accepted: Int)

/** 0 to 10; the last is for certainty itself. */
fun confidenceTenth(confidence: Double) = (confidence * 10).toInt()

/** To that many decimals. */
fun rounded(value: Double, decimals: Int): Double = value.toBigDecimal().setScale(decimals, java.math.RoundingMode.HALF_EVEN).toDouble()
