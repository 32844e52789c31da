package pocketdraft.core

import java.util.PriorityQueue
import kotlin.math.ln

/** Of a tree that branches: deeper, a sliding window, which graphs cut by slots, would lose ancestors. */
const val DEEPEST = 32

/**
 * The tree of at most [budget] nodes with the longest expected path, best first (DDTree, arXiv 2604.12989): a port of
 * `runtime/tree.py`.
 *
 * `ranked[k]` are tokens at depth k + 1 as [likeliest] gives them, [budget] of them or all. A path has the product of
 * its tokens' probabilities; a node that is taken brings up its first child and its next sibling.
 */
fun bestTree(ranked: List<List<Pair<Int, Double>>>, budget: Int): Proposal {
    val tokens = ArrayList<Int>()
    val parents = ArrayList<Int>()
    val coming = PriorityQueue<Coming>(compareBy(Coming::weight, Coming::depth, Coming::parent, Coming::rank))

    /** [weight] is minus the log-probability of the path to [parent]. */
    fun offer(weight: Double, depth: Int, parent: Int, rank: Int) {
        val (_, log) = ranked.getOrNull(depth)?.getOrNull(rank) ?: return
        coming += Coming(weight - log, depth, parent, rank)
    }

    offer(0.0, 0, -1, 0)
    while (tokens.size < budget) {
        val next = coming.poll() ?: break
        val (token, log) = ranked[next.depth][next.rank]
        tokens += token
        parents += next.parent
        offer(next.weight + log, next.depth, next.parent, next.rank + 1)
        offer(next.weight, next.depth + 1, tokens.lastIndex, 0)
    }
    return Proposal(tokens, parents)
}

/** A node that may be next: [depth] from 0, [rank] among its siblings. Of equal weights the shallower, then the earlier. */
private class Coming(val weight: Double, val depth: Int, val parent: Int, val rank: Int)

/** At most [count] tokens that can happen and their log-probabilities, the likeliest first, the lower of equals. */
fun likeliest(probabilities: DoubleArray, count: Int): List<Pair<Int, Double>> =
    largest(probabilities.size, count) { if (probabilities[it] > 0) probabilities[it] else Double.NEGATIVE_INFINITY }
        .map { it to ln(probabilities[it]) }

/** Where the [count] largest of [size] scores are, in order, the lower of equals first; never those of -infinity. */
inline fun largest(size: Int, count: Int, score: (Int) -> Double): List<Int> {
    val found = IntArray(count)
    val scores = DoubleArray(count)
    var known = 0
    for (index in 0 until size) {
        val one = score(index)
        if (one == Double.NEGATIVE_INFINITY || (known == count && (count == 0 || one <= scores[known - 1]))) continue
        var at = if (known < count) known++ else known - 1
        while (at > 0 && scores[at - 1] < one) {
            found[at] = found[at - 1]
            scores[at] = scores[--at]
        }
        found[at] = index
        scores[at] = one
    }
    return found.take(known)
}
