package pocketdraft.core

import java.util.PriorityQueue
import kotlin.math.exp

/** How the next token is drawn, as in `runtime/sampling.py`. The defaults are greedy, and each of the others is off. */
data class Sampling(
    val temperature: Double = 0.0,
    val topK: Int = 0,
    val topP: Double = 1.0,
    val minP: Double = 0.0,
    val repetitionPenalty: Double = 1.0,
    val seed: Long = 0,
) {
    init {
        refuse("temperature", temperature, temperature >= 0 && temperature.isFinite(), "0, which is greedy, or more")
        refuse("top-k", topK, topK >= 0, "0, which keeps all, or more")
        refuse("top-p", topP, topP > 0 && topP <= 1, "more than 0, and 1 at most")
        refuse("min-p", minP, minP in 0.0..1.0, "0 to 1")
        val penalty = repetitionPenalty
        refuse("repetition penalty", penalty, penalty > 0 && penalty.isFinite(), "more than 0; 1 is none")
    }

    /** [V]: what the penalty makes of the logits. Its argmax is the greedy token. */
    fun scores(logits: FloatArray, history: List<Int>): DoubleArray {
        val scores = DoubleArray(logits.size) { logits[it].toDouble() }
        if (repetitionPenalty != 1.0) {
            for (token in HashSet(history)) {
                scores[token] = if (scores[token] < 0) scores[token] * repetitionPenalty else scores[token] / repetitionPenalty
            }
        }
        return scores
    }

    /** [V], which sum to 1, from logits [V] after the tokens [history]. Temperature 0: all on one token. */
    fun probabilities(logits: FloatArray, history: List<Int>): DoubleArray {
        val scores = scores(logits, history)
        val best = bestOf(scores)
        val found = DoubleArray(scores.size)
        if (temperature == 0.0) {
            found[best] = 1.0
            return found
        }
        val least = if (topK in 1 until scores.size) kthLargest(scores, topK) else Double.NEGATIVE_INFINITY
        for (token in scores.indices) {
            if (scores[token] >= least) found[token] = exp((scores[token] - scores[best]) / temperature)
        }
        normalize(found)
        if (topP < 1) dropTail(found, 1 - topP)
        val floor = minP * found.max()
        for (token in found.indices) if (found[token] < floor) found[token] = 0.0
        normalize(found)
        return found
    }

    private fun refuse(name: String, value: Number, holds: Boolean, mend: String) {
        if (!holds) throw PocketdraftError("The $name is $value; give $mend.")
    }
}

/** The token of the highest score, the lowest of equal ones. */
fun bestOf(scores: DoubleArray): Int {
    var best = 0
    for (token in scores.indices) if (scores[token] > scores[best] || scores[best].isNaN()) best = token
    return drawable(best, scores[best])
}

/** The same of logits as a graph gives them. */
fun bestOf(logits: FloatArray): Int {
    var best = 0
    for (token in logits.indices) if (logits[token] > logits[best] || logits[best].isNaN()) best = token
    return drawable(best, logits[best].toDouble())
}

private fun drawable(best: Int, score: Double): Int =
    if (score.isFinite()) best else throw PocketdraftError("The best logit is $score; no token can be drawn.")

internal fun normalize(weights: DoubleArray) {
    val sum = weights.sum()
    for (token in weights.indices) weights[token] /= sum
}

private fun kthLargest(scores: DoubleArray, k: Int): Double {
    val largest = PriorityQueue<Double>(k + 1)
    for (score in scores) {
        if (largest.size < k) {
            largest += score
        } else if (score > largest.peek()!!) {
            largest.poll()
            largest += score
        }
    }
    return largest.peek()!!
}

/**
 * Zeroes, in place, the least likely that together have at most [tail]; never the likeliest.
 *
 * Sorting is what would take long: only what lies above a bound is sorted, as all below it has no more than [tail].
 */
private fun dropTail(weights: DoubleArray, tail: Double) {
    var bound = weights.max()
    while (weights.sumOf { if (it < bound) it else 0.0 } > tail) bound /= 16
    val ascending = weights.indices.filter { weights[it] >= bound }.sortedBy { weights[it] }
    var gone = 0.0
    for (token in weights.indices) {
        if (weights[token] < bound) {
            gone += weights[token]
            weights[token] = 0.0
        }
    }
    for (token in ascending.dropLast(1)) {
        gone += weights[token]
        if (gone <= tail) weights[token] = 0.0
    }
}
