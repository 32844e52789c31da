package pocketdraft.core

import java.nio.ByteBuffer

/** One call of a drafter's graph that keeps K/V of committed positions: [real] rows from [from] on, padding after them. */
class FollowingCall(val graph: GraphSpec, val from: Int, val real: Int)

/**
 * Cuts [count] rows of the positions from [start] on into calls.
 *
 * [graphs] are narrowest first, the first of width 1. Each call takes the narrowest that holds all that is left, else
 * the widest, of those that do not reach past [capacity].
 */
fun followingCalls(graphs: List<GraphSpec>, start: Int, count: Int, capacity: Int): List<FollowingCall> {
    val calls = ArrayList<FollowingCall>()
    var done = 0
    while (done < count) {
        val fitting = graphs.filter { it.width <= capacity - start - done }
        val graph = fitting.find { it.width >= count - done } ?: fitting.last()
        calls += FollowingCall(graph, done, minOf(count - done, graph.width))
        done += calls.last().real
    }
    return calls
}

/** Fills [into] with [rows] of one size, zeros after them. */
fun fill(into: ByteBuffer, rows: List<ByteBuffer>) {
    val target = into.duplicate().apply { clear() }
    rows.forEach { target.put(it.duplicate().apply { clear() }) }
    while (target.hasRemaining()) target.put(0)
}
