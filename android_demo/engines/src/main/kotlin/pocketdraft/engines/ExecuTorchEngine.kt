package pocketdraft.engines

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import pocketdraft.core.DType
import pocketdraft.core.Engine
import pocketdraft.core.GraphSpec
import pocketdraft.core.Manifest
import pocketdraft.core.Role
import pocketdraft.core.TensorSpec
import pocketdraft.core.allocate

/** ExecuTorch's C++ runtime; see `executorch_jni.cpp`. A failure is a RuntimeException. */
internal object ExecuTorchNative {
    external fun threads(count: Int)
    external fun program(path: String): Long
    external fun closeProgram(program: Long)
    external fun load(program: Long, method: String)
    external fun run(
        program: Long,
        method: String,
        inputs: Array<ByteBuffer>,
        types: IntArray,
        ranks: IntArray,
        shapes: IntArray,
        outputs: Array<ByteBuffer>,
    )
}

/**
 * ExecuTorch's runtime. K/V are buffers of the loaded program, which all of its methods share: a sequence has a program
 * of its own. A program that no sequence needs any more serves the next one as it is: what lies beyond a sequence's
 * committed length is never seen. The number of threads is one for the whole process.
 */
internal class ExecuTorchEngine(override val manifest: Manifest, threads: Int) : Engine {
    private val graphs = manifest.graphs.associate { it.name to Method(it) }
    private val path = File(manifest.folder, manifest.parts.getValue("target").file).path
    private val sequences = Sequences(create = ::open, renew = {}, free = ExecuTorchNative::closeProgram)
    private val embedders: Sequence<Long>
    private val movable = manifest.graphsOf(Role.VERIFY).last().width - 1
    private var closed = false

    init {
        if (threads > 0) ExecuTorchNative.threads(threads)
        embedders = sequences.next()
    }

    override fun newCache(): Any {
        manifest.checkOpen(closed)
        return sequences.next()
    }

    override fun run(graph: String, inputs: Map<String, ByteBuffer>, cache: Any?): Map<String, ByteBuffer> {
        manifest.checkOpen(closed)
        val method = graphs.named(graph)
        val given = Array(method.given.size) { inputs.given(method.spec, method.given[it]) }
        native({ "$graph of $path failed: $it; export the bundle again." }) {
            ExecuTorchNative.run(
                program(method, cache),
                method.spec.family,
                given,
                method.types,
                method.ranks,
                method.shapes,
                method.made,
            )
        }
        return method.outputs
    }

    override val takesTrees get() = true

    override fun compact(cache: Any, sources: List<Int>, start: Int) {
        manifest.checkOpen(closed)
        // By a method of the program, which takes a fixed number: a row that is moved twice to one place is moved once.
        val pairs = sources.mapIndexed { index, source -> source to start + index }
        val padded = pairs + List(movable - pairs.size) { pairs.first() }
        val given = listOf(padded.map { it.first }, padded.map { it.second }).map(::longs).toTypedArray()
        val program: Long = kvOf(cache, manifest.graphsOf(Role.DECODE).first())
        val types = intArrayOf(INT64, INT64)
        native({ "$KV_MOVER of $path failed: $it; export the bundle again." }) {
            ExecuTorchNative.run(program, KV_MOVER, given, types, intArrayOf(1, 1), intArrayOf(movable, movable), emptyArray())
        }
    }

    override fun close() {
        closed = true
        sequences.close()
    }

    private fun program(method: Method, cache: Any?): Long =
        if (method.spec.inputs.any { it.isKV }) kvOf(cache, method.spec) else embedders.kv

    private fun longs(values: List<Int>): ByteBuffer = ByteBuffer.allocateDirect(8 * values.size).order(ByteOrder.nativeOrder())
        .also { buffer -> values.forEach { buffer.putLong(it.toLong()) } }

    private fun open(): Long = native({ "ExecuTorch cannot open $path: $it; export again." }) {
        val program = ExecuTorchNative.program(path)
        try {
            manifest.graphs.map { it.family }.distinct().forEach { ExecuTorchNative.load(program, it) }
        } catch (error: RuntimeException) {
            ExecuTorchNative.closeProgram(program)
            throw error
        }
        program
    }
}

private const val KV_MOVER = "move_kv" // sources, destinations, int64 [N]
private const val INT64 = 4 // ExecuTorch's number for it

/** A graph as the shim takes it, with the memory of its outputs. */
private class Method(val spec: GraphSpec) {
    val given: List<TensorSpec> = spec.inputs.filter { !it.isKV }
    val types = IntArray(given.size) { code(given[it].dtype) }
    val ranks = IntArray(given.size) { given[it].shape.size }
    val shapes: IntArray = given.flatMap { it.shape }.toIntArray()
    val outputs: Map<String, ByteBuffer> = spec.outputs.filter { !it.isKV }.associate { it.name to it.allocate() }
    val made: Array<ByteBuffer> = outputs.values.toTypedArray()

    /** ExecuTorch's number for a type. */
    private fun code(dtype: DType) = when (dtype) {
        DType.INT8 -> 1
        DType.INT32 -> 3
        DType.FLOAT16 -> 5
        DType.FLOAT32 -> 6
        DType.BOOL -> 11
    }
}
