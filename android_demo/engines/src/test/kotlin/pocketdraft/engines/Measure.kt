package pocketdraft.engines

import com.google.gson.GsonBuilder
import com.google.gson.JsonParser
import java.io.File
import pocketdraft.core.Benchmark
import pocketdraft.core.DeviceInfo
import pocketdraft.core.GraphTimer
import pocketdraft.core.Manifest
import pocketdraft.core.Profile
import pocketdraft.core.Prompt
import pocketdraft.core.TOKENIZER_NAME
import pocketdraft.core.Target
import pocketdraft.core.Tokenizer
import pocketdraft.core.memoryBandwidth

/**
 * The app's benchmark without the app: a job on standard input, {bundle, prompts, drafts, tokens}, gives the profile on
 * standard output. `prompts` is a JSONL file.
 */
fun main() {
    val job = JsonParser.parseReader(System.`in`.reader()).asJsonObject
    val manifest = Manifest.open(File(job["bundle"].asString))
    val prompts = Prompt.parse(File(job["prompts"].asString).readText().lineSequence(), 1)
    val drafts = job["drafts"].asInt
    openEngine(manifest, threads = 1).use { engine ->
        val target = Target(engine)
        val tokenizer = Tokenizer.read(File(manifest.folder, TOKENIZER_NAME), manifest.bos)
        val results = Benchmark(target, tokenizer, prompts, drafts, job["tokens"].asInt).run({ false }, { _, _ -> })
        val looked = target.lookupsRun.toDouble() / target.lookups
        val timings = GraphTimer(target).time { false }
        val device = DeviceInfo("desk", null, System.getProperty("os.name"), Runtime.getRuntime().availableProcessors(), 1L shl 30)
        val profile = Profile(manifest, device, "", 1, "2026-11-26", "test")
        val made = profile.toJson(timings, results, looked, drafts, memoryBandwidth(manifest, 1))
        println(GsonBuilder().serializeNulls().create().toJson(made))
    }
}
