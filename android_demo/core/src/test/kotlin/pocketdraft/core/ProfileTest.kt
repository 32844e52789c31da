package pocketdraft.core

import com.google.gson.JsonElement
import com.google.gson.JsonParser
import java.io.File
import org.junit.Assert.assertEquals
import org.junit.Test

class ProfileTest {
    private val manifest = Golden.read("sessions").first().manifest()
    private val verify = manifest.graph("verify_3")

    @Test
    fun `it has the keys of the format, but for other programs' drafters, and no more`() {
        val example = JsonParser.parseReader(File(Golden.folder, "profile.json").reader())
        val profile = Profile(manifest, DeviceInfo("Phone", "SoC", "Android 16", 8, 1L shl 33), "2.3.0", 4, "2026-11-26", "test")
        val timings = listOf("decode", "verify_3", "mtp_drafter", "embedder", "per_layer_embedder")
            .map { GraphTiming(manifest.graph(it), 6, listOf(0.5, 0.25, 1.0)) }
        val made = profile.toJson(timings, listOf(result()), 0.5, 2, 5e10)
        val known = keys(example, "").filterNot { it.startsWith("drafters") }.toSet()
        assertEquals(known, keys(made, "") + "speeds.batch" + "speeds.temperature")
        val host = made.getAsJsonObject("host")
        // A plain round takes 1.5 s, of them a decode of 0.5 and two lookups of 0.5, half of which are remembered. The
        // drafted one takes 4: a verify and its lookups 1, the loop 0.5, the draft 0.5, its two lookups 1. That leaves 1.
        assertEquals(0.5, host["round_s"].asDouble, 1e-9)
        assertEquals(1.0, host["draft_s"].asDouble, 1e-9)
        val timing = made.getAsJsonArray("graphs")[1].asJsonObject
        assertEquals(listOf(0.375, 0.5, 0.75), listOf("lower_quartile_s", "median_s", "upper_quartile_s").map { timing[it].asDouble })
        assertEquals("verify", timing["role"].asString)
        assertEquals(verify.width, timing["width"].asInt)
    }

    @Test
    fun `a drafter of several graphs is told with what a draft took in all`() {
        val dflash = Golden.read("sessions").first { it["drafter"].asString == "dflash" }.manifest()
        val timings = listOf("decode", "verify_5", "dflash_draft", "embedder", "per_layer_embedder")
            .map { GraphTiming(dflash.graph(it), 6, listOf(0.5)) }
        val device = DeviceInfo("Phone", "SoC", "Android 16", 8, 1L shl 33)
        val made = Profile(dflash, device, "2.3.0", 4, "2026-11-26", "test").toJson(timings, listOf(result()), 0.5, 2, 5e10)
        // Of 4 s, a verify and its lookups take 1 and the loop 0.5.
        val drafting = made.getAsJsonObject("drafters").getAsJsonObject("dflash")
        assertEquals(JsonParser.parseString("""{"draft_s": 2.5, "drafting_s": 0.0, "verify": "verify"}"""), drafting)
        assertEquals(0.0, made.getAsJsonObject("host")["draft_s"].asDouble, 0.0)
        assertEquals("dflash", made.getAsJsonArray("speeds")[0].asJsonObject["drafter"].asString)
    }

    @Test
    fun `the files' digest stays the same when the choice of tune is written into the manifest`() {
        val tuned = Golden.read("sessions").first().getAsJsonObject("manifest")
        tuned.add("tuned", JsonParser.parseString("{\"drafter\": \"mtp\", \"drafts\": 3, \"reason\": \"\", \"device\": \"\"}"))
        assertEquals(filesDigest(manifest), filesDigest(Manifest.parse(File("bundle.json"), tuned.toString())))
    }

    private fun result() = DomainResult("code").apply {
        plain += Run(listOf(1, 2), 1.0)
        drafted += Run(listOf(1, 2), 0.5)
        plainStats.record(Proposal.NOTHING, Verdict(emptyList(), 1, listOf(0)), Emitted(listOf(1), 0, null))
        plainStats.seconds[RoundPart.VERIFY.ordinal] = 1.5
        stats.record(Proposal.chain(listOf(1)), Verdict(listOf(1), 2, listOf(0, 1)), Emitted(listOf(1, 2), 1, null))
        stats.seconds[RoundPart.DRAFT.ordinal] = 4.0
    }

    /** Of all objects, by their path; of lists, those of all their members. */
    private fun keys(element: JsonElement, path: String): Set<String> = when {
        element.isJsonObject -> element.asJsonObject.entrySet()
            .flatMap { (key, value) -> setOf("$path$key") + keys(value, "$path$key.") }.toSet()
        element.isJsonArray -> element.asJsonArray.flatMap { keys(it, path) }.toSet()
        else -> emptySet()
    }
}
