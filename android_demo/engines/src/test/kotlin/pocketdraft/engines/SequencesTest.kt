package pocketdraft.engines

import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test

class SequencesTest {
    private val made = ArrayList<IntArray>()
    private val freed = ArrayList<IntArray>()
    private val sequences = Sequences({ intArrayOf(0).also(made::add) }, { it[0] = 0 }, freed::add)

    @Test
    fun `what nobody holds serves the next sequence, renewed`() {
        repeat(50) {
            assertEquals(0, sequences.next().kv[0]++)
        }
        assertTrue("${made.size} of 50 sequences made K/V of their own", made.size < 10)
    }

    @Test
    fun `sequences that are held have K and V of their own, and all are freed once`() {
        val held = List(5) { sequences.next() }
        assertEquals(5, (held + sequences.next()).map { it.kv }.distinct().size - 1)
        sequences.close()
        sequences.close()
        assertEquals(made.toSet(), freed.toSet())
        assertEquals(made.size, freed.size)
    }
}
