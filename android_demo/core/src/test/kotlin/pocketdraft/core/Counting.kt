package pocketdraft.core

import com.google.gson.JsonArray
import com.google.gson.JsonObject
import java.io.File
import java.nio.ByteBuffer

/** A target that always says the same token, and remembers which tokens were written to which slots. */
class Counting(private val says: Int, stop: Int) : Engine {
    /** Slots in the order in which they were written. */
    val written = ArrayList<Int>()
    private val slots = sortedMapOf<Int, Int>()
    val sequence get() = slots.values.toList()

    override val manifest = Manifest.parse(File("bundle.json"), manifest(stop).toString())

    override fun newCache(): Any = Unit

    override fun run(graph: String, inputs: Map<String, ByteBuffer>, cache: Any?): Map<String, ByteBuffer> {
        val spec = manifest.graph(graph)
        val made = spec.outputs.associate { it.name to it.allocate() }
        if (spec.role == Role.EMBED) {
            made.getValue("embeddings").putFloat(0, inputs.getValue("token_ids").getInt(0).toFloat())
        } else {
            for (row in 0 until spec.width) {
                val slot = inputs.getValue("input_pos").getInt(4 * row)
                val token = inputs.getValue("embeddings").getFloat(4 * row).toInt()
                if (token != 0) { // padding
                    written += slot
                    slots[slot] = token
                }
                made["logits"]?.putFloat(4 * (row * VOCABULARY + says), 1f)
            }
        }
        return made
    }

    override fun close() {}

    private companion object {
        const val VOCABULARY = 2048
        const val CONTEXT = 128

        /** The recorded one, with this vocabulary and context, and without per-layer embeddings. */
        fun manifest(stop: Int): JsonObject {
            val manifest = Golden.read("sessions").first().getAsJsonObject("manifest").deepCopy()
            manifest.addProperty("vocab_size", VOCABULARY)
            manifest.addProperty("context_length", CONTEXT)
            manifest.getAsJsonObject("tokens").add("stop", JsonArray().apply { add(stop) })
            val graphs = manifest.getAsJsonArray("graphs")
            graphs.removeAll { it.asJsonObject["role"].asString == "embed_per_layer" }
            for (graph in graphs.map { it.asJsonObject }) {
                graph.getAsJsonArray("inputs").removeAll { it.asJsonObject["name"].asString == "per_layer_embeddings" }
                for (tensor in graph.getAsJsonArray("inputs") + graph.getAsJsonArray("outputs")) {
                    val size = mapOf("mask" to CONTEXT, "logits" to VOCABULARY)[tensor.asJsonObject["name"].asString] ?: continue
                    tensor.asJsonObject.getAsJsonArray("shape").apply { set(size() - 1, com.google.gson.JsonPrimitive(size)) }
                }
            }
            return manifest
        }
    }
}
