package pocketdraft.core.drafters

import kotlin.math.pow
import pocketdraft.core.Cache
import pocketdraft.core.Chain
import pocketdraft.core.Context
import pocketdraft.core.DEEPEST
import pocketdraft.core.EarlyStop
import pocketdraft.core.Proposal
import pocketdraft.core.Sampler
import pocketdraft.core.Target
import pocketdraft.core.Verdict
import pocketdraft.core.Verified
import pocketdraft.core.confidenceTenth

private const val RANKS = 4 // choices that are told apart: the draft and three siblings

// How often a draft is right by tenth of its confidence; where it is wrong, each sibling and none of them. For how many
// tokens. `runtime/drafters/mtp_tree.py` says where these are from.
private val SUPPOSED = doubleArrayOf(0.4, 0.4, 0.42, 0.48, 0.58, 0.66, 0.77, 0.83, 0.9, 0.98, 1.0)
private val SUPPOSED_OF_MISSES = doubleArrayOf(0.33, 0.15, 0.06, 0.46)
private const val SUPPOSED_TOKENS = 4.0

/**
 * The MTP drafter's chain with siblings: what it would have drafted in the place of a draft, under the same parent. Which
 * of them, and how long a chain they are worth, follows from how often each choice was the right one where the drafter
 * was as sure. An engine that takes no trees gets the plain MTP chain.
 */
class MTPTreeDrafter(target: Target, cache: Cache, private val sampler: Sampler, earlyStop: EarlyStop?) :
    MTPDrafter(target, cache, sampler, earlyStop) {
    /** The last chain: by depth, the tenth of the draft's confidence, and its choices. */
    private var drafted = emptyList<Pair<Int, List<Int>>>()

    /** By tenth of the draft's confidence, for how many tokens each choice was right, or none of them. */
    private val right = SUPPOSED.map { share ->
        DoubleArray(RANKS + 1) { SUPPOSED_TOKENS * if (it == 0) share else (1 - share) * SUPPOSED_OF_MISSES[it - 1] }
    }

    init {
        refuseRejection(sampler, "mtp_tree proposes trees, rejection takes a chain", "mtp")
    }

    /**
     * The chain comes first, then the siblings: while the target keeps to the chain, no K/V has to move. Where early stop
     * says how long the chain is, siblings take only the rows that its verify graph has anyway.
     */
    override fun propose(context: Context, count: Int): Proposal {
        drafted = emptyList()
        if (!seeded || count < 1 || !target.takesTrees) return super.propose(context, count)
        val gains = Gains(right.map { counts -> counts.sum().let { all -> counts.map { it / all } } }, count)
        val chain = Chain(context, sampler, earlyStop ?: gains, RANKS)
        draft(chain, context.last, minOf(count, DEEPEST))
        val length = chain.tokens.size
        val nodes = if (earlyStop == null) count else minOf(count, target.freeNodes(length))
        drafted = chain.confidences.map(::confidenceTenth) zip chain.drafts.map { it.choices }
        val siblings = gains.bestSiblings(chain.confidences, nodes - length).mapNotNull { (depth, rank) ->
            chain.drafts[depth].choices.getOrNull(rank)?.let { it to depth - 1 }
        }
        return Proposal(
            chain.tokens + siblings.map { it.first },
            (-1..length - 2) + siblings.map { it.second },
            confidences = if (earlyStop == null) emptyList() else chain.confidences,
        )
    }

    override fun observe(verdict: Verdict, verified: Verified) {
        super.observe(verdict, verified)
        for ((told, token) in drafted zip (verdict.accepted + verdict.nextToken)) {
            val (tenth, choices) = told
            val rank = choices.indexOf(token)
            right[tenth][if (rank < 0) RANKS else rank]++
            if (rank != 0) break // what comes after is no longer the chain's
        }
    }
}

/**
 * What each node is worth to a tree of so many [nodes]: the chance that the target takes it and all before it.
 *
 * [shares] are how often each choice is right, by tenth of the draft's confidence.
 */
private class Gains(private val shares: List<List<Double>>, private val nodes: Int) : EarlyStop {
    /** Whether one more draft, if as sure as those before, gains less than the sibling whose place it takes. */
    override fun enough(confidences: List<Double>): Boolean {
        val left = nodes - confidences.size
        val reached = reached(confidences)
        val ranked = siblings(confidences, reached).sortedDescending()
        val next = reached.last().pow(1 + 1.0 / confidences.size)
        return left < 1 || (left <= ranked.size && next < ranked[left - 1])
    }

    /** Depth (0 for the pending token's children) and rank (from 1) of the [count] that gain most. */
    fun bestSiblings(confidences: List<Double>, count: Int): List<Pair<Int, Int>> {
        val gains = siblings(confidences, reached(confidences))
        return gains.indices.sortedByDescending { gains[it] }.take(maxOf(0, count))
            .map { it / (RANKS - 1) to it % (RANKS - 1) + 1 }
    }

    /** By number of drafts of the chain, the chance that they stand. */
    private fun reached(confidences: List<Double>) =
        confidences.runningFold(1.0) { before, it -> before * shares[confidenceTenth(it)].first() }

    /** Of the siblings of the chain's first draft, then of its second. */
    private fun siblings(confidences: List<Double>, reached: List<Double>): List<Double> =
        confidences.flatMapIndexed { depth, it -> shares[confidenceTenth(it)].subList(1, RANKS).map { reached[depth] * it } }
}
