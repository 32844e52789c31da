package pocketdraft.core

import java.nio.ByteBuffer
import java.nio.ByteOrder

private const val REMEMBERED_ROWS = 256

/**
 * [logits] [1 + N, V] and, by row, [hidden] states [D] after the final norm and [taps] [K], hidden states of layers
 * before, where a drafter wants them. They hold until the target's next call. [width] is the graph's.
 */
class Verified(val logits: Rows, val hidden: List<ByteBuffer>, val width: Int, val taps: List<ByteBuffer>?)

/** What a prefill of the positions from [start] on gave besides K/V, where the bundle's drafters want it. */
class Prefilled(val start: Int, val hidden: List<ByteBuffer>?, val taps: List<ByteBuffer>?)

/**
 * The target as the loop sees it: tokens in, logits and hidden states out. Picks graphs, builds their inputs.
 *
 * [graphs] are the bundle's unless another model is to be seen so. [ring] is how many slots the smallest K/V ring has.
 */
class Target(
    val engine: Engine,
    private val graphs: List<GraphSpec> = engine.manifest.graphs,
    ring: Int? = engine.manifest.kv.mapNotNull { it.slots }.minOrNull(),
) {
    private val manifest = engine.manifest
    private val prefills = graphsOf(Role.PREFILL)
    private val verifies = graphsOf(Role.DECODE) + graphsOf(Role.VERIFY)
    private val early = graphsOf(Role.EXIT_DRAFT).singleOrNull()
    private val lateVerifies = graphsOf(Role.EXIT_VERIFY)
    private val recurrent = verifies.first().inputs.any { it.isState }
    private val takesBack = if (recurrent) checkNotNull(manifest.takesBack) else null
    private val readers = if (recurrent) (verifies + prefills).sortedBy { it.width } else listOf(verifies.first()) + prefills
    private val padding = takesBack ?: manifest.contextLength // the most that a prefill may have
    private val ring = takesBack ?: ring ?: manifest.contextLength
    private val widest = takesBack ?: (prefills + verifies).maxOf { it.width }
    private val embedders = mapOf("embeddings" to Role.EMBED, "per_layer_embeddings" to Role.EMBED_PER_LAYER)
        .mapNotNull { (input, role) -> graphsOf(role).firstOrNull()?.let { input to it } }
    private val inputs = HashMap<String, Map<String, ByteBuffer>>()
    /** Slices of it are all masks' rows. */
    private val steps = ByteArray(2 * manifest.contextLength) { if (it < manifest.contextLength) 1 else 0 }
    private val logitsRow = FloatArray(manifest.vocabSize)
    private val rows = object : LinkedHashMap<Int, Map<String, ByteBuffer>>() {
        override fun removeEldestEntry(eldest: Map.Entry<Int, Map<String, ByteBuffer>>) = size > REMEMBERED_ROWS
    }

    /** What rounds of all its sequences take. */
    val times = Times(verifies.map { it.width })

    /** Embedding lookups, and how many of them ran the embedder: the others were remembered rows. */
    var lookups = 0
        private set
    var lookupsRun = 0
        private set

    /** The graphs of a role, narrowest first. */
    fun graphsOf(role: Role): List<GraphSpec> = graphs.of(role)

    /** An empty sequence. */
    fun newCache() = Cache(engine.newCache(), manifest.contextLength)

    /** Whether a proposal may branch: a recurrent layer reads its tokens one after the other. */
    val takesTrees get() = engine.takesTrees && !recurrent

    /**
     * Goes back to [length] slots, or to none where a ring no longer holds what a token there looks back at, or recurrent
     * layers cannot take so much back.
     */
    fun rewind(cache: Cache, length: Int) {
        if (cache.written <= ring || length >= cache.written - widest) cache.truncate(length) else cache.clear()
    }

    /** The most drafts that can be verified now: a graph writes its whole width, never past the cache. */
    fun longestDraft(cache: Cache): Int = (verifies.filter { it.width <= cache.room }.maxOfOrNull { it.width } ?: 0) - 1

    /** How many nodes the graph that verifies [nodes] has rows for: the others would be padding. */
    fun freeNodes(nodes: Int): Int = verifies.first { it.width > nodes }.width - 1

    /** Commits K/V of [tokens], call by call. */
    fun prefill(cache: Cache, tokens: List<Int>): List<Prefilled> {
        val found = ArrayList<Prefilled>()
        var left = tokens
        while (left.isNotEmpty()) {
            // The narrowest graph that takes all that is left, else the widest; always one that fits the cache, and has
            // no more padding than recurrent layers can take back.
            val fitting = readers.filter { it.width <= cache.room && it.width - left.size <= padding }
            val graph = fitting.find { it.width >= left.size } ?: fitting.last()
            val chunk = left.take(graph.width)
            val outputs = run(graph, cache, chunk)
            val (hidden, taps) = listOf("activations", "taps").map { rows(outputs, it, graph, chunk.size)?.map(::copied) }
            found += Prefilled(cache.length, hidden, taps)
            cache.advance(chunk.size)
            left = left.drop(chunk.size)
        }
        return found
    }

    /**
     * Runs the pending token and the proposed ones; commits nothing. Throws [PocketdraftError] for a tree that the engine
     * does not take, or that is deeper than [DEEPEST].
     */
    fun verify(cache: Cache, last: Int, proposal: Proposal): Verified {
        if (!proposal.isChain) checkTree(proposal)
        val tokens = listOf(last) + proposal.tokens
        val graph = (if (proposal.states == null) verifies else lateVerifies).first { it.width >= tokens.size }
        val outputs = run(graph, cache, tokens, proposal)
        val hidden = checkNotNull(rows(outputs, "activations", graph, tokens.size))
        return Verified(Rows { logits(outputs, it) }, hidden, graph.width, rows(outputs, "taps", graph, tokens.size))
    }

    /**
     * The state [1, 1, D] of a token after the layers that draft, [ahead] slots after the committed ones, where those
     * layers' K/V is written; a verify of these states runs the other layers only.
     */
    fun draftEarly(cache: Cache, token: Int, ahead: Int): ByteBuffer {
        val graph = checkNotNull(early) { "the bundle has no early exit" }
        cache.writes(ahead + 1)
        val given = inputsOf(graph)
        embedded(token).forEach { (name, row) -> put(given.getValue(name), 0, row) }
        place(cache.length + ahead, given)
        return copied(engine.run(graph.name, given, cache.handle).getValue("exit_states"))
    }

    /**
     * Commits the [rows] of the last verify that lie on the accepted path, row 0 being the pending token's.
     *
     * From the first gap on, which only a tree has, their K/V is moved to where a chain would have it.
     */
    fun keep(cache: Cache, rows: List<Int>) {
        val start = rows.indices.find { rows[it] != it } ?: rows.size
        if (start < rows.size) engine.compact(cache.handle, rows.drop(start).map { cache.length + it }, cache.length + start)
        cache.keep(rows.indices.toList())
    }

    /** Row [row] of a graph's logits, [V]. It holds until the next call. */
    fun logits(outputs: Map<String, ByteBuffer>, row: Int = 0): FloatArray = floats(outputs.getValue("logits"), row, logitsRow)

    /** The scaled embedding, [1, 1, D]. */
    fun embed(token: Int): ByteBuffer = embedded(token).getValue("embeddings").duplicate().order(ByteOrder.nativeOrder())

    /**
     * As [number], and where there is a `mask` bool [1, 1, T, context]: each position sees itself and what came before
     * it, from [first] on.
     */
    fun place(start: Int, inputs: Map<String, ByteBuffer>, first: Int = 0) {
        val count = number(start, inputs)
        if ("mask" in inputs) for (row in 0 until count) see(inputs, row, first, start + row + 1)
    }

    /**
     * As [place] for a tree whose pending token lies in slot [start]: node i lies in slot [start] + 1 + i, at the position
     * of its depth, and sees what is committed, its ancestors and itself. Nobody sees padding.
     */
    private fun place(proposal: Proposal, start: Int, inputs: Map<String, ByteBuffer>) {
        val positions = inputs.getValue("input_pos").asIntBuffer()
        val mask = inputs.getValue("mask")
        for (row in 0 until positions.capacity()) {
            positions.put(start + proposal.depths.getOrElse(row - 1) { 0 })
            see(inputs, row, 0, start)
            for (seen in proposal.path(row)) mask.put(row * manifest.contextLength + start + seen, 1)
        }
    }

    /** Fills `input_pos` int32 [T] with the positions from [start] on, and gives T. */
    fun number(start: Int, inputs: Map<String, ByteBuffer>): Int {
        val positions = inputs.getValue("input_pos").asIntBuffer()
        for (row in 0 until positions.capacity()) positions.put(start + row)
        return positions.capacity()
    }

    /** Row [row] of `mask` sees the slots from [first] to before [end]. */
    fun see(inputs: Map<String, ByteBuffer>, row: Int, first: Int, end: Int) {
        val mask = inputs.getValue("mask").duplicate()
        val context = manifest.contextLength
        mask.position(row * context)
        mask.put(steps, context, first) // none of these
        mask.put(steps, context - (end - first), context - first)
    }

    /** Zeroed inputs of a graph, kept for all of its calls. */
    fun inputsOf(graph: GraphSpec): Map<String, ByteBuffer> =
        inputs.getOrPut(graph.name) { graph.inputs.filter { !it.isKV }.associate { it.name to it.allocate() } }

    /**
     * Pads to the graph's width; padding lies beyond what will be committed, and nothing real sees it. Where the first
     * layers have run on the [proposal], a graph that takes their states may want no embeddings.
     */
    private fun run(
        graph: GraphSpec,
        cache: Cache,
        tokens: List<Int>,
        proposal: Proposal = Proposal.NOTHING,
    ): Map<String, ByteBuffer> {
        cache.writes(graph.width)
        val given = inputsOf(graph)
        for (index in 0 until graph.width) {
            for ((name, row) in embedded(tokens.getOrElse(index) { 0 })) {
                given[name]?.let { put(it, index * row.capacity(), row) }
            }
        }
        proposal.states?.let { states ->
            fill(given.getValue("exit_states"), List(graph.width) { states.getOrElse(it) { states.first() } })
        }
        if (proposal.isChain) place(cache.length, given) else place(proposal, cache.length, given)
        return engine.run(graph.name, given, cache.handle)
    }

    private fun checkTree(tree: Proposal) {
        if (!takesTrees) {
            throw PocketdraftError("The proposal is a tree of ${tree.size}, this engine cannot move K/V rows; propose a chain.")
        }
        val deepest = tree.depths.max()
        if (deepest > DEEPEST) {
            throw PocketdraftError(
                "The tree is $deepest deep, $DEEPEST is the most that every sliding window has room for; " +
                    "propose a shallower one, or a chain.",
            )
        }
    }

    /** Rows of the last tokens are remembered: an embedding is a pure function of its token. */
    private fun embedded(token: Int): Map<String, ByteBuffer> {
        lookups++
        return rows.getOrPut(token) { lookUp(token) }
    }

    /** The first [count] rows of an output, or null where the graph has no such. */
    private fun rows(outputs: Map<String, ByteBuffer>, name: String, graph: GraphSpec, count: Int): List<ByteBuffer>? =
        outputs[name]?.let { output ->
            val size = output.capacity() / graph.width
            List(count) { slice(output, it * size, size) }
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

/** With memory of its own. */
fun copied(buffer: ByteBuffer): ByteBuffer =
    ByteBuffer.allocateDirect(buffer.capacity()).order(ByteOrder.nativeOrder()).also { put(it, 0, buffer) }

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
