package pocketdraft.core

import java.nio.ByteBuffer

/**
 * What a drafter proposes, a tree of which a chain is the case without branches: node i is `tokens[i]` after node
 * `parents[i]`; parent -1 is the pending token. Parents come first.
 *
 * `probs[i]` is q, [V], that node i was drawn from; null says that the drafter did not draw. [confidences] of a tree are
 * those of the chain that its first nodes are. [states], of the pending token and each node, are where the target's
 * first layers drafted: see [Target.draftEarly].
 */
class Proposal(
    val tokens: List<Int>,
    val parents: List<Int>,
    val probs: List<DoubleArray?> = emptyList(),
    val confidences: List<Double> = emptyList(),
    val states: List<ByteBuffer>? = null,
) {
    val size get() = tokens.size
    val isChain = parents == (-1..parents.size - 2).toList()

    /** By node, how many steps it is from the pending token: 1 for its children. */
    val depths: List<Int> by lazy {
        ArrayList<Int>().also { depths -> parents.forEach { depths += if (it < 0) 1 else depths[it] + 1 } }
    }

    /** The node that is [token] after [parent], or null. */
    fun child(parent: Int, token: Int): Int? =
        (parent + 1 until size).find { parents[it] == parent && tokens[it] == token }

    /** Of a verify call, [row], that of its parent and so on, up to row 0, the pending token's. Padding has no parent. */
    fun path(row: Int): Sequence<Int> = generateSequence(row) { parents.getOrNull(it - 1)?.plus(1) }

    /** The depth of the deepest node at or below [node]; -1, the pending token, has all of them below it. */
    fun reach(node: Int): Int = (-1 until size).filter { node + 1 in path(it + 1) }.maxOf { depths.getOrElse(it) { 0 } }

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
