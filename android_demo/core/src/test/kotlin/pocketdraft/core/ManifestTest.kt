package pocketdraft.core

import com.google.gson.JsonObject
import com.google.gson.JsonParser
import java.io.File
import org.junit.After
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

class ManifestTest {
    private val folder = createTempDir()
    private val dflash = JsonParser.parseString("""{"block": 6, "mask_token": 11}""")
    private val good: JsonObject = Golden.read("sessions").first().getAsJsonObject("manifest")

    @After
    fun clear() {
        folder.deleteRecursively()
    }

    @Test
    fun `what the Python runtime wrote is read`() {
        val manifest = read(good)
        assertEquals(listOf(2, 3, 5), manifest.graphsOf(Role.VERIFY).map { it.width })
        assertEquals(Backend.LITERT, manifest.backend)
        assertEquals("target", manifest.graph("verify_3").family)
        assertEquals(24 * 2 * 4L, manifest.kvBytes)
    }

    @Test
    fun `each of several native heads is a family of graphs`() {
        val session = Golden.read("sessions").first { it["name"].asString == "mtp_heads, 3 of them" }
        val manifest = read(session.getAsJsonObject("manifest"))
        assertEquals(3, manifest.drafters.mtpHeads)
        val families = manifest.graphsOf(Role.MTP_HEADS).groupBy { it.family }
        assertEquals(setOf("mtp_heads", "mtp_heads_1", "mtp_heads_2"), families.keys)
        assertTrue(families.values.all { it.map(GraphSpec::width) == listOf(1, 4, 5, 8) })
    }

    @Test
    fun `a folder without a manifest is no bundle`() = refuses("is no bundle.*pocketdraft push") { Manifest.read(folder) }

    @Test
    fun `a newer format asks for a newer app, whatever else it holds`() =
        refuses("format version 99, this app reads 2: update the app") {
            read(JsonObject().apply { addProperty("format_version", 99) })
        }

    @Test
    fun `an older format asks for another export`() =
        refuses("format version 1, this app reads 2; export it again") { read(changed { addProperty("format_version", 1) }) }

    @Test
    fun `graphs of drafters that the phone does not run are left alone`() {
        for (role in listOf("exit_fill", "further_exit", "further_head", "further_fill", "further_rest")) {
            val manifest = read(changed {
                val graph = getAsJsonArray("graphs")[0].deepCopy().asJsonObject
                graph.addProperty("name", role)
                graph.addProperty("role", role)
                graph.addProperty("part", "filler")
                getAsJsonArray("graphs").add(graph)
                getAsJsonObject("parts").add("filler", getAsJsonObject("parts")["target"].deepCopy())
            })
            assertTrue(manifest.graphs.none { it.name == role })
            assertTrue("filler" !in manifest.parts)
        }
    }

    @Test
    fun `the default is the first drafter that the bundle holds, and all that it holds can be chosen`() {
        val more = mapOf(
            DrafterKind.MTP to listOf("mtp_tree", "hybrid"),
            DrafterKind.MTP_HEADS to listOf("hybrid"),
            DrafterKind.DFLASH to listOf("dflash_tree"),
        )
        for (kind in DrafterKind.entries) {
            val manifest = Golden.read("sessions").first { it["drafter"].asString == kind.label }.manifest()
            assertEquals(kind.label, manifest.drafters.default)
            assertEquals(listOf(kind.label) + more[kind].orEmpty() + "prompt_lookup", manifest.drafters.runnable)
        }
    }

    @Test
    fun `a drafter without one of its graphs is refused, and one that nobody knows`() {
        refuses("has no dflash_context graph") { read(changed { getAsJsonObject("drafters").add("dflash", dflash) }) }
        refuses("damaged at drafters.oracle .not known") {
            read(changed { getAsJsonObject("drafters").add("oracle", dflash) })
        }
    }

    @Test
    fun `K and V that a drafter owns count as memory`() {
        val kv = """{"name": "dflash_kv_cache_k_0", "dtype": "float32", "shape": [1, 2, 24, 8]}"""
        val manifest = read(changed {
            val inputs = getAsJsonArray("graphs").first { it.asJsonObject["name"].asString == "decode" }.asJsonObject
            inputs.getAsJsonArray("inputs").add(JsonParser.parseString(kv))
        })
        assertEquals(24 * 2 * 4L + 2 * 24 * 8 * 4L, manifest.kvBytes)
    }

    @Test
    fun `a choice of tune that does not run here is left alone`() {
        fun choice(drafter: String) = read(changed {
            add("tuned", JsonParser.parseString("""{"drafter": "$drafter", "drafts": 3, "reason": "", "device": ""}"""))
        }).tuned?.drafter
        assertEquals(listOf(null, null, null), listOf("oracle", "dflash", "dflash_tree").map(::choice))
        val here = listOf("none", "prompt_lookup", "mtp", "mtp_tree", "hybrid")
        assertEquals(here, here.map(::choice))
    }

    @Test
    fun `without an MTP drafter prompts are looked up`() {
        val manifest = read(changed {
            getAsJsonArray("graphs").removeAll { it.asJsonObject["role"].asString == "draft" }
            getAsJsonObject("drafters").remove("mtp")
        })
        assertEquals("prompt_lookup", manifest.drafters.default)
    }

    @Test
    fun `a bundle that was tuned to a tree starts with it`() {
        val recorded = Golden.read("sessions").first { it["drafter"].asString == "dflash_tree" }.getAsJsonObject("manifest")
        recorded.add("tuned", JsonParser.parseString("""{"drafter": "dflash_tree", "drafts": 3, "reason": "", "device": ""}"""))
        val manifest = read(recorded)
        assertEquals("dflash_tree" to 3, manifest.tuned?.let { it.drafter to it.drafts })
        assertEquals(listOf("dflash", "dflash_tree", "prompt_lookup"), manifest.drafters.runnable)
    }

    @Test
    fun `damage is named with its place`() {
        refuses("damaged at the top level") { read("{\"format_version\"") }
        refuses("damaged at vocab_size .missing") { read(changed { remove("vocab_size") }) }
        refuses("damaged at surprise .not known") { read(changed { addProperty("surprise", 1) }) }
        refuses("damaged at graphs.0.role .'guess' is not known") {
            read(changed { getAsJsonArray("graphs")[0].asJsonObject.addProperty("role", "guess") })
        }
        refuses("damaged at context_length .no whole number") { read(changed { addProperty("context_length", 2.5) }) }
    }

    @Test
    fun `a file outside of the bundle is not trusted`() {
        for (name in listOf("../model.pte", "/etc/hosts", "a/../../b")) {
            refuses("leaves the bundle; do not trust it") { read(changed { getAsJsonObject("files").add(name, entry(1)) }) }
        }
    }

    @Test
    fun `a part beyond its file, a missing graph and a missing part are refused`() {
        refuses("which has 1; export again") {
            read(changed { getAsJsonObject("parts").getAsJsonObject("target").addProperty("size", 2) })
        }
        refuses("has no draft graph") {
            read(changed { getAsJsonArray("graphs").removeAll { it.asJsonObject["role"].asString == "draft" } })
        }
        refuses("in a part 'drafter' that it lacks") { read(changed { getAsJsonObject("parts").remove("drafter") }) }
    }

    @Test
    fun `a file that is missing, cut or changed is told apart`() {
        val bytes = "weights".toByteArray()
        val digest = "8ea1c0fb27c5dd4f28ee4ab62d72cb9c7d6eb0ff0e3b7d44f8f1d4a3f0f45a6b"
        write(changed {
            getAsJsonObject("files").entrySet().forEach { (_, it) -> it.asJsonObject.addProperty("size", bytes.size) }
            getAsJsonObject("files").entrySet().forEach { (_, it) -> it.asJsonObject.addProperty("sha256", digest) }
        }.toString())
        refuses("model.litertlm is missing") { Manifest.open(folder) }
        for (name in good.getAsJsonObject("files").keySet()) File(folder, name).writeBytes(bytes)
        refuses("sha256 differs") { Manifest.open(folder) }
        File(folder, "model.litertlm").writeBytes(bytes.copyOf(3))
        refuses("has 3 bytes, 7 were exported") { Manifest.open(folder) }
    }

    private fun changed(change: JsonObject.() -> Unit) = good.deepCopy().apply(change)

    private fun read(manifest: JsonObject) = read(manifest.toString())

    private fun read(text: String): Manifest {
        write(text)
        return Manifest.read(folder)
    }

    private fun write(text: String) = File(folder, MANIFEST_NAME).writeText(text)

    private fun entry(size: Int) = JsonObject().apply {
        addProperty("sha256", "")
        addProperty("size", size)
    }

    private fun refuses(pattern: String, action: () -> Unit) {
        val error = assertThrows(PocketdraftError::class.java, action)
        assertTrue(error.message, Regex(pattern).containsMatchIn(error.message!!))
    }

    private fun createTempDir() = File.createTempFile("bundle", "").apply {
        delete()
        mkdir()
    }
}
