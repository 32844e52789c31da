package pocketdraft.core.drafters

import pocketdraft.core.Cache
import pocketdraft.core.Context
import pocketdraft.core.DEEPEST
import pocketdraft.core.EarlyStop
import pocketdraft.core.Proposal
import pocketdraft.core.Sampler
import pocketdraft.core.Target
import pocketdraft.core.bestTree
import pocketdraft.core.likeliest

/**
 * DDTree (arXiv 2604.12989): of DFlash's distributions, one for each depth, the tree that is expected to go farthest.
 * An engine that takes no trees gets DFlash's chain.
 */
class DFlashTreeDrafter(target: Target, cache: Cache, sampler: Sampler, earlyStop: EarlyStop?) :
    DFlashDrafter(target, cache, sampler, earlyStop) {
    init {
        refuseRejection(sampler, "dflash_tree proposes trees, rejection takes a chain", "dflash")
    }

    override fun propose(context: Context, count: Int): Proposal {
        if (!target.takesTrees) return super.propose(context, count)
        val outputs = block(context, count) ?: return Proposal.NOTHING
        val rows = 1..minOf(count, DEEPEST, spec.block - 1) // no tree of so many nodes is deeper
        return bestTree(rows.map { likeliest(sampler.likely(target.logits(outputs, it), context.tokens), count) }, count)
    }
}
