package pocketdraft.core

import com.google.gson.JsonArray
import com.google.gson.JsonElement
import com.google.gson.JsonObject
import com.google.gson.JsonParser
import java.io.File
import java.nio.ByteBuffer

/** What the Python runtime recorded: `tests/golden/record.py`. Tests run with the repository as working folder. */
object Golden {
    val folder = File(System.getProperty("pocketdraft.golden") ?: "tests/golden")

    fun read(name: String): List<JsonObject> =
        (JsonParser.parseReader(File(folder, "$name.json").reader()) as JsonArray).map { it.asJsonObject }
}

fun JsonElement.ints(): List<Int> = asJsonArray.map { it.asInt }

fun JsonElement.doubles(): DoubleArray = asJsonArray.map { it.asDouble }.toDoubleArray()

fun JsonObject.sampler(): Sampler {
    val sampling = getAsJsonObject("sampling")
    return Sampler(
        Sampling(
            sampling["temperature"].asDouble,
            sampling["top_k"].asInt,
            sampling["top_p"].asDouble,
            sampling["min_p"].asDouble,
            sampling["repetition_penalty"].asDouble,
            sampling["seed"].asString.toULong().toLong(),
        ),
        Rule.valueOf(get("rule").asString.uppercase()),
    )
}

fun JsonObject.manifest() = Manifest.parse(File("bundle.json"), getAsJsonObject("manifest").toString())

/** Takes the recorded calls one after the other, and nothing else: same graph, same inputs, bit for bit. */
class ReplayedEngine(override val manifest: Manifest, calls: JsonArray, override val takesTrees: Boolean) : Engine {
    private val coming = ArrayDeque(calls.map { it.asJsonObject })
    private val outputs = HashMap<String, Map<String, ByteBuffer>>() // the engine's own, until a graph's next run
    private var number = 0

    /** Nanoseconds: by each call a 512th of a second for each of its tokens, as when it was recorded. */
    var time = 0L
        private set

    override fun newCache(): Any = Unit

    override fun run(graph: String, inputs: Map<String, ByteBuffer>, cache: Any?): Map<String, ByteBuffer> {
        val recorded = next("graph", graph)
        val spec = manifest.graph(graph)
        time += spec.width * 1_000_000_000L / 512
        for (tensor in spec.inputs.filterNot { it.isKV }) {
            val given = recorded.getAsJsonObject("inputs")
            val fed = read(tensor, inputs.getValue(tensor.name))
            val meant = if (tensor.dtype == DType.BOOL) seen(given) else given[tensor.name].doubles().toList()
            if (fed != meant) throw AssertionError("call $number, $graph: ${tensor.name} is $fed, $meant was recorded")
        }
        val made = outputs.getOrPut(graph) { spec.outputs.associate { it.name to it.allocate() } }
        for ((name, buffer) in made) {
            recorded.getAsJsonObject("outputs")[name].doubles().forEachIndexed { at, it -> buffer.putFloat(4 * at, it.toFloat()) }
        }
        return made
    }

    override fun compact(cache: Any, sources: List<Int>, start: Int) {
        val recorded = next("compact", "$sources")
        if (recorded["start"].asInt != start) {
            throw AssertionError("call $number moves $sources to $start, ${recorded["start"]} was recorded")
        }
    }

    override fun close() {
        if (coming.isNotEmpty()) throw AssertionError("${coming.size} recorded calls were not made")
    }

    private fun next(what: String, name: String): JsonObject {
        val recorded = coming.removeFirstOrNull() ?: throw AssertionError("call ${++number}, $name, was not recorded")
        number++
        val meant = recorded[what]?.let { if (it.isJsonArray) "${it.ints()}" else it.asString }
        return if (meant == name) recorded else throw AssertionError("call $number, of $what $name: $recorded was recorded")
    }

    /** A mask as the slots that each row sees. */
    private fun read(tensor: TensorSpec, buffer: ByteBuffer): List<Any> = when (tensor.dtype) {
        DType.FLOAT32 -> List(tensor.elements) { buffer.getFloat(4 * it).toDouble() }
        DType.INT32 -> List(tensor.elements) { buffer.getInt(4 * it).toDouble() }
        DType.BOOL -> List(tensor.elements) { buffer.get(it).toInt() }.chunked(tensor.shape[3]).map { row ->
            row.indices.filter { row[it] == 1 }
        }
        else -> throw AssertionError("${tensor.name} is ${tensor.dtype}")
    }

    /** A recorded one: by row how many slots are seen from the first one on, and which others. */
    private fun seen(inputs: JsonObject): List<List<Int>> = inputs.getAsJsonArray("mask").map { row ->
        val first = inputs["mask_from"]?.asInt ?: 0
        val counted = if (row.isJsonArray) row.ints() else listOf(row.asInt)
        (first until first + counted.first()) + counted.drop(1)
    }
}
