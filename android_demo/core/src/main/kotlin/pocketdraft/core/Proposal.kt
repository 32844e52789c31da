package pocketdraft.core

/**
 * What a drafter proposes: node i is `tokens[i]` after node `parents[i]`; parent -1 is the pending token.
 *
 * `probs[i]` is q, [V], that node i was drawn from; null says that the drafter did not draw.
 */
class Proposal(
    val tokens: List<Int>,
    val parents: List<Int>,
    val probs: List<DoubleArray?> = emptyList(),
    val confidences: List<Double> = emptyList(),
) {
    val size get() = tokens.size
    val isChain get() = parents == (-1..size - 2).toList()

    /** The node that is [token] after [parent], or null. */
    fun child(parent: Int, token: Int): Int? =
        (parent + 1 until size).find { parents[it] == parent && tokens[it] == token }

    companion object {
        val NOTHING = chain(emptyList())

        fun chain(tokens: List<Int>, probs: List<DoubleArray?> = emptyList(), confidences: List<Double> = emptyList()) =
            Proposal(tokens, (-1..tokens.size - 2).toList(), probs, confidences)
    }
}
