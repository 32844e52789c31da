package pocketdraft.engines

import java.io.File
import java.nio.ByteBuffer
import pocketdraft.core.Backend
import pocketdraft.core.Engine
import pocketdraft.core.GraphSpec
import pocketdraft.core.Manifest
import pocketdraft.core.PocketdraftError
import pocketdraft.core.TensorSpec

/** On a desk: the folder of the shims, `libpocketdraft_RUNTIME.so`. Android finds them in the app. */
const val LIBRARIES_PROPERTY = "pocketdraft.libraries"

/**
 * Opens a bundle with the engine of its backend; none of them is thread-safe.
 *
 * [threads] 0 leaves the number to the backend. [libraries] is the folder of the shims, null where the system knows it.
 * Throws [PocketdraftError] for a backend that this build lacks, and for a file that its runtime does not take.
 */
fun openEngine(
    manifest: Manifest,
    threads: Int = 0,
    libraries: File? = System.getProperty(LIBRARIES_PROPERTY)?.let(::File),
): Engine {
    load(manifest.backend, libraries)
    return when (manifest.backend) {
        Backend.LITERT -> BoundEngine(manifest, LiteRTRuntime(manifest, threads))
        Backend.ONNX -> BoundEngine(manifest, ONNXRuntime(manifest, threads))
        Backend.EXECUTORCH -> ExecuTorchEngine(manifest, threads)
    }
}

/** Loads a backend's shim, and with it the runtime. Throws [PocketdraftError] if this build has none. */
internal fun load(backend: Backend, libraries: File?) {
    val name = "pocketdraft_${backend.name.lowercase()}"
    try {
        if (libraries == null) System.loadLibrary(name) else System.load(File(libraries, "lib$name.so").absolutePath)
    } catch (error: UnsatisfiedLinkError) {
        throw PocketdraftError(
            "This build cannot run ${backend.name.lowercase()} bundles: it has no lib$name.so (${error.message}); " +
                "build it with that runtime, or push a bundle of another backend.",
            error,
        )
    }
}

/** Calls native code, whose exceptions become the error that [sentence] makes of their message. */
internal inline fun <T> native(sentence: (String) -> String, call: () -> T): T = try {
    call()
} catch (error: RuntimeException) {
    throw PocketdraftError(sentence(error.message ?: "no reason given"), error)
}

/** Throws [PocketdraftError] if an engine of the bundle is used after it was [closed]. */
internal fun Manifest.checkOpen(closed: Boolean) {
    if (closed) throw PocketdraftError("The engine of $folder is closed; open the bundle again.")
}

/** A graph of the bundle. Throws [PocketdraftError] if there is none of that name. */
internal fun <G> Map<String, G>.named(graph: String): G =
    this[graph] ?: throw PocketdraftError("The bundle has no graph '$graph', run one of ${keys.joinToString()}.")

/** What [newCache][pocketdraft.core.Engine.newCache] gave. Throws [PocketdraftError] if it is something else. */
internal fun <KV> kvOf(cache: Any?, graph: GraphSpec): KV {
    @Suppress("UNCHECKED_CAST")
    return (cache as? Sequence<KV>)?.kv
        ?: throw PocketdraftError("${graph.name} reads K/V and was run with no cache; give it one of newCache().")
}

/** The buffer given for an input. Throws [PocketdraftError] if it is missing, of another size or not direct. */
internal fun Map<String, ByteBuffer>.given(graph: GraphSpec, tensor: TensorSpec): ByteBuffer {
    val buffer = this[tensor.name]
        ?: throw PocketdraftError("${graph.name} was run without '${tensor.name}'; give all of its inputs but K/V.")
    if (buffer.capacity() != tensor.bytes || !buffer.isDirect) {
        throw PocketdraftError(
            "${tensor.name} of ${graph.name} was given as ${buffer.capacity()} bytes, it is a direct buffer of " +
                "${tensor.bytes}; allocate it by the manifest.",
        )
    }
    return buffer
}
