package pocketdraft.core

import java.io.File
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Test

class ScheduledTest {
    private val half = List(11) { 0.5 }

    @Test
    fun `it stops where the chance to be reached falls below the least`() {
        val table = Scheduled(half, listOf(0.9, 0.4, 0.3))
        assertEquals(3, table.next(Stats()))
        assertFalse(table.enough(emptyList()))
        assertFalse(table.enough(listOf(0.7)))
        assertTrue(table.enough(listOf(0.7, 0.7)))
    }

    @Test
    fun `the table's end is the longest draft, and a table that asks for more than certainty is off`() {
        assertTrue(Scheduled(List(11) { 1.0 }, listOf(0.1)).enough(listOf(1.0)))
        assertEquals(0, Scheduled(half, listOf(1.5, 0.1)).next(Stats()))
        assertEquals(0, Scheduled(half, emptyList()).next(Stats()))
    }

    @Test
    fun `a bundle's schedule is read from its manifest`() {
        val manifest = Golden.read("sessions").first().getAsJsonObject("manifest")
        val shares = half.joinToString(prefix = "[", postfix = "]")
        val table = """{"shares": $shares, "least": [0.9, 0.4]}"""
        val tuned = """{"drafter": "mtp", "drafts": 2, "schedule": $table, "gain": 1.5, "gains": {}, "reason": "r", "device": "d"}"""
        manifest.add("tuned", com.google.gson.JsonParser.parseString(tuned))
        val read = Manifest.parse(File("bundle.json"), manifest.toString()).tuned!!
        assertEquals(2, read.schedule!!.next(Stats()))
        assertEquals(listOf("mtp", "r", "d"), listOf(read.drafter, read.reason, read.device))
    }
}
