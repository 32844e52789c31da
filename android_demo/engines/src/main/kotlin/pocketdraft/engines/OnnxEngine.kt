package pocketdraft.engines

import java.io.File
import java.nio.ByteBuffer
import pocketdraft.core.DType
import pocketdraft.core.GraphSpec
import pocketdraft.core.Manifest
import pocketdraft.core.PocketdraftError
import pocketdraft.core.TensorSpec

/** ONNX Runtime's C API; see `onnx_jni.c`. Results are native addresses; a failure is a RuntimeException. */
internal object ONNXNative {
    external fun environment(): Long
    external fun closeEnvironment(environment: Long)
    external fun session(environment: Long, path: String, threads: Int): Long
    external fun closeSession(session: Long)
    external fun value(shape: LongArray, type: Int): Long
    external fun memory(value: Long, size: Long): ByteBuffer
    external fun closeValue(value: Long)
    external fun address(buffer: ByteBuffer): Long
    external fun run(
        session: Long,
        inputNames: LongArray,
        inputs: LongArray,
        outputNames: LongArray,
        outputs: LongArray,
    )
}

private const val PRESENT = "present." // before the name of K/V that a graph gives back

/** ONNX Runtime on the CPU: one session a family of graphs, whatever the width. */
internal class ONNXRuntime(manifest: Manifest, threads: Int) : TensorRuntime {
    /** A graph's names as C strings. */
    private class Names(graph: GraphSpec) {
        val inputs = CStrings(graph.inputs.map { it.name })
        val outputs = CStrings(graph.outputs.map { if (it.isKV) PRESENT + it.name else it.name })
    }

    private val environment = native({ "ONNX Runtime does not start: $it; install the app again." }) {
        ONNXNative.environment()
    }
    private val sessions = HashMap<String, Long>()
    private val names = HashMap<String, Names>()

    init {
        try {
            for (family in manifest.graphs.map { it.family }.distinct()) {
                val path = File(manifest.folder, "$family.onnx").path
                sessions[family] = native({ "ONNX Runtime cannot open $path: $it; export again." }) {
                    ONNXNative.session(environment, path, threads)
                }
            }
        } catch (error: Exception) {
            close()
            throw error
        }
    }

    override fun order(graph: GraphSpec) = graph.inputs.map { it.name } to graph.outputs.map { it.name }

    override fun create(graph: GraphSpec, spec: TensorSpec, output: Boolean): Long {
        val shape = LongArray(spec.shape.size) { spec.shape[it].toLong() }
        val type = when (spec.dtype) {
            DType.FLOAT32 -> 1
            DType.INT8 -> 3
            DType.INT32 -> 6
            DType.BOOL -> 9
            DType.FLOAT16 -> 10
        }
        return native({ "ONNX Runtime makes no tensor for ${spec.name}: $it; close other apps and try again." }) {
            ONNXNative.value(shape, type).also { zero(it, spec) }
        }
    }

    override fun memory(tensor: Long, spec: TensorSpec): ByteBuffer = ONNXNative.memory(tensor, spec.bytes.toLong())

    override fun zero(tensor: Long, spec: TensorSpec) {
        val memory = memory(tensor, spec)
        while (memory.hasRemaining()) memory.put(ZEROS, 0, minOf(ZEROS.size, memory.remaining()))
    }

    override fun free(tensor: Long) = ONNXNative.closeValue(tensor)

    override fun run(graph: GraphSpec, inputs: LongArray, outputs: LongArray) {
        val names = names.getOrPut(graph.name) { Names(graph) }
        val session = sessions.getValue(graph.family)
        ONNXNative.run(session, names.inputs.addresses, inputs, names.outputs.addresses, outputs)
    }

    override fun close() {
        sessions.values.forEach(ONNXNative::closeSession)
        sessions.clear()
        ONNXNative.closeEnvironment(environment)
    }

    private companion object {
        val ZEROS = ByteArray(1 shl 16)
    }
}

/** Strings in native memory, each ended by a zero. */
private class CStrings(strings: List<String>) {
    private val memory: ByteBuffer = ByteBuffer.allocateDirect(strings.sumOf { it.encodeToByteArray().size + 1 })
    val addresses = LongArray(strings.size)

    init {
        val start = ONNXNative.address(memory)
        for ((index, string) in strings.withIndex()) {
            addresses[index] = start + memory.position()
            memory.put(string.encodeToByteArray()).put(0)
        }
    }
}
