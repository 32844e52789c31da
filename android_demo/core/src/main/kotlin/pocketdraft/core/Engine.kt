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

    /** Whether it has [compact]. An engine without it verifies chains only. */
    val takesTrees: Boolean get() = false

    /** Zeroed K/V of one sequence, in the backend's own memory; opaque to the caller. */
    fun newCache(): Any

    /**
     * Runs one graph. [inputs] and the result hold everything but K/V, by name.
     *
     * A target graph writes its K/V rows at `input_pos` into [cache]; a drafter's writes those that it owns. The
     * result's buffers are the engine's own: they hold what they hold until the graph's next run.
     */
    fun run(graph: String, inputs: Map<String, ByteBuffer>, cache: Any? = null): Map<String, ByteBuffer>

    /**
     * Moves the target's K/V rows of the slots [sources], ascending, to [start] and the slots after it, in every layer.
     *
     * Takes as long as those rows, whatever the cache holds. [start] comes before the first of [sources]. Slots are
     * counted as positions are: a ring takes them modulo its size.
     */
    fun compact(cache: Any, sources: List<Int>, start: Int): Unit = error("this engine cannot move K/V rows")
}

/** A zeroed tensor for an engine. */
fun TensorSpec.allocate(): ByteBuffer = ByteBuffer.allocateDirect(bytes).order(ByteOrder.nativeOrder())
