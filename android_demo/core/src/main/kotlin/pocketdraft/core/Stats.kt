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
 */
class Stats {
    /** (proposed, accepted) -> rounds. */
    val outcomes = HashMap<Pair<Int, Int>, Int>()

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
        proposal.confidences.take(count + 1).forEachIndexed { index, confidence ->
            judged.merge(confidenceTenth(confidence) to (index < count), 1, Int::plus)
        }
    }

    val rounds get() = count { _, _ -> true }
    val proposed get() = outcomes.entries.sumOf { (outcome, rounds) -> outcome.first * rounds }
    val accepted get() = outcomes.entries.sumOf { (outcome, rounds) -> outcome.second * rounds }
    val draftedRounds get() = count { proposed, _ -> proposed > 0 }
    val corrected get() = count { proposed, accepted -> accepted < proposed }
    val bonus get() = rounds - corrected

    /** Mean over the rounds that proposed something; the target's own token is not counted. */
    val acceptedPerRound: Double
        get() = if (draftedRounds > 0) accepted.toDouble() / draftedRounds else 0.0

    /** Emitted tokens over the time of the rounds, the prompt's prefill left out. */
    val tokensPerSecond: Double get() = seconds.sum().let { if (it > 0) emitted / it else 0.0 }

    /** Of the rounds that proposed a draft k, the share that accepted it, and so all before it. */
    fun acceptanceByPosition(): List<Double> = (0 until longest).map { k ->
        count { _, accepted -> accepted > k }.toDouble() / count { proposed, _ -> proposed > k }
    }

    /** Of the rounds that accepted all drafts before a proposed draft k, the share that accepted it too. */
    fun conditionalAcceptanceByPosition(): List<Double> = (0 until longest).mapNotNull { k ->
        val reached = count { proposed, accepted -> proposed > k && accepted >= k }
        if (reached > 0) count { _, accepted -> accepted > k }.toDouble() / reached else null
    }

    /** Throws where the counts contradict each other. */
    fun check() {
        check(outcomes.keys.all { (proposed, accepted) -> accepted <= proposed })
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

    private val longest get() = outcomes.keys.maxOfOrNull { it.first } ?: 0

    private fun count(holds: (Int, Int) -> Boolean) =
        outcomes.entries.sumOf { (outcome, rounds) -> if (holds(outcome.first, outcome.second)) rounds else 0 }

    private fun shares(of: List<Double>) = JsonArray().also { list -> of.forEach { list.add(rounded(it, 4)) } }
}

/** 0 to 10; the last is for certainty itself. */
fun confidenceTenth(confidence: Double) = (confidence * 10).toInt()

/** To that many decimals. */
fun rounded(value: Double, decimals: Int): Double = value.toBigDecimal().setScale(decimals, java.math.RoundingMode.HALF_EVEN).toDouble()
