package pocketdraft.core

import kotlin.math.exp
import kotlin.math.tanh

enum class Rule { EXACT, REJECTION }

/**
 * A drafted token, the first of [choices], and what would have been drafted in its place, the next best first; and the
 * probabilities that it was drawn from (null: it is the argmax).
 */
class Draft(val choices: List<Int>, val probs: DoubleArray?, private val trust: () -> Double) {
    val token get() = choices.first()

    /**
     * How sure the drafter is of it, 0 to 1: the probability of a drawn draft; of an argmax (p - q) / (p + q), q being
     * that of the second best. While its logits hold.
     */
    val confidence get() = trust()
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
     * The drafter's token after the context's [tokens] and the drafts [path] before it, and up to [choices] with those in
     * its place.
     *
     * Under exact match it is drawn with the very noise that the target's token will be drawn with, so those are likely
     * the target's where it is not.
     */
    fun draft(logits: FloatArray, tokens: List<Int>, path: List<Int>, choices: Int = 1): Draft {
        if (takesArgmax) return argmax(bestOf(logits), logits.size, choices) { logits[it].toDouble() }
        val history = tokens + path
        if (sampling.temperature == 0.0) {
            val scores = sampling.scores(logits, history)
            return argmax(bestOf(scores), scores.size, choices) { scores[it] }
        }
        val probs = probabilities(logits, history)
        val (own, lane) = if (rejects) noise.child(tokens.size) to Lane.DRAFT else noise to Lane.TARGET
        val ranked = own.ranking(probs, lane, history.size, choices)
        return Draft(ranked, probs) { probs[ranked.first()] }
    }

    /** What a drafter's logits [V] say of each token; at temperature 0, where the drafter is not sure, as at 1. */
    fun likely(logits: FloatArray, history: List<Int>): DoubleArray {
        if (sampling.temperature > 0) return probabilities(logits, history)
        val scores = sampling.scores(logits, history)
        val best = scores[bestOf(scores)]
        for (token in scores.indices) scores[token] = exp(scores[token] - best)
        normalize(scores)
        return scores
    }

    private inline fun argmax(best: Int, size: Int, choices: Int, crossinline score: (Int) -> Double): Draft {
        val ranked = if (choices > 1) largest(size, choices) { score(it) } else listOf(best)
        return Draft(ranked, null) {
            val second = largest(size, 2) { score(it) }.getOrNull(1)?.let { score(it) } ?: Double.NEGATIVE_INFINITY
            tanh((score(best) - second) / 2)
        }
    }
}
