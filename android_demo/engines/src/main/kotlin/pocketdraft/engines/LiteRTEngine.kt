package pocketdraft.engines

import java.io.File
import java.io.RandomAccessFile
import java.nio.ByteBuffer
import java.nio.channels.FileChannel.MapMode
import java.nio.file.Files
import pocketdraft.core.GraphSpec
import pocketdraft.core.Manifest
import pocketdraft.core.Part
import pocketdraft.core.PocketdraftError
import pocketdraft.core.TensorSpec

/** LiteRT's C API; see `litert_jni.c`. Results are native addresses; a failure is a RuntimeException. */
internal object LiteRTNative {
    external fun environment(): Long
    external fun closeEnvironment(environment: Long)
    external fun model(environment: Long, data: ByteBuffer): Long
    external fun closeModel(model: Long)
    external fun signatures(model: Long): Array<String>
    external fun tensors(model: Long, signature: Int, outputs: Boolean): Array<String>
    external fun compile(environment: Long, model: Long, threads: Int, cache: String): Long
    external fun closeCompiled(compiled: Long)
    external fun buffer(
        environment: Long,
        model: Long,
        compiled: Long,
        signature: Int,
        index: Int,
        output: Boolean,
    ): Long
    external fun memory(buffer: Long): ByteBuffer
    external fun clear(buffer: Long)
    external fun closeBuffer(buffer: Long)
    external fun run(compiled: Long, signature: Int, inputs: LongArray, outputs: LongArray)
}

/** LiteRT on the CPU, where a GPU's graphs run too. One compiled model a part, on the file's mapped bytes. */
internal class LiteRTRuntime(private val manifest: Manifest, threads: Int) : TensorRuntime {
    /** [data] must live as long as the model that was made of it. */
    private class Model(val data: ByteBuffer, val model: Long, val compiled: Long, val signatures: List<String>)

    private val environment = native({ "LiteRT does not start: $it; install the app again." }) {
        LiteRTNative.environment()
    }
    private val models = HashMap<String, Model>()

    init {
        // Weights that XNNPACK has packed are shared by all signatures of a part through a file, which is mapped at
        // once and whose name can go. It aborts on a full disk, so without room they stay in memory.
        val packed = Files.createTempDirectory("pocketdraft-").toFile()
        try {
            for ((name, part) in manifest.parts) {
                val cache = if (packed.usableSpace > 2 * part.size) File(packed, name).path else ":memory"
                models[name] = open(name, part, threads, cache)
            }
            manifest.graphs.forEach { signature(it) }
        } catch (error: Exception) {
            close()
            throw error
        } finally {
            packed.deleteRecursively()
        }
    }

    override fun order(graph: GraphSpec): Pair<List<String>, List<String>> {
        val names = listOf(false, true).map { LiteRTNative.tensors(part(graph).model, signature(graph), it).toList() }
        return names[0] to names[1]
    }

    override fun create(graph: GraphSpec, spec: TensorSpec, output: Boolean): Long {
        val part = part(graph)
        val index = order(graph).let { if (output) it.second else it.first }.indexOf(spec.name)
        if (index < 0) throw PocketdraftError("${graph.name} has no '${spec.name}', the manifest has; export again.")
        return native({ "LiteRT makes no ${spec.name} for ${graph.name}: $it; close other apps and try again." }) {
            LiteRTNative.buffer(environment, part.model, part.compiled, signature(graph), index, output)
        }
    }

    override fun memory(tensor: Long, spec: TensorSpec): ByteBuffer {
        val memory = LiteRTNative.memory(tensor)
        if (memory.capacity() != spec.bytes) {
            throw PocketdraftError(
                "${spec.name} has ${memory.capacity()} bytes, ${spec.bytes} by the manifest; export again.",
            )
        }
        return memory
    }

    override fun zero(tensor: Long, spec: TensorSpec) = LiteRTNative.clear(tensor)

    override fun free(tensor: Long) = LiteRTNative.closeBuffer(tensor)

    override fun run(graph: GraphSpec, inputs: LongArray, outputs: LongArray) =
        LiteRTNative.run(part(graph).compiled, signature(graph), inputs, outputs)

    override fun close() {
        for (model in models.values) {
            LiteRTNative.closeCompiled(model.compiled)
            LiteRTNative.closeModel(model.model)
        }
        models.clear()
        LiteRTNative.closeEnvironment(environment)
    }

    private fun part(graph: GraphSpec) = models.getValue(graph.part)

    private fun signature(graph: GraphSpec): Int {
        val index = part(graph).signatures.indexOf(graph.name)
        if (index < 0) {
            throw PocketdraftError("The ${graph.part} has no graph '${graph.name}', the manifest has; export again.")
        }
        return index
    }

    private fun open(name: String, part: Part, threads: Int, cache: String): Model {
        val file = File(manifest.folder, part.file)
        if (part.size > Int.MAX_VALUE) {
            throw PocketdraftError(
                "The $name has ${part.size} bytes, a mapping holds ${Int.MAX_VALUE}; export it with fewer bits.",
            )
        }
        if (part.offset + part.size > file.length()) {
            throw PocketdraftError(
                "$file ends at byte ${file.length()}, the $name at ${part.offset + part.size}; push the bundle again.",
            )
        }
        val data = RandomAccessFile(file, "r").use { it.channel.map(MapMode.READ_ONLY, part.offset, part.size) }
        return native({ "LiteRT cannot open the $name of $file: $it; export again." }) {
            val model = LiteRTNative.model(environment, data)
            try {
                val signatures = LiteRTNative.signatures(model).toList()
                Model(data, model, LiteRTNative.compile(environment, model, threads, cache), signatures)
            } catch (error: RuntimeException) {
                LiteRTNative.closeModel(model)
                throw error
            }
        }
    }
}
