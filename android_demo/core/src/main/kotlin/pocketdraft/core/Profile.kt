package pocketdraft.core

import com.google.gson.GsonBuilder
import com.google.gson.JsonArray
import com.google.gson.JsonObject
import java.io.File
import java.security.MessageDigest

/** The phone, as it calls itself. */
data class DeviceInfo(val name: String, val soc: String?, val os: String, val cores: Int, val memoryBytes: Long)

/** A device profile for `pocketdraft tune`; `runtime/profile.py` owns the format. */
class Profile(
    private val manifest: Manifest,
    private val device: DeviceInfo,
    private val runtimeVersion: String,
    private val threads: Int,
    private val date: String,
    private val source: String,
) {
    private val drafter = manifest.drafters.default

    /** The profile of a benchmark's results and its graphs' timings. [bandwidth] in bytes/s, null where not known. */
    fun toJson(timings: List<GraphTiming>, results: List<DomainResult>, lookupShare: Double, drafts: Int, bandwidth: Double?) =
        JsonObject().apply {
            addProperty("format_version", 1)
            addProperty("origin", "measured")
            addProperty("source", source)
            addProperty("date", date)
            add("device", JsonObject().apply {
                addProperty("name", device.name)
                addProperty("soc", device.soc)
                addProperty("os", device.os)
                addProperty("cores", device.cores)
                addProperty("memory_bytes", device.memoryBytes)
            })
            addProperty("backend", manifest.backend.name.lowercase())
            addProperty("accelerator", "cpu")
            addProperty("runtime_version", runtimeVersion)
            addProperty("bundle_sha256", filesDigest(manifest))
            addProperty("threads", threads)
            addProperty("memory_bandwidth", bandwidth)
            add("graphs", JsonArray().also { list -> timings.forEach { list.add(graph(it)) } })
            val (host, drafters) = rounds(timings, results, lookupShare, drafts)
            add("host", host)
            drafters?.let { add("drafters", it) }
            add("speeds", JsonArray().also { list -> results.forEach { list.add(speed(it, drafts)) } })
        }

    private fun graph(timing: GraphTiming) = JsonObject().apply {
        addProperty("name", timing.graph.name)
        addProperty("role", timing.graph.role.name.lowercase())
        addProperty("width", timing.graph.width)
        addProperty("filled", timing.filled)
        addProperty("median_s", median(timing.seconds))
        addProperty("lower_quartile_s", quantile(timing.seconds, 0.25))
        addProperty("upper_quartile_s", quantile(timing.seconds, 0.75))
        addProperty("runs", timing.seconds.size)
    }

    /**
     * What rounds took beyond the medians of their graphs: plain ones, and each draft of the others on top. A drafter
     * that is more than one graph a draft stands on its own, with what a draft took, graphs and all.
     */
    private fun rounds(
        timings: List<GraphTiming>,
        results: List<DomainResult>,
        lookupShare: Double,
        drafts: Int,
    ): Pair<JsonObject, JsonObject?> {
        fun median(holds: (GraphSpec) -> Boolean) = timings.filter { holds(it.graph) }.map { median(it.seconds) }
        val lookup = median { it.role == Role.EMBED || it.role == Role.EMBED_PER_LAYER }.sum() * lookupShare
        val decode = median { it.role == Role.DECODE }.single() + lookup
        val verifies = if (drafter == DrafterKind.EARLY_EXIT.label) Role.EXIT_VERIFY else Role.VERIFY
        val verify = median { it.role == verifies && it.width > drafts }.min() + lookup
        val round = results.sumOf { it.plainStats.seconds.sum() } / results.sumOf { it.plainStats.rounds } - decode
        val stats = results.map { it.stats }
        val drafted = stats.sumOf { it.draftedRounds }
        val alone = stats.sumOf { it.rounds } - drafted
        val beyond = stats.sumOf { it.seconds.sum() } - alone * (decode + round) - drafted * (verify + round)
        val each = if (drafted > 0) beyond / stats.sumOf { it.proposed } else 0.0
        val mtp = drafter == DrafterKind.MTP.label
        val draft = median { it.role == Role.DRAFT }.sum() + 2 * lookup // its own call's, and its row of the verify
        fun draftTimes(seconds: Double) = JsonObject().apply {
            addProperty("draft_s", maxOf(0.0, seconds))
            addProperty("drafting_s", 0.0) // with one number of drafts it cannot be told from the drafts' own
        }
        val host = draftTimes(if (mtp) each - draft else 0.0).apply {
            addProperty("round_s", maxOf(0.0, round))
            addProperty("lookup_share", lookupShare)
        }
        val own = draftTimes(each).apply { addProperty("verify", verifies.name.lowercase()) }
        return host to if (mtp) null else JsonObject().apply { add(drafter, own) }
    }

    private fun speed(result: DomainResult, drafts: Int) = JsonObject().apply {
        addProperty("model", manifest.target)
        addProperty("drafter", drafter)
        addProperty("drafts", drafts)
        addProperty("plain_tokens_per_s", result.plainTokensPerSecond)
        addProperty("tokens_per_s", result.draftedTokensPerSecond)
        addProperty("ratio", result.ratio)
        add("acceptance_by_position", JsonArray().also { list -> result.stats.acceptanceByPosition().forEach(list::add) })
        addProperty("note", result.domain + if (result.identical) "" else ": drafted text is not the plain one")
    }

    companion object {
        /** Whole or not at all. */
        fun write(profile: JsonObject, file: File) {
            val partial = File(file.parentFile, "${file.name}.partial")
            partial.writeText(GsonBuilder().setPrettyPrinting().serializeNulls().create().toJson(profile) + "\n")
            if (!partial.renameTo(file)) throw PocketdraftError("Cannot write $file; free some space.")
        }
    }
}

/** sha256 of the lines "NAME SHA256", sorted by name, of the manifest's files: the same whatever else it says. */
fun filesDigest(manifest: Manifest): String {
    val lines = manifest.files.toSortedMap().map { (name, file) -> "$name ${file.sha256}\n" }.joinToString("")
    return MessageDigest.getInstance("SHA-256").digest(lines.toByteArray()).joinToString("") { "%02x".format(it) }
}
