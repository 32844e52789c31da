package pocketdraft.core

import kotlin.math.ln

/** What a draw is for. Draws of different lanes are independent at the same position. */
enum class Lane { TARGET, DRAFT, ACCEPT, CHILD }

/**
 * Randomness without state: every draw is a pure function of the seed and of what is drawn where, bit for bit that of
 * `runtime/noise.py` (nested splitmix64; Steele, Lea, Flood 2014).
 *
 * `position` is the index in the sequence, prompt included, of the token that is drawn.
 */
class Noise(private val seed: Long) {
    fun child(number: Int) = Noise(output(output(seed, Lane.CHILD.ordinal.toLong()), number.toLong()))

    /** Between 0 and 1, neither included. */
    fun uniform(lane: Lane, position: Int): Double = unit(output(key(lane, position), 0))

    /** A token drawn in proportion to [weights], which need not sum to 1: the argmin of -ln(uniform) / weight. */
    fun draw(weights: DoubleArray, lane: Lane, position: Int): Int = ranking(weights, lane, position, 1).first()

    /** What [draw] gives, then what it would give without that, and so on: at most [count] tokens. */
    fun ranking(weights: DoubleArray, lane: Lane, position: Int, count: Int): List<Int> {
        val key = key(lane, position)
        return largest(weights.size, count) { token ->
            if (weights[token] > 0) ln(unit(output(key, token.toLong()))) / weights[token] else Double.NEGATIVE_INFINITY
        }
    }

    private fun key(lane: Lane, position: Int) = output(output(seed, lane.ordinal.toLong()), position.toLong())

    private companion object {
        const val GOLDEN = -0x61c8864680b583ebL
        const val FIRST = -0x40a7b892e31b1a47L
        const val SECOND = -0x6b2fb644ecceee15L

        fun output(start: Long, index: Long): Long {
            var state = start + GOLDEN * (index + 1)
            state = (state xor (state ushr 30)) * FIRST
            state = (state xor (state ushr 27)) * SECOND
            return state xor (state ushr 31)
        }

        fun unit(bits: Long) = ((bits ushr 12).toDouble() + 0.5) * (1.0 / (1L shl 52))
    }
}
