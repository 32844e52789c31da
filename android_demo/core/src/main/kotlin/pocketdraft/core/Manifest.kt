package pocketdraft.core

import java.io.File
import java.security.MessageDigest

const val FORMAT_VERSION = 2L
const val MANIFEST_NAME = "bundle.json"
const val TOKENIZER_NAME = "tokenizer.json"
const val KV_PREFIX = "kv_cache_" // of the target's; a drafter's own have its name before that

private const val STATE = "kv_cache_state"
private val SLOTTED = listOf("kv_cache_k_", "kv_cache_v_") // keys and values

enum class Backend { LITERT, EXECUTORCH, ONNX }

/** What a graph is for. Those that the phone does not run (yet) are read and left alone. */
enum class Role(val runs: Boolean = true) {
    PREFILL,
    DECODE,
    VERIFY,
    DRAFT,
    EMBED,
    EMBED_PER_LAYER,
    HEAD,
    DFLASH_CONTEXT,
    DFLASH_DRAFT,
    EXIT_DRAFT,
    EXIT_HEAD,
    EXIT_VERIFY,
    EXIT_FILL(false),
    FURTHER_EXIT(false),
    FURTHER_HEAD(false),
    FURTHER_FILL(false),
    FURTHER_REST(false),
    MTP_HEADS,
    MODEL_PREFILL,
    MODEL_DECODE,
    MODEL_EMBED,
    MODEL_EMBED_PER_LAYER,
}

enum class DType(val bytes: Int) { FLOAT32(4), FLOAT16(2), INT32(4), INT8(1), BOOL(1) }

data class TensorSpec(val name: String, val dtype: DType, val shape: List<Int>) {
    val isKV get() = KV_PREFIX in name

    /** Of a recurrent layer, which has a state in the place of K/V. */
    val isState get() = STATE in name
    val elements get() = shape.fold(1, Int::times)
    val bytes get() = elements * dtype.bytes
}

/** One graph; [width] is T, the tokens of a call. */
data class GraphSpec(
    val name: String,
    val role: Role,
    val part: String,
    val width: Int,
    val inputs: List<TensorSpec>,
    val outputs: List<TensorSpec>,
) {
    /** Which of several native MTP heads it is of: K/V of its drafter's layer of that number are what it takes. */
    val head = if (role == Role.MTP_HEADS) inputs.find { it.isKV }?.name?.substringAfterLast('_')?.toInt() ?: 0 else 0

    /** Graphs that differ in width only: where widths are symbolic (ExecuTorch, ONNX), a family is one graph. */
    val family get() = when {
        role == Role.DECODE || role == Role.VERIFY -> "target"
        head > 0 -> "${role.name.lowercase()}_$head"
        else -> role.name.lowercase()
    }

    fun output(name: String) = outputs.first { it.name == name }
}

/** Those of a role, narrowest first. */
fun List<GraphSpec>.of(role: Role): List<GraphSpec> = filter { it.role == role }.sortedBy { it.width }

/** A layer that owns K/V: int8 if [quantized], a ring of [slots] if that is set. */
data class KVLayer(val layer: Int, val heads: Int, val headDim: Int, val slots: Int?, val quantized: Boolean)

/** Where a part's graphs lie: a byte range of a file. */
data class Part(val file: String, val offset: Long, val size: Long)

data class FileEntry(val sha256: String, val size: Long)

/**
 * What `pocketdraft tune` chose for the phone named [device], and why. [drafter] "none" is plain decoding; [drafts] is
 * the most of a round, which a [schedule] may stop before.
 */
data class Tuned(val drafter: String, val drafts: Int, val schedule: Scheduled?, val reason: String, val device: String)

/** What `bundle.json` says; `runtime/manifest.py` owns the format. */
class Manifest private constructor(val folder: File, root: Record) {
    val backend = root.choice("backend", Backend.entries)
    val contextLength = root.int("context_length")

    /** The most tokens that recurrent layers can take back, of the target or a draft model. */
    val takesBack = root.intOrNull("takes_back")
    val vocabSize = root.int("vocab_size")
    val kv = root.records("kv").map(::kvLayer)
    private val allGraphs = root.records("graphs").map(::graph)
    val graphs = allGraphs.filter { it.role.runs }
    private val allParts = root.table("parts").mapValues { (_, part) ->
        Part(part.text("file"), part.whole("offset"), part.whole("size")).also { part.end() }
    }

    /** Those that hold a graph of [graphs]. */
    val parts = allParts.filterKeys { name -> graphs.any { it.part == name } }

    val drafters = DrafterSpecs(root.record("drafters"))
    val bos: Int?
    val stop: List<Int>
    val recipe: String = root.raw("recipe").toString()
    val target: String
    val sources: List<String> // of drafters
    val files = root.table("files").mapValues { (_, file) ->
        FileEntry(file.text("sha256"), file.whole("size")).also { file.end() }
    }

    /** Null, too, where the choice is a drafter that does not run here. */
    val tuned: Tuned? = root.recordOrNull("tuned")?.let { it ->
        val schedule = it.recordOrNull("schedule")?.let { table -> Scheduled(table.reals("shares"), table.reals("least")) }
        Tuned(it.text("drafter"), it.int("drafts"), schedule, it.text("reason"), it.text("device"))
    }?.takeIf { it.drafter == "none" || it.drafter in drafters.runnable }

    init {
        root.int("format_version")
        root.raw("versions")
        root.textOrNull("device")
        root.isNull("calm") // lossy, and not for the phone yet
        with(root.record("tokens")) {
            bos = intOrNull("bos")
            stop = ints("stop")
            end()
        }
        with(root.record("source")) {
            target = record("target").text("name")
            sources = table("drafters").values.map { it.text("name") }
        }
        root.end()
    }

    /** The graphs of a role, narrowest first. */
    fun graphsOf(role: Role): List<GraphSpec> = graphs.of(role)

    fun graph(name: String): GraphSpec = graphs.first { it.name == name }

    /** Of all files but the manifest. */
    val bytes get() = files.values.sumOf { it.size }

    /** All K/V of a sequence by name, a drafter's own among them, each with a graph that takes it. */
    val kvTensors: Map<String, Pair<TensorSpec, GraphSpec>> = graphs.flatMap { graph ->
        graph.inputs.filter { it.isKV }.map { it.name to (it to graph) }
    }.toMap()

    /** The target's own. */
    val targetKV by lazy { graphsOf(Role.DECODE).first().inputs.filter { it.isKV } }

    /** Of one sequence's K/V. */
    val kvBytes: Long
        get() = kv.sumOf { 2L * it.heads * it.headDim * (it.slots ?: contextLength) * (if (it.quantized) 1 else 4) } +
            kvTensors.values.map { it.first }.filterNot { tensor -> SLOTTED.any(tensor.name::startsWith) }.sumOf { it.bytes.toLong() }

    private fun kvLayer(record: Record): KVLayer {
        val steps = !record.isNull("steps")
        record.text("kind")
        val layer = with(record) { KVLayer(int("layer"), int("heads"), int("head_dim"), intOrNull("slots"), steps) }
        record.end()
        return layer
    }

    private fun graph(record: Record) = GraphSpec(
        record.text("name"),
        record.choice("role", Role.entries),
        record.text("part"),
        record.int("width"),
        record.records("inputs").map(::tensor),
        record.records("outputs").map(::tensor),
    ).also { record.end() }

    private fun tensor(record: Record) =
        TensorSpec(record.text("name"), record.choice("dtype", DType.entries), record.ints("shape")).also { record.end() }

    companion object {
        /** Reads `bundle.json` without touching the other files. Throws [PocketdraftError]. */
        fun read(folder: File): Manifest {
            val path = File(folder, MANIFEST_NAME)
            if (!path.isFile) {
                throw PocketdraftError("$folder is no bundle: it has no $MANIFEST_NAME; push one with `pocketdraft push`.")
            }
            return parse(path, path.readText())
        }

        /** The manifest that stands, or would stand, at [path]. */
        fun parse(path: File, text: String): Manifest {
            val root = Record.parse(text) { place, fault ->
                PocketdraftError("$path is damaged at $place ($fault); export the bundle again.")
            }
            val version = root.whole("format_version")
            if (version > FORMAT_VERSION) {
                throw PocketdraftError(
                    "The bundle has format version $version, this app reads $FORMAT_VERSION: " +
                        "update the app or export again with its pocketdraft.",
                )
            }
            if (version < FORMAT_VERSION) {
                throw PocketdraftError("$path has format version $version, this app reads $FORMAT_VERSION; export it again.")
            }
            return Manifest(path.absoluteFile.parentFile, root).also { it.check(path) }
        }

        /** Reads it, and checks size and sha256 of each file. [progress] is told the share done. */
        fun open(folder: File, progress: (Double) -> Unit = {}): Manifest {
            val manifest = read(folder)
            for ((name, entry) in manifest.files) {
                val file = File(folder, name)
                if (!file.isFile) throw PocketdraftError("$name is missing, $MANIFEST_NAME lists it; push the bundle again.")
                if (file.length() != entry.size) {
                    throw PocketdraftError("$name has ${file.length()} bytes, ${entry.size} were exported; push it again.")
                }
            }
            var done = 0L
            for ((name, entry) in manifest.files) {
                val digest = sha256(File(folder, name)) { progress((done + it).toDouble() / manifest.bytes) }
                if (digest != entry.sha256) {
                    throw PocketdraftError("$name is not the file that was exported (sha256 differs); push it again.")
                }
                done += entry.size
            }
            return manifest
        }

        fun sha256(file: File, progress: (Long) -> Unit = {}): String {
            val digest = MessageDigest.getInstance("SHA-256")
            val piece = ByteArray(1 shl 20)
            var done = 0L
            file.inputStream().use { stream ->
                while (true) {
                    val count = stream.read(piece)
                    if (count < 0) break
                    digest.update(piece, 0, count)
                    done += count
                    progress(done)
                }
            }
            return digest.digest().joinToString("") { "%02x".format(it) }
        }
    }

    /** What a runtime relies on without looking. */
    private fun check(path: File) {
        for (name in files.keys) {
            val leaves = '\u0000' in name || name.startsWith("/") || ".." in name.split("/") ||
                !File(folder, name).canonicalFile.startsWith(folder.canonicalFile)
            if (leaves) throw PocketdraftError("$path names '$name', which leaves the bundle; do not trust it.")
        }
        if (TOKENIZER_NAME !in files) throw PocketdraftError("$path does not list $TOKENIZER_NAME; export the bundle again.")
        for ((name, part) in allParts) {
            val file = files[part.file]
                ?: throw PocketdraftError("$path takes a graph from ${part.file}, which it does not list; export again.")
            if (part.offset < 0 || part.offset + part.size > file.size) {
                val end = part.offset + part.size
                throw PocketdraftError("$path places $name up to byte $end of ${part.file}, which has ${file.size}; export again.")
            }
        }
        val needed = listOf(Role.EMBED, Role.PREFILL, Role.DECODE, Role.VERIFY) + drafters.kinds.flatMap { it.roles.toList() }
        for (role in needed) {
            if (graphsOf(role).isEmpty()) {
                throw PocketdraftError("$path has no ${role.name.lowercase()} graph; export the bundle again.")
            }
        }
        allGraphs.find { it.part !in allParts }?.let {
            throw PocketdraftError("$path has a graph ${it.name} in a part '${it.part}' that it lacks; export again.")
        }
    }
}
