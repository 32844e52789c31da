package pocketdraft.engines

import java.lang.ref.PhantomReference
import java.lang.ref.Reference
import java.lang.ref.ReferenceQueue

private const val COLLECTION_MS = 50L

/** One sequence's K/V, as the loop holds it. */
internal class Sequence<KV>(val kv: KV)

/**
 * Native K/V by sequence. What no [Sequence] refers to any more serves the next one, so that a chat of many sequences
 * takes the memory of those that live at a time.
 */
internal class Sequences<KV>(private val create: () -> KV, private val renew: (KV) -> Unit, private val free: (KV) -> Unit) {
    private val dropped = ReferenceQueue<Sequence<KV>>()
    private val owned = HashMap<Reference<*>, KV>()

    fun next(): Sequence<KV> {
        val kv = idle()?.also(renew) ?: create()
        return Sequence(kv).also { owned[PhantomReference(it, dropped)] = kv }
    }

    /** Asks the collector, which sees small objects only and would let K/V pile up behind them. */
    private fun idle(): KV? {
        if (owned.isEmpty()) return null
        val reference = dropped.poll() ?: run {
            System.gc()
            dropped.remove(COLLECTION_MS)
        }
        return reference?.let(owned::remove)
    }

    fun close() {
        owned.values.forEach(free)
        owned.clear()
    }
}
