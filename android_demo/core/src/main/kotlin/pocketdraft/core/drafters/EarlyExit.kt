package pocketdraft.core.drafters

import pocketdraft.core.Cache
import pocketdraft.core.Chain
import pocketdraft.core.Context
import pocketdraft.core.EarlyStop
import pocketdraft.core.Proposal
import pocketdraft.core.Role
import pocketdraft.core.Sampler
import pocketdraft.core.Target
import pocketdraft.core.put

/**
 * Self-speculation (LayerSkip, arXiv 2404.16710): the target's first layers draft, the others verify.
 *
 * Each draft runs the first layers on one token, which writes their K/V, and puts what comes out through the target's
 * norm and head. The verify goes on from those states: no layer runs twice for a token.
 */
class EarlyExitDrafter(
    private val target: Target,
    private val cache: Cache,
    private val sampler: Sampler,
    private val earlyStop: EarlyStop?,
) : Drafter {
    private val head = target.graphsOf(Role.EXIT_HEAD).single()
    private val inputs = target.inputsOf(head)

    override fun propose(context: Context, count: Int): Proposal {
        if (count < 1) return Proposal.NOTHING
        val chain = Chain(context, sampler, earlyStop)
        val states = arrayListOf(target.draftEarly(cache, context.last, 0))
        var going = true
        while (going && chain.tokens.size < count) {
            put(inputs.getValue("exit_states"), 0, states.last())
            going = chain.draft(target.logits(target.engine.run(head.name, inputs)))
            states += target.draftEarly(cache, chain.tokens.last(), chain.tokens.size)
        }
        return chain.proposal(states)
    }
}
