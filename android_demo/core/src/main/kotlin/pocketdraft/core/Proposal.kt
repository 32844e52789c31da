package pocketdraft.core

import java.nio.ByteBuffer

/**
 * What a drafter proposes: node i is `tokens[i]` after node `parents[i]`; parent -1 is the pending token.
 *
 * `probs[i]` is q, [V], that node i was drawn from; null says that the drafter did not draw. [states], of the pending
 * token and each node, are where the target's first layers drafted: see [Target.draftEarly].
 */
class Proposal(
    val tokens: List<Int>,
    val parents: List<Int>,
    val probs: List<DoubleArray?> = emptyList(),
    val confidences: List<Double> = emptyList(),
    val states: List<ByteBuffer>? = null,
) {
    val size get() = tokens.size
    val isChain get() = parents == (-1..size - 2).toList()

    /** The node that is [token] after [parent], or null. */
    fun child(parent: Int, token: Int): Int? =
        (parent + 1 until size).find { parents[it] == parent && tokens[it] == token }

    companion object {
        val NOTHING = chain(emptyList())

        fun chain(
            tokens: List<Int>,
            probs: List<DoubleArray?> = emptyList(),
            confidences: List<Double> = emptyList(),
            states: List<ByteBuffer>? = null,
        ) = Proposal(tokens, (-1..tokens.size - 2).toList(), probs, confidences, states)
    }
}
