package pocketdraft.core

import java.nio.ByteBuffer

/**
 * Moves the K/V rows of a tree's accepted nodes to where a chain would have written them, in the [memory] of [tensor]: K
 * [1, H, S, D] or V [1, H, D, S]. See [Engine.compact].
 *
 * Nothing is recomputed: a row depends on its token, its position and what it saw, never on its slot. Moved in order, no
 * row is overwritten before it is read, as each goes to a slot before its own.
 */
fun moveRows(memory: ByteBuffer, tensor: TensorSpec, sources: List<Int>, start: Int) {
    val axis = if ("_k_" in tensor.name) 2 else 3
    val slots = tensor.shape[axis]
    val row = tensor.shape.drop(axis + 1).fold(1, Int::times) // values that lie together
    val blocks = tensor.elements / (slots * row)
    for ((index, source) in sources.withIndex()) {
        val (from, to) = source % slots * row to (start + index) % slots * row
        for (block in 0 until blocks) {
            for (value in block * slots * row until block * slots * row + row) {
                when (tensor.dtype.bytes) {
                    4 -> memory.putInt(4 * (to + value), memory.getInt(4 * (from + value)))
                    2 -> memory.putShort(2 * (to + value), memory.getShort(2 * (from + value)))
                    else -> memory.put(to + value, memory.get(from + value))
                }
            }
        }
    }
}
