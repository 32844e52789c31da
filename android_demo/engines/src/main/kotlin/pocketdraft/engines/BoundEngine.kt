package pocketdraft.engines

import java.nio.ByteBuffer
import java.nio.ByteOrder
import pocketdraft.core.Engine
import pocketdraft.core.GraphSpec
import pocketdraft.core.Manifest
import pocketdraft.core.Role
import pocketdraft.core.TensorSpec
import pocketdraft.core.moveRows

private const val SLOTS_NAME = "param_tensor" // a GPU's graphs take the slots that a call may touch

/**
 * A runtime that runs a graph on tensors made beforehand, each with memory of its own. One tensor may be input and
 * output of any graph that takes its shape. A tensor is known by its native address.
 */
internal interface TensorRuntime : AutoCloseable {
    /** A graph's inputs and outputs by name, in the order in which [run] takes them. */
    fun order(graph: GraphSpec): Pair<List<String>, List<String>>

    /** A zeroed tensor for the input (or output) [spec] of a graph. */
    fun create(graph: GraphSpec, spec: TensorSpec, output: Boolean): Long

    fun memory(tensor: Long, spec: TensorSpec): ByteBuffer

    fun zero(tensor: Long, spec: TensorSpec)

    fun free(tensor: Long)

    fun run(graph: GraphSpec, inputs: LongArray, outputs: LongArray)
}

/**
 * K/V lives in the runtime's own tensors, the target's and the drafters', each one input and output of every graph that
 * writes it, and an input of those that read it: the graphs update it in place, and a round copies none of it.
 */
internal class BoundEngine(override val manifest: Manifest, private val runtime: TensorRuntime) : Engine {
    /** [memory] is that of the target's, once a tree was verified. */
    private class KV(val tensors: Map<String, Long>, val bound: HashMap<String, Bound> = HashMap()) {
        val memory = HashMap<TensorSpec, ByteBuffer>()
    }

    /** A graph's inputs and outputs for one sequence. */
    private class Bound(val inputs: LongArray, val outputs: LongArray)

    private val graphs = manifest.graphs.associateBy { it.name }
    private val own = HashMap<String, OwnTensors>()
    private val noKV = KV(emptyMap()) // for the embedders
    private val sequences = Sequences(
        create = { KV(manifest.kvTensors.mapValues { (_, it) -> runtime.create(it.second, it.first, output = false) }) },
        renew = { kv -> manifest.kvTensors.forEach { (name, it) -> runtime.zero(kv.tensors.getValue(name), it.first) } },
        free = { kv -> kv.tensors.values.forEach(runtime::free) },
    )
    private var closed = false

    override fun newCache(): Any {
        manifest.checkOpen(closed)
        return sequences.next()
    }

    override fun run(graph: String, inputs: Map<String, ByteBuffer>, cache: Any?): Map<String, ByteBuffer> {
        manifest.checkOpen(closed)
        val spec = graphs.named(graph)
        val tensors = own.getOrPut(graph) { OwnTensors(runtime, spec) }
        tensors.write(inputs)
        val kv: KV = if (spec.inputs.any { it.isKV }) kvOf(cache, spec) else noKV
        val bound = kv.bound.getOrPut(graph) { bind(spec, tensors, kv) }
        native({ "$graph of ${manifest.folder} failed: $it; export the bundle again." }) {
            runtime.run(spec, bound.inputs, bound.outputs)
        }
        return tensors.read()
    }

    override val takesTrees get() = true

    override fun compact(cache: Any, sources: List<Int>, start: Int) {
        manifest.checkOpen(closed)
        val kv: KV = kvOf(cache, manifest.graphsOf(Role.DECODE).first())
        for (tensor in manifest.targetKV) {
            val memory = kv.memory.getOrPut(tensor) { runtime.memory(kv.tensors.getValue(tensor.name), tensor) }
            moveRows(memory, tensor, sources, start)
        }
    }

    override fun close() {
        if (closed) return
        closed = true
        sequences.close()
        own.values.forEach { it.free(runtime) }
        runtime.close()
    }

    private fun bind(graph: GraphSpec, tensors: OwnTensors, kv: KV): Bound {
        val (inputs, outputs) = runtime.order(graph)
        return Bound(
            LongArray(inputs.size) { tensors.inputs[inputs[it]] ?: kv.tensors.getValue(inputs[it]) },
            LongArray(outputs.size) { tensors.outputs[outputs[it]] ?: kv.tensors.getValue(outputs[it]) },
        )
    }
}

/** A graph's small tensors: all but K/V. */
private class OwnTensors(private val runtime: TensorRuntime, private val graph: GraphSpec) {
    val inputs = graph.inputs.filter { !it.isKV }.associate { it.name to runtime.create(graph, it, output = false) }
    val outputs = graph.outputs.filter { !it.isKV }.associate { it.name to runtime.create(graph, it, output = true) }
    private val writes = graph.inputs.filter { !it.isKV }.map { it to view(inputs.getValue(it.name), it) }
    private val reads = graph.outputs.filter { !it.isKV }.associate { it.name to view(outputs.getValue(it.name), it) }

    fun write(given: Map<String, ByteBuffer>) {
        for ((spec, memory) in writes) {
            memory.clear()
            if (spec.name == SLOTS_NAME) {
                writeSlots(memory, given.given(graph, graph.inputs.first { it.name == "input_pos" }).getInt(0))
            } else {
                memory.put(given.given(graph, spec).duplicate().apply { clear() })
            }
        }
    }

    fun read(): Map<String, ByteBuffer> {
        reads.values.forEach { it.clear() }
        return reads
    }

    fun free(runtime: TensorRuntime) = (inputs.values + outputs.values).forEach(runtime::free)

    /** The first slot, the end, the end again and four zeros, as LiteRT-LM writes them. */
    private fun writeSlots(memory: ByteBuffer, start: Int) {
        val end = start + graph.width
        memory.asIntBuffer().put(intArrayOf(start, end, end, 0, 0, 0, 0))
    }

    private fun view(tensor: Long, spec: TensorSpec) = runtime.memory(tensor, spec).order(ByteOrder.nativeOrder())
}
