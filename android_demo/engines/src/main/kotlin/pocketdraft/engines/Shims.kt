package pocketdraft.engines

import ai.onnxruntime.OrtEnvironment

/** The native libraries of ours, by the runtime that each opens. */
enum class Shim(val library: String) {
    LITERT("pocketdraft_litert"),
    EXECUTORCH("pocketdraft_executorch");

    fun load(): String? = runCatching { System.loadLibrary(library) }.exceptionOrNull()?.message
}

fun onnxRuntimeVersion(): String = OrtEnvironment.getEnvironment().version
