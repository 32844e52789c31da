package pocketdraft.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Test

class CostTest {
    private val times = Times(listOf(1, 3, 5, 9))

    @Test
    fun `nothing is known of a round until a draft was timed`() {
        times.add(1, 1.0, 0, 0.5, 0.1)
        assertNull(times.cost())
        times.add(1, 1.0, 2, 0.5, 0.1)
        assertEquals(1.0 + 2 * 0.25 + 0.1, times.cost()!!.seconds(2, 2), 1e-12)
    }

    @Test
    fun `a width that has not run lies between its neighbours, and beyond them is the nearest`() {
        times.add(1, 1.0, 1, 0.0, 0.0)
        times.add(5, 3.0, 1, 0.0, 0.0)
        assertEquals(listOf(1.0, 2.0, 2.0, 3.0, 3.0, 3.0), (0..5).map { times.cost()!!.seconds(it, 0) })
        assertEquals(8, times.cost()!!.longest)
    }

    @Test
    fun `a width that hardly ran lies between those beside it too`() {
        repeat(3) { times.add(1, 1.0, 0, 0.0, 0.0) }
        repeat(2) { times.add(3, 9.0, 1, 0.0, 0.0) }
        times.add(5, 3.0, 1, 0.0, 0.0)
        assertEquals(2.0, times.cost()!!.seconds(1, 0), 0.0)
        times.add(3, 9.0, 1, 0.0, 0.0)
        assertEquals(9.0, times.cost()!!.seconds(1, 0), 0.0)
    }

    @Test
    fun `times are lower quartiles of the last rounds`() {
        repeat(40) { times.add(1, 99.0, 1, 99.0, 99.0) }
        repeat(32) { times.add(1, it.toDouble(), 1, 0.0, 0.0) }
        assertEquals(8.0, times.cost()!!.seconds(0, 0), 0.0)
    }
}
