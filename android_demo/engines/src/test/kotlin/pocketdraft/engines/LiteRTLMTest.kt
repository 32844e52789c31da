package pocketdraft.engines

import java.io.File
import java.nio.file.Files
import kotlin.concurrent.thread
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Assume.assumeTrue
import org.junit.Test
import pocketdraft.core.Backend
import pocketdraft.core.Manifest
import pocketdraft.core.Session
import pocketdraft.core.Target

private const val BUDGET = 40

/** The vendor's loop says what ours says. */
class LiteRTLMTest {
    private val manifest = BUNDLES.map(Manifest::read).find { it.backend == Backend.LITERT }
    private val file get() = File(manifest!!.folder, "model.litertlm")

    @Test
    fun `its text is ours, drafted or not`() {
        val manifest = given()
        val tokenizer = tokenizer(manifest)
        val ours = openEngine(manifest, 1).use { engine ->
            val session = Session.open(Target(engine), "mtp", 4)
            tokenizer.decode(session.generate(tokenizer.encode(TEXT), BUDGET).flatMap { it.tokens }.toList())
        }
        val replies = listOf(false, true).map { speculate ->
            val pieces = StringBuilder()
            val reply = opened(speculate) { it.generate(TEXT, BUDGET, pieces::append) }
            assertEquals(reply.text.trimEnd('\uFFFD'), "$pieces")
            assertTrue(reply.text, reply.text.startsWith(ours) || ours.startsWith(reply.text))
            assertTrue("${reply.tokens} tokens", reply.tokens in BUDGET..BUDGET + 4)
            assertTrue(reply.tokensPerSecond > 0)
            reply
        }
        assertTrue("$replies", replies[1].chunks < replies[0].chunks * 3 / 4)
    }

    @Test
    fun `a generation can be cancelled, and the next one runs`() {
        given()
        opened(speculate = true) { lm ->
            var pieces = 0
            val cut = lm.generate(TEXT, 400) { if (++pieces == 2) thread { lm.cancel() } }
            assertTrue("$cut", cut.tokens < 390)
            assertTrue(lm.generate(TEXT, BUDGET).tokens >= BUDGET)
        }
    }

    @Test
    fun `a file that is none is refused, and so is a closed one`() {
        val bundle = given().folder
        val cache = Files.createTempDirectory("pocketdraft-test-").toFile()
        val other = File(bundle, "tokenizer.json")
        assertRefused("$other", "again") { LiteRTLM.open(other, 1, speculate = false, cache) }
        val closed = LiteRTLM.open(file, 1, speculate = false, cache).also { it.close() }
        assertRefused("closed") { closed.generate(TEXT, 1) }
        cache.deleteRecursively()
    }

    private fun given(): Manifest {
        assumeTrue("no LiteRT bundle was given", manifest != null)
        return manifest!!
    }

    private fun <T> opened(speculate: Boolean, use: (LiteRTLM) -> T): T {
        val cache = Files.createTempDirectory("pocketdraft-test-").toFile()
        return LiteRTLM.open(file, 1, speculate, cache).use(use).also { cache.deleteRecursively() }
    }
}
