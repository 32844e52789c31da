package pocketdraft.core

import kotlin.math.exp

enum class Rule { EXACT, REJECTION }

/** A drafted token, the probabilities that it was drawn from (null: it is the argmax), and the drafter's trust in it. */
class Draft(val token: Int, val probs: DoubleArray?, private val scores: FloatArray) {
    /** The probability that the drafter gave its draft; for an argmax, that at temperature 1. */
    val confidence: Double
        get() = probs?.get(token) ?: (1 / scores.sumOf { exp(it.toDouble() - scores[token]) })
}

/** What target, drafter and acceptance share: how tokens are drawn, with which noise, and which rule accepts them. */
class Sampler(val sampling: Sampling = Sampling(), rule: Rule = Rule.EXACT) {
    val noise = Noise(sampling.seed)
    val rejects = rule == Rule.REJECTION && sampling.temperature > 0

    /** Whether the target's token is its logits' argmax as they are. */
    val takesArgmax = sampling.temperature == 0.0 && sampling.repetitionPenalty == 1.0

    fun probabilities(logits: FloatArray, history: List<Int>) = sampling.probabilities(logits, history)

    /** The target's token after [history]: the argmax, or drawn with the noise of its position. */
    fun choose(logits: FloatArray, history: List<Int>): Int = when {
        takesArgmax -> bestOf(logits)
        sampling.temperature == 0.0 -> bestOf(sampling.scores(logits, history))
        else -> noise.draw(probabilities(logits, history), Lane.TARGET, history.size)
    }

    /**
     * The drafter's token after the context's [tokens] and the drafts [path] before it.
     *
     * Under exact match it is drawn with the very noise that the target's token will be drawn with.
     */
    fun draft(logits: FloatArray, tokens: List<Int>, path: List<Int>): Draft {
        if (takesArgmax) return Draft(bestOf(logits), null, logits)
        val history = tokens + path
        if (sampling.temperature == 0.0) return Draft(bestOf(sampling.scores(logits, history)), null, logits)
        val probs = probabilities(logits, history)
        val token = if (rejects) {
            noise.child(tokens.size).draw(probs, Lane.DRAFT, history.size)
        } else {
            noise.draw(probs, Lane.TARGET, history.size)
        }
        return Draft(token, probs, logits)
    }
}
