package pocketdraft.engines

import java.io.File
import java.io.RandomAccessFile
import java.nio.ByteBuffer
import org.junit.After
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith
import org.junit.runners.Parameterized
import org.junit.runners.Parameterized.Parameters
import pocketdraft.core.Cache
import pocketdraft.core.Engine
import pocketdraft.core.Manifest
import pocketdraft.core.Proposal
import pocketdraft.core.Role
import pocketdraft.core.Sampler
import pocketdraft.core.Sampling
import pocketdraft.core.Session
import pocketdraft.core.Target

/** The same prompt by different graphs on the same K/V: what one of them writes, the others must read. */
@RunWith(Parameterized::class)
class EngineTest(private val bundle: File) {
    private val manifest = Manifest.read(bundle)
    private val engine = openEngine(manifest, threads = 1)
    private val target = Target(engine)
    private val prompt = tokenizer(manifest).encode(TEXT)

    @After
    fun close() = engine.close()

    @Test
    fun `decode reads what prefill wrote`() {
        val (logits, elsewhere) = listOf(prompt.dropLast(1), prompt.dropLast(1).reversed()).map { before ->
            val cache = target.newCache()
            target.prefill(cache, before)
            next(cache, prompt.last())
        }
        assertTrue(difference(logits, decoded(prompt)) < CLOSE)
        assertTrue(difference(logits, elsewhere) > 1)
    }

    @Test
    fun `a row of verify is decode's`() {
        val (before, verified) = prompt.dropLast(4) to prompt.takeLast(4)
        val cache = target.newCache()
        target.prefill(cache, before)
        val logits = target.verify(cache, verified.first(), Proposal.chain(verified.drop(1))).logits
        for (row in verified.indices) {
            assertTrue(difference(logits.row(row).copyOf(), decoded(before + verified.take(row + 1))) < CLOSE)
        }
    }

    @Test
    fun `rows that are not kept are overwritten`() {
        val cache = target.newCache()
        target.prefill(cache, prompt.dropLast(1))
        target.verify(cache, prompt.last(), Proposal.chain(listOf(1, 2, 3)))
        assertTrue(difference(next(cache, prompt.last()), decoded(prompt)) < CLOSE)
    }

    @Test
    fun `sequences do not see each other`() {
        val one = target.newCache()
        val other = target.newCache()
        target.prefill(one, prompt.dropLast(1))
        target.prefill(other, prompt.reversed())
        assertTrue(difference(next(one, prompt.last()), decoded(prompt)) < CLOSE)
    }

    @Test
    fun `a sequence may take over what an unreachable one had`() {
        val expected = decoded(prompt)
        repeat(20) { assertTrue(difference(decoded(prompt), expected) < CLOSE) }
    }

    @Test
    fun `the drafter reads the target's K and V, and drafted is plain`() {
        val drafted = Session.open(target, "mtp", 4)
        val tokens = drafted.generate(prompt, 48).flatMap { it.tokens }.toList()
        assertEquals(Session.open(target, "none", 0).generate(prompt, 48).flatMap { it.tokens }.toList(), tokens)
        // Without the target's K/V it is right in one of ten.
        val share = drafted.stats.accepted.toDouble() / drafted.stats.proposed
        assertTrue("$share of the drafts were accepted", share > 0.4)
    }

    @Test
    fun `rows of a tree's path are moved to where a chain would have them, also around a ring`() {
        val text = generateSequence { prompt }.flatten().take(manifest.contextLength - 8).toList()
        for (length in listOf(prompt.size, text.size)) {
            val (before, path) = text.take(length - 4) to text.subList(length - 4, length)
            val cache = target.newCache()
            target.prefill(cache, before)
            // Of the pending token a wrong child and the right one, then that one's, a wrong one first.
            val tree = Proposal(listOf(1, path[1], 2, path[2]), listOf(-1, -1, 1, 1))
            val logits = target.verify(cache, path[0], tree).logits
            assertTrue(difference(logits.row(4).copyOf(), prefilled(before + path.take(3))) < CLOSE)
            target.keep(cache, listOf(0, 2, 4))
            assertEquals(length - 1, cache.length)
            val expected = prefilled(text.take(length))
            assertTrue(difference(next(cache, path[3]), expected) < CLOSE)
            // Where no row is moved, the wrong ones are read.
            cache.truncate(length - 3)
            target.verify(cache, 1, Proposal.chain(listOf(2)))
            cache.advance(2)
            assertTrue(difference(next(cache, path[3]), expected) > CLOSE)
        }
    }

    @Test
    fun `drafted trees are plain, also where a sibling of the chain stood`() {
        var moved = 0
        val watched = object : Engine by engine {
            override fun compact(cache: Any, sources: List<Int>, start: Int) {
                moved++
                engine.compact(cache, sources, start)
            }
        }
        // Drawn text repeats itself less, and is a function of the seed too.
        val sampler = Sampler(Sampling(temperature = 1.0, seed = 3))
        val (drafted, plain) = listOf("mtp_tree", "none").map { Session.open(Target(watched), it, 4, sampler) }
        val (tokens, meant) = listOf(drafted, plain).map { one -> one.generate(prompt, 160).flatMap { it.tokens }.toList() }
        assertEquals(meant, tokens)
        assertTrue("$moved moves in ${drafted.stats.rounds} rounds", moved > 1)
        assertTrue("${drafted.stats.rounds} rounds", drafted.stats.rounds < 120)
    }

    @Test
    fun `wrong calls are refused`() {
        val graph = manifest.graphsOf(Role.DECODE).first()
        val inputs = target.inputsOf(graph)
        val cache = engine.newCache()
        assertRefused("'decoed'", graph.name) { engine.run("decoed", inputs, cache) }
        assertRefused(graph.name, "'mask'") { engine.run(graph.name, inputs - "mask", cache) }
        assertRefused(graph.name, "no cache") { engine.run(graph.name, inputs) }
        assertRefused("mask", "3 bytes", "${manifest.contextLength}") {
            engine.run(graph.name, inputs + ("mask" to ByteBuffer.allocateDirect(3)), cache)
        }
        engine.close()
        engine.close()
        assertRefused("closed") { engine.run(graph.name, inputs, cache) }
        assertRefused("closed") { engine.compact(cache, listOf(2), 1) }
        assertRefused("closed") { engine.newCache() }
    }

    @Test
    fun `damaged graphs are refused`() {
        for (file in manifest.files.keys.filter { it.startsWith("model.") || it.endsWith(".onnx") }) {
            val starts = manifest.parts.values.filter { it.file == file }.map { it.offset }.ifEmpty { listOf(0L) }
            val noise = ByteArray(4096) { (31 * it + 7).toByte() }
            val damaged = copied(bundle)
            RandomAccessFile(File(damaged, file), "rw").use { out -> starts.forEach { out.seek(it); out.write(noise) } }
            assertRefused(damaged.path, "again") { openEngine(Manifest.read(damaged), 1) }
            val short = copied(bundle)
            RandomAccessFile(File(short, file), "rw").use { it.setLength(it.length() / 2) }
            assertRefused(short.path, "again") { openEngine(Manifest.read(short), 1) }
        }
    }

    @Test
    fun `a runtime that the build lacks is named`() {
        assertRefused("lib", "${manifest.backend.name.lowercase()}.so", "another backend") {
            openEngine(manifest, 1, File(bundle, "nowhere"))
        }
    }

    /** Logits after [tokens], decoded one by one. */
    private fun decoded(tokens: List<Int>): FloatArray {
        val cache = target.newCache()
        return tokens.map { token -> next(cache, token).also { cache.keep(listOf(0)) } }.last()
    }

    /** Logits after [tokens], all but the last of them by prefill. */
    private fun prefilled(tokens: List<Int>): FloatArray {
        val cache = target.newCache()
        target.prefill(cache, tokens.dropLast(1))
        return next(cache, tokens.last())
    }

    private fun next(cache: Cache, token: Int) = target.verify(cache, token, Proposal.NOTHING).logits.row(0).copyOf()

    companion object {
        private const val CLOSE = 0.01f // of logits that reach 30

        @JvmStatic
        @Parameters(name = "{0}")
        fun bundles() = BUNDLES
    }
}
