package pocketdraft.core.drafters

import pocketdraft.core.Cache
import pocketdraft.core.Context
import pocketdraft.core.EarlyStop
import pocketdraft.core.PocketdraftError
import pocketdraft.core.Prefilled
import pocketdraft.core.Proposal
import pocketdraft.core.Sampler
import pocketdraft.core.Target
import pocketdraft.core.Verdict
import pocketdraft.core.Verified

/** A drafter proposes and observes; it never owns the loop. */
interface Drafter {
    /** The context has grown by a prompt, of which this much is new: what was observed before is stale. */
    fun restart(prefilled: List<Prefilled>) {}

    /** At most [count] nodes after the pending token; none is allowed, and means plain decoding. */
    fun propose(context: Context, count: Int): Proposal

    /** What the target made of the proposal. K/V of the kept rows is committed by now. */
    fun observe(verdict: Verdict, verified: Verified) {}
}

/** No drafter: plain decoding, one token a round. */
object NoDrafter : Drafter {
    override fun propose(context: Context, count: Int) = Proposal.NOTHING
}

/** The drafter of that name. Throws [PocketdraftError] for one that the bundle does not hold, or nobody knows. */
fun load(name: String, target: Target, cache: Cache, sampler: Sampler, earlyStop: EarlyStop?): Drafter {
    val known = target.engine.manifest.drafters.runnable + "none"
    if (name !in known) {
        throw PocketdraftError("The bundle cannot draft with '$name' here; there are ${known.joinToString()}.")
    }
    return when (name) {
        "mtp" -> MTPDrafter(target, cache, sampler, earlyStop)
        "mtp_tree" -> MTPTreeDrafter(target, cache, sampler, earlyStop)
        "hybrid" -> HybridDrafter(target, cache, sampler, earlyStop)
        "dflash" -> DFlashDrafter(target, cache, sampler, earlyStop)
        "dflash_tree" -> DFlashTreeDrafter(target, cache, sampler, earlyStop)
        "early_exit" -> EarlyExitDrafter(target, cache, sampler, earlyStop)
        "mtp_heads" -> MTPHeadsDrafter(target, cache, sampler, earlyStop)
        "draft_model" -> DraftModelDrafter(target, cache, sampler, earlyStop)
        "prompt_lookup" -> PromptLookup
        else -> NoDrafter
    }
}

/** Throws [PocketdraftError] for a sampler that accepts by rejection. [fault] names the drafter, [instead] another one. */
internal fun refuseRejection(sampler: Sampler, fault: String, instead: String) {
    if (sampler.rejects) throw PocketdraftError("The drafter $fault; accept by exact match, or draft with $instead.")
}
