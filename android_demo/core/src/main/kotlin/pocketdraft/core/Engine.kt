package pocketdraft.core

import java.nio.ByteBuffer
import java.nio.ByteOrder

/**
 * Runs the graphs of one bundle and owns their K/V buffers, which never pass through Kotlin.
 *
 * Tensors are direct buffers in native byte order, position 0, in the shape and dtype that the manifest gives.
 */
interface Engine : AutoCloseable {
    val manifest: Manifest

    /** Zeroed K/V of one sequence, in the backend's own memory; opaque to the caller. */
    fun newCache(): Any

    /**
     * Runs one graph. [inputs] and the result hold everything but K/V, by name.
     *
     * A target graph writes its K/V rows at `input_pos` into [cache]; a drafter's writes those that it owns. The
     * result's buffers are the engine's own: they hold what they hold until the graph's next run.
     */
    fun run(graph: String, inputs: Map<String, ByteBuffer>, cache: Any? = null): Map<String, ByteBuffer>
}

/** A zeroed tensor for an engine. */
fun TensorSpec.allocate(): ByteBuffer = ByteBuffer.allocateDirect(bytes).order(ByteOrder.nativeOrder())
