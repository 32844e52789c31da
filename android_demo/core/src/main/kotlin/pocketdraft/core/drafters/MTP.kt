package pocketdraft.core.drafters

import java.nio.ByteBuffer
import pocketdraft.core.Cache
import pocketdraft.core.Chain
import pocketdraft.core.Context
import pocketdraft.core.EarlyStop
import pocketdraft.core.Prefilled
import pocketdraft.core.Proposal
import pocketdraft.core.Role
import pocketdraft.core.Sampler
import pocketdraft.core.Target
import pocketdraft.core.Verdict
import pocketdraft.core.Verified
import pocketdraft.core.allocate
import pocketdraft.core.fill
import pocketdraft.core.put

/**
 * Gemma 4's multi-token-prediction drafter: without a cache of its own, reading the target's K/V.
 *
 * A step takes the embedding of the last token beside a hidden state: the target's own for the first draft, the
 * drafter's projection for the others. Position and visible K/V are the committed context's throughout a draft.
 */
open class MTPDrafter(
    protected val target: Target,
    private val cache: Cache,
    private val sampler: Sampler,
    protected val earlyStop: EarlyStop?,
) : Drafter {
    private val graph = target.graphsOf(Role.DRAFT).first()
    private val inputs = target.inputsOf(graph)
    private val hidden = graph.output("projected_activations").allocate()
    protected var seeded = false
        private set

    override fun restart(prefilled: List<Prefilled>) {
        seeded = false
    }

    override fun propose(context: Context, count: Int): Proposal {
        if (!seeded || count < 1) return Proposal.NOTHING
        return Chain(context, sampler, earlyStop).also { draft(it, context.last, count) }.proposal()
    }

    /** At most [count] drafts of [chain], after the pending token [last]. */
    protected fun draft(chain: Chain, last: Int, count: Int) {
        target.place(cache.length - 1, inputs)
        var state: ByteBuffer = hidden
        var token = last
        while (chain.tokens.size < count) {
            fill(inputs.getValue("activations"), listOf(target.embed(token), state))
            val outputs = target.engine.run(graph.name, inputs, cache.handle)
            state = outputs.getValue("projected_activations")
            if (!chain.draft(target.logits(outputs))) break
            token = chain.tokens.last()
        }
    }

    override fun observe(verdict: Verdict, verified: Verified) {
        put(hidden, 0, verified.hidden[verdict.rows.last()])
        seeded = true
    }
}
