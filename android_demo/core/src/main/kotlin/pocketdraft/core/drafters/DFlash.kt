package pocketdraft.core.drafters

import java.nio.ByteBuffer
import pocketdraft.core.Cache
import pocketdraft.core.Chain
import pocketdraft.core.Context
import pocketdraft.core.DrafterKind
import pocketdraft.core.EarlyStop
import pocketdraft.core.Prefilled
import pocketdraft.core.Proposal
import pocketdraft.core.Role
import pocketdraft.core.Sampler
import pocketdraft.core.Target
import pocketdraft.core.Verdict
import pocketdraft.core.Verified
import pocketdraft.core.fill
import pocketdraft.core.followingCalls
import pocketdraft.core.put

/**
 * DFlash (arXiv 2602.06036): a block of drafts in one pass, as a diffusion model fills in masked tokens.
 *
 * The drafter keeps K/V of the committed positions, made of the target's taps there, and reads them beside a block: the
 * pending token and masks, whose own K/V are scratch. Its hidden states go through the target's head.
 */
open class DFlashDrafter(
    protected val target: Target,
    private val cache: Cache,
    protected val sampler: Sampler,
    private val earlyStop: EarlyStop?,
) : Drafter {
    protected val spec = checkNotNull(target.engine.manifest.drafters.dflash)
    private val contexts = target.graphsOf(Role.DFLASH_CONTEXT)
    private val graph = target.graphsOf(Role.DFLASH_DRAFT).single()
    private val head = target.graphsOf(Role.HEAD).first { it.width == spec.block }
    private val inputs = target.inputsOf(graph)
    private val states = target.inputsOf(head)

    override fun restart(prefilled: List<Prefilled>) = prefilled.forEach { commit(it.start, checkNotNull(it.taps)) }

    override fun propose(context: Context, count: Int): Proposal {
        val outputs = block(context, count) ?: return Proposal.NOTHING
        val chain = Chain(context, sampler, earlyStop)
        for (row in 1..minOf(count, spec.block - 1)) {
            if (!chain.draft(target.logits(outputs, row))) break
        }
        return chain.proposal()
    }

    override fun observe(verdict: Verdict, verified: Verified) {
        val taps = checkNotNull(verified.taps)
        commit(cache.length - verdict.rows.size, verdict.rows.map { taps[it] })
    }

    /** What the head says, from row 1 on, at the masks; null where there is nothing to draft from, or no room for a block. */
    protected fun block(context: Context, count: Int): Map<String, ByteBuffer>? {
        val known = cache.followed(DrafterKind.DFLASH)
        val start = cache.length
        if (count < 1 || known.stop != start || known.isEmpty || cache.room < spec.block) return null
        val tokens = listOf(context.last) + List(spec.block - 1) { spec.maskToken }
        fill(inputs.getValue("embeddings"), tokens.map(target::embed))
        for (row in 0 until target.number(start, inputs)) target.see(inputs, row, known.start, start + spec.block)
        val hidden = target.engine.run(graph.name, inputs, cache.handle).getValue("activations")
        put(states.getValue("activations"), 0, hidden)
        return target.engine.run(head.name, states)
    }

    /** K/V of the positions from [start] on, of which [taps] are the target's states. */
    private fun commit(start: Int, taps: List<ByteBuffer>) {
        for (call in followingCalls(contexts, start, taps.size, cache.capacity)) {
            val inputs = target.inputsOf(call.graph)
            fill(inputs.getValue("taps"), taps.subList(call.from, call.from + call.real))
            target.number(start + call.from, inputs)
            target.engine.run(call.graph.name, inputs, cache.handle)
        }
        cache.follow(DrafterKind.DFLASH, start, start + taps.size)
    }
}
