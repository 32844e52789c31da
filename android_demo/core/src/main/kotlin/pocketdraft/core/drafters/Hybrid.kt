package pocketdraft.core.drafters

import pocketdraft.core.Cache
import pocketdraft.core.Context
import pocketdraft.core.DrafterKind
import pocketdraft.core.EarlyStop
import pocketdraft.core.Prefilled
import pocketdraft.core.Proposal
import pocketdraft.core.RoundCost
import pocketdraft.core.Sampler
import pocketdraft.core.Target
import pocketdraft.core.Verdict
import pocketdraft.core.Verified

private const val MTP = 0 // beside the lengths of a match

// How often a draft is right, supposed for so many drafts, until there are real ones; and a draft's cost over a verify's,
// until both were timed.
private val SUPPOSED = listOf(0.7, 0.3, 0.5, 0.7)
private const val SUPPOSED_DRAFTS = 4.0
private const val SUPPOSED_COST = 0.2

/**
 * Prompt lookup where that is worth more than MTP's drafts, or native heads', else those: by expected gain, round by
 * round. What drafts are worth follows from how often they were right, looked-up ones after a match of that length.
 */
class HybridDrafter(private val target: Target, cache: Cache, sampler: Sampler, earlyStop: EarlyStop?) : Drafter {
    private val mtp = (earlyStop ?: EarlyStop { false }).let { asked -> // drafts whose confidence is asked for are timed
        val nativeHeads = DrafterKind.MTP !in target.engine.manifest.drafters.kinds
        if (nativeHeads) MTPHeadsDrafter(target, cache, sampler, asked) else MTPDrafter(target, cache, sampler, asked)
    }
    private val right = DoubleArray(SUPPOSED.size) { SUPPOSED[it] * SUPPOSED_DRAFTS }
    private val judged = DoubleArray(SUPPOSED.size) { SUPPOSED_DRAFTS }
    private var proposed = 0
    private var source = MTP

    init {
        refuseRejection(sampler, "hybrid chooses by measured times, on which rejection's text would depend", "mtp or mtp_heads")
    }

    override fun restart(prefilled: List<Prefilled>) = mtp.restart(prefilled)

    override fun propose(context: Context, count: Int): Proposal {
        val (found, matched) = lookUp(context.tokens, count)
        val better = found.isNotEmpty() && rate(matched, found.size) > rate(MTP, count)
        source = if (better) matched else MTP
        return (if (better) Proposal.chain(found) else mtp.propose(context, count)).also { proposed = it.size }
    }

    override fun observe(verdict: Verdict, verified: Verified) {
        mtp.observe(verdict, verified) // it must know the target's state after any round
        right[source] += verdict.accepted.size.toDouble()
        judged[source] += minOf(verdict.accepted.size + 1, proposed).toDouble()
    }

    /** Tokens over time of a round with so many [drafts] of this [source]. */
    private fun rate(source: Int, drafts: Int): Double {
        val cost = target.times.cost() ?: RoundCost.flat(SUPPOSED_COST)
        val count = minOf(drafts, cost.longest)
        var reached = 1.0
        var tokens = 1.0
        repeat(count) {
            reached *= right[source] / judged[source]
            tokens += reached
        }
        return tokens / cost.seconds(count, if (source == MTP) count else 0)
    }
}
