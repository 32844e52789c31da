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
class ReplayedEngine(override val manifest: Manifest, calls: JsonArray) : Engine {
    private val coming = ArrayDeque(calls.map { it.asJsonObject })
    private val outputs = HashMap<String, Map<String, ByteBuffer>>() // the engine's own, until a graph's next run
    private var number = 0

    override fun newCache(): Any = Unit

    override fun run(graph: String, inputs: Map<String, ByteBuffer>, cache: Any?): Map<String, ByteBuffer> {
        val recorded = coming.removeFirstOrNull() ?: throw AssertionError("call ${++number} of $graph was not recorded")
        number++
        if (recorded["graph"].asString != graph) {
            throw AssertionError("call $number runs $graph, ${recorded["graph"].asString} was recorded")
        }
        val spec = manifest.graph(graph)
        for (tensor in spec.inputs.filterNot { it.isKV }) {
            val given = recorded.getAsJsonObject("inputs")
            val fed = read(tensor, inputs.getValue(tensor.name), given["mask_from"]?.asInt ?: 0)
            val meant = given[tensor.name].doubles().toList()
            if (fed != meant) throw AssertionError("call $number, $graph: ${tensor.name} is $fed, $meant was recorded")
        }
        val made = outputs.getOrPut(graph) { spec.outputs.associate { it.name to it.allocate() } }
        for ((name, buffer) in made) {
            recorded.getAsJsonObject("outputs")[name].doubles().forEachIndexed { at, it -> buffer.putFloat(4 * at, it.toFloat()) }
        }
        return made
    }

    override fun close() {
        if (coming.isNotEmpty()) throw AssertionError("${coming.size} recorded calls were not made")
    }

    /** A mask as the number of slots that each row sees, [from] the first one on. */
    private fun read(tensor: TensorSpec, buffer: ByteBuffer, from: Int): List<Double> = when (tensor.dtype) {
        DType.FLOAT32 -> List(tensor.elements) { buffer.getFloat(4 * it).toDouble() }
        DType.INT32 -> List(tensor.elements) { buffer.getInt(4 * it).toDouble() }
        DType.BOOL -> List(tensor.shape[2]) { row -> seen(buffer, row * tensor.shape[3], tensor.shape[3], from).toDouble() }
        else -> throw AssertionError("${tensor.name} is ${tensor.dtype}")
    }

    private fun seen(buffer: ByteBuffer, at: Int, slots: Int, from: Int): Int {
        val row = (at until at + slots).map { buffer.get(it).toInt() }
        val count = row.drop(from).takeWhile { it == 1 }.size
        if (row.sum() != count) throw AssertionError("the mask $row has more than slots from $from on, or a gap")
        return count
    }
}
