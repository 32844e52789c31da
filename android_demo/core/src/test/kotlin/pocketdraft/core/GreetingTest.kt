package pocketdraft.core

import org.junit.Assert.assertEquals
import org.junit.Test

class GreetingTest {
    @Test
    fun greetingNamesTheProject() = assertEquals("pocketdraft", greeting())
}
