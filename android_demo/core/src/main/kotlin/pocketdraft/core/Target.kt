package pocketdraft.core

import java.nio.ByteBuffer
import java.nio.ByteOrder

private const val REMEMBERED_ROWS = 256

/** [logits] [1 + N, V] and hidden states [1 + N, D] after the final norm; they hold until the target's next call. */
class Verified(val logits: Rows, private val states: ByteBuffer, private val stateBytes: Int) {
    fun hidden(row: Int): ByteBuffer = slice(states, row * stateBytes, stateBytes)
}

/** The target as the loop sees it: tokens in, logits and hidden states out. Picks graphs, builds their inputs. */
class Target(val engine: Engine) {
    private val manifest = engine.manifest
    private val prefills = manifest.graphsOf(Role.PREFILL)
    private val verifies = manifest.graphsOf(Role.DECODE) + manifest.graphsOf(Role.VERIFY)
    private val widest = (prefills + verifies).maxOf { it.width }
    private val ring = manifest.kv.mapNotNull { it.slots }.minOrNull() ?: manifest.contextLength
    private val embedders = mapOf("embeddings" to Role.EMBED, "per_layer_embeddings" to Role.EMBED_PER_LAYER)
        .mapNotNull { (input, role) -> manifest.graphsOf(role).firstOrNull()?.let { input to it } }
    private val inputs = HashMap<String, Map<String, ByteBuffer>>()
    /** Slices of it are all masks' rows. */
    private val steps = ByteArray(2 * manifest.contextLength) { if (it < manifest.contextLength) 1 else 0 }
    private val logitsRow = FloatArray(manifest.vocabSize)
    private val rows = object : LinkedHashMap<Int, Map<String, ByteBuffer>>() {
        override fun removeEldestEntry(eldest: Map.Entry<Int, Map<String, ByteBuffer>>) = size > REMEMBERED_ROWS
    }

    /** Embedding lookups, and how many of them ran the embedder: the others were remembered rows. */
    var lookups = 0
        private set
    var lookupsRun = 0
        private set

    /** An empty sequence. */
    fun newCache() = Cache(engine.newCache(), manifest.contextLength)

    /** Goes back to [length] slots, or to none where a ring no longer holds what a token there looks back at. */
    fun rewind(cache: Cache, length: Int) {
        if (cache.written <= ring || length >= cache.written - widest) cache.truncate(length) else cache.clear()
    }

    /** The most drafts that can be verified now: a graph writes its whole width, never past the cache. */
    fun longestDraft(cache: Cache): Int = (verifies.filter { it.width <= cache.room }.maxOfOrNull { it.width } ?: 0) - 1

    /** Commits K/V of [tokens]; gives nothing back. */
    fun prefill(cache: Cache, tokens: List<Int>) {
        var left = tokens
        while (left.isNotEmpty()) {
            // The narrowest graph that takes all that is left, else the widest; always one that fits the cache.
            val fitting = (listOf(verifies.first()) + prefills).filter { it.width <= cache.room }
            val graph = fitting.find { it.width >= left.size } ?: fitting.last()
            val chunk = left.take(graph.width)
            run(graph, cache, chunk)
            cache.advance(chunk.size)
            left = left.drop(chunk.size)
        }
    }

    /** Runs the pending token and the proposed ones; commits nothing. */
    fun verify(cache: Cache, last: Int, proposal: Proposal): Verified {
        val tokens = listOf(last) + proposal.tokens
        val graph = verifies.first { it.width >= tokens.size }
        val outputs = run(graph, cache, tokens)
        return Verified(Rows { floats(outputs.getValue("logits"), it, logitsRow) }, outputs.getValue("activations"),
            graph.output("activations").bytes / graph.width)
    }

    /** The scaled embedding, [1, 1, D]. */
    fun embed(token: Int): ByteBuffer = embedded(token).getValue("embeddings").duplicate().order(ByteOrder.nativeOrder())

    /** Fills `input_pos` int32 [T] and `mask` bool [1, 1, T, context]: each position sees itself and what came before. */
    fun place(start: Int, inputs: Map<String, ByteBuffer>) {
        val positions = inputs.getValue("input_pos").asIntBuffer()
        val mask = inputs.getValue("mask").duplicate()
        for (position in start until start + positions.capacity()) {
            positions.put(position)
            mask.put(steps, manifest.contextLength - 1 - position, manifest.contextLength)
        }
    }

    /** Zeroed inputs of a graph, kept for all of its calls. */
    fun inputsOf(graph: GraphSpec): Map<String, ByteBuffer> =
        inputs.getOrPut(graph.name) { graph.inputs.filter { !it.isKV }.associate { it.name to it.allocate() } }

    /** Pads to the graph's width; padding lies beyond what will be committed, and nothing real sees it. */
    private fun run(graph: GraphSpec, cache: Cache, tokens: List<Int>): Map<String, ByteBuffer> {
        cache.writes(graph.width)
        val given = inputsOf(graph)
        for (index in 0 until graph.width) {
            for ((name, row) in embedded(tokens.getOrElse(index) { 0 })) {
                put(given.getValue(name), index * row.capacity(), row)
            }
        }
        place(cache.length, given)
        return engine.run(graph.name, given, cache.handle)
    }

    /** Rows of the last tokens are remembered: an embedding is a pure function of its token. */
    private fun embedded(token: Int): Map<String, ByteBuffer> {
        lookups++
        return rows.getOrPut(token) { lookUp(token) }
    }

    private fun lookUp(token: Int): Map<String, ByteBuffer> {
        lookupsRun++
        return embedders.associate { (input, graph) ->
            val given = inputsOf(graph)
            given.getValue("token_ids").asIntBuffer().put(0, token)
            val row = graph.output("embeddings").allocate()
            put(row, 0, engine.run(graph.name, given).getValue("embeddings"))
            input to row
        }
    }
}

/** Copies the whole of [from] to byte [at] of [into]. */
fun put(into: ByteBuffer, at: Int, from: ByteBuffer) {
    val target = into.duplicate()
    target.position(at)
    target.put(from.duplicate().apply { clear() })
}

/** [size] bytes from [at]. */
fun slice(buffer: ByteBuffer, at: Int, size: Int): ByteBuffer {
    val part = buffer.duplicate()
    part.clear()
    part.position(at)
    part.limit(at + size)
    return part.slice().order(ByteOrder.nativeOrder())
}

/** Row [index] of float32 [*, into.size], copied to [into]. */
fun floats(buffer: ByteBuffer, index: Int, into: FloatArray): FloatArray {
    slice(buffer, index * into.size * Float.SIZE_BYTES, into.size * Float.SIZE_BYTES).asFloatBuffer().get(into)
    return into
}
