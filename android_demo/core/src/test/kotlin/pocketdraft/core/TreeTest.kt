package pocketdraft.core

import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

class TreeTest {
    private val fork = Proposal(listOf(1, 2), listOf(-1, -1))

    @Test
    fun `an engine that cannot move rows refuses a tree`() {
        refuses("tree of 2, this engine cannot move K/V rows; propose a chain") { verify(fork, takesTrees = false) }
    }

    @Test
    fun `a tree deeper than any window is refused`() {
        val deep = Proposal(List(DEEPEST + 2) { 1 }, (-1 until DEEPEST) + -1)
        refuses("${DEEPEST + 1} deep, $DEEPEST is the most") { verify(deep, takesTrees = true) }
    }

    @Test
    fun `drafters of trees refuse rejection, which takes a chain, and so does the one that goes by times`() {
        val sampler = Sampler(Sampling(temperature = 1.0), Rule.REJECTION)
        for (name in listOf("dflash_tree", "mtp_tree", "hybrid")) {
            val recorded = Golden.read("sessions").first { it["drafter"].asString == name }
            val target = Target(ReplayedEngine(recorded.manifest(), recorded.getAsJsonArray("calls"), takesTrees = true))
            refuses("The drafter $name ") { Session.open(target, name, 4, sampler) }
        }
    }

    @Test
    fun `rows move together, also around a ring and of any type, and all others stay`() {
        val (heads, size) = 2 to 3
        for (type in listOf(DType.FLOAT32, DType.FLOAT16, DType.INT8)) {
            for (slots in listOf(40, 16)) {
                val keys = TensorSpec("kv_cache_k_0", type, listOf(1, heads, slots, size))
                val values = TensorSpec("kv_cache_v_0", type, listOf(1, heads, size, slots))
                for ((tensor, place) in listOf<Pair<TensorSpec, (Int, Int, Int) -> Int>>(
                    keys to { head, slot, at -> (head * slots + slot) * size + at },
                    values to { head, slot, at -> (head * size + at) * slots + slot },
                )) {
                    val memory = ByteBuffer.allocateDirect(tensor.bytes).order(ByteOrder.nativeOrder())
                    for (index in 0 until tensor.bytes) memory.put(index, index.toByte())
                    val before = values(memory, type)
                    val meant = before.toMutableList()
                    val moved = mapOf(14 to 15, 15 to 16, 16 to 19)
                    for (head in 0 until heads) {
                        for (at in 0 until size) {
                            for ((to, from) in moved) meant[place(head, to % slots, at)] = before[place(head, from % slots, at)]
                        }
                    }
                    moveRows(memory, tensor, moved.values.toList(), 14)
                    assertEquals("${tensor.name}, $type, $slots slots", meant, values(memory, type))
                }
            }
        }
    }

    @Test
    fun `counts of a tree are by depth and not by node`() {
        val tree = Proposal(listOf(5, 6, 7), listOf(-1, 0, -1), confidences = listOf(0.5, 0.5))
        val stats = Stats()
        // All refused; one accepted, its child refused; two accepted; the leaf accepted, with nothing left to refuse.
        for ((accepted, rows) in listOf(
            emptyList<Int>() to listOf(0),
            listOf(5) to listOf(0, 1),
            listOf(5, 6) to listOf(0, 1, 2),
            listOf(7) to listOf(0, 3),
        )) {
            stats.record(tree, Verdict(accepted, 9, rows), Emitted(accepted + 9, accepted.size, null))
            stats.check()
        }
        assertEquals(listOf(4, 12, 4, 2, 2), with(stats) { listOf(rounds, proposed, accepted, corrected, bonus) })
        assertEquals(listOf(3 / 4.0, 1 / 4.0), stats.acceptanceByPosition())
        assertEquals(listOf(3 / 4.0, 1 / 2.0), stats.conditionalAcceptanceByPosition())
        // The leaf is no draft of the chain, whose first one was refused for it.
        assertEquals(mapOf((5 to true) to 3, (5 to false) to 3), stats.judged)
    }

    private fun values(memory: ByteBuffer, type: DType): List<List<Byte>> =
        (0 until memory.capacity()).map { memory.get(it) }.chunked(type.bytes)

    private fun verify(proposal: Proposal, takesTrees: Boolean) {
        val recorded = Golden.read("sessions").first()
        val target = Target(ReplayedEngine(recorded.manifest(), recorded.getAsJsonArray("calls"), takesTrees))
        target.verify(target.newCache(), 1, proposal)
    }

    private fun refuses(words: String, action: () -> Unit) {
        val error = assertThrows(PocketdraftError::class.java, action)
        assertTrue(error.message, words in error.message!!)
    }
}
