package pocketdraft.engines

import com.google.gson.Gson
import com.google.gson.JsonObject
import com.google.gson.JsonParser
import java.io.File
import pocketdraft.core.Manifest
import pocketdraft.core.Session
import pocketdraft.core.Target

/**
 * Takes a job as JSON on standard input: `bundle`, `prompts` (lists of tokens), `budget`, `drafters`, `drafts`,
 * `threads`. Prints the tokens of every drafter as lists by prompt, the seconds it took, and the `machine`.
 */
fun main() {
    val job = JsonParser.parseReader(System.`in`.reader()).asJsonObject
    val prompts = job.getAsJsonArray("prompts").map { prompt -> prompt.asJsonArray.map { it.asInt } }
    val found = JsonObject()
    found.addProperty("machine", System.getProperty("os.arch"))
    openEngine(Manifest.open(File(job["bundle"].asString)), job["threads"].asInt).use { engine ->
        val target = Target(engine)
        for (drafter in job.getAsJsonArray("drafters").map { it.asString }) {
            val started = System.nanoTime()
            var rounds = 0
            val tokens = prompts.map { prompt ->
                val session = Session.open(target, drafter, job["drafts"].asInt)
                session.generate(prompt, job["budget"].asInt).onEach { rounds++ }.flatMap { it.tokens }.toList()
            }
            found.add(drafter, Gson().toJsonTree(tokens))
            found.addProperty("$drafter rounds", rounds)
            found.addProperty("$drafter seconds", (System.nanoTime() - started) / 1e9)
        }
    }
    println(found)
}
