package pocketdraft.core

import java.io.File
import java.io.RandomAccessFile
import java.nio.ByteBuffer
import java.nio.channels.FileChannel
import java.util.concurrent.Callable
import java.util.concurrent.Executors

/** A graph's calls, in seconds, with [filled] slots of K/V committed. */
class GraphTiming(val graph: GraphSpec, val filled: Int, val seconds: List<Double>)

/** Times each graph as the loop calls it: inputs copied in, outputs copied out. */
class GraphTimer(private val target: Target, private val runs: Int = 20) {
    private val engine = target.engine
    private val manifest = engine.manifest

    /** All graphs, each where it is used: embedders and prefills in an empty context, the others in a text's middle. */
    fun time(stopped: () -> Boolean): List<GraphTiming> {
        val cache = engine.newCache()
        val timings = ArrayList<GraphTiming>()
        for (graph in manifest.graphs) {
            if (stopped()) return timings
            timings += time(graph, if (graph.role in EMPTY) 0 else minOf(TEXT, manifest.contextLength - graph.width), cache)
        }
        return timings
    }

    private fun time(graph: GraphSpec, filled: Int, cache: Any): GraphTiming {
        val inputs = target.inputsOf(graph)
        val feeds = graph.inputs.filter { !it.isKV && it.name !in setOf("input_pos", "mask", "token_ids") }.map { it to it.allocate() }
        val outputs = graph.outputs.filter { !it.isKV }.map { it to it.allocate() }
        val seconds = List(runs + WARM_UP) { // padding's tokens and hidden states: what they are costs nothing more
            val start = System.nanoTime()
            feeds.forEach { (tensor, feed) -> put(inputs.getValue(tensor.name), 0, feed) }
            if ("input_pos" in inputs) target.place(maxOf(0, filled - if (graph.role == Role.DRAFT) 1 else 0), inputs)
            val made = engine.run(graph.name, inputs, cache.takeIf { "input_pos" in inputs })
            outputs.forEach { (tensor, output) -> put(output, 0, made.getValue(tensor.name)) }
            (System.nanoTime() - start) / 1e9
        }
        return GraphTiming(graph, filled, seconds.drop(WARM_UP))
    }

    private companion object {
        val EMPTY = setOf(
            Role.EMBED,
            Role.EMBED_PER_LAYER,
            Role.PREFILL,
            Role.MODEL_EMBED,
            Role.MODEL_EMBED_PER_LAYER,
            Role.MODEL_PREFILL,
        )
        const val WARM_UP = 3
        const val TEXT = 128 // tokens: what a prompt of the standard set and half of its answer have
    }
}

/**
 * Bytes/s of one pass over the bundle's weights, with [threads] threads: what decoding cannot be faster than.
 *
 * Null for a bundle so small that the processor's caches hold it.
 */
fun memoryBandwidth(manifest: Manifest, threads: Int): Double? {
    val file = manifest.files.keys.map { File(manifest.folder, it) }.maxByOrNull { it.length() } ?: return null
    if (file.length() < LARGER_THAN_CACHES) return null
    val count = if (threads > 0) threads else Runtime.getRuntime().availableProcessors()
    val pool = Executors.newFixedThreadPool(count)
    try {
        RandomAccessFile(file, "r").use { opened ->
            val size = minOf(opened.length(), 1L shl 30)
            val share = size / count
            val shares = List(count) { opened.channel.map(FileChannel.MapMode.READ_ONLY, it * share, share) }
            val passes = List(3) { // the first one reads the file in
                val start = System.nanoTime()
                pool.invokeAll(shares.map { part -> Callable { readThrough(part) } }).forEach { it.get() }
                (System.nanoTime() - start) / 1e9
            }
            return share * count / passes.drop(1).min()
        }
    } finally {
        pool.shutdown()
    }
}

private const val LARGER_THAN_CACHES = 64L shl 20

private fun readThrough(part: ByteBuffer) {
    val piece = ByteArray(256 shl 10) // stays in the cache: what is measured is the reading
    val from = part.duplicate()
    while (from.hasRemaining()) from.get(piece, 0, minOf(piece.size, from.remaining()))
}
