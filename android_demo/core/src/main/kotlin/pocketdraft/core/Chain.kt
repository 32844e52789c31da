package pocketdraft.core

import java.nio.ByteBuffer

/**
 * A chain of drafts as it grows: what a drafter makes of its logits, token after token. Each draft has as many [choices],
 * and [confidences] say how sure the drafter is of each, where [earlyStop] asks.
 */
class Chain(context: Context, private val sampler: Sampler, private val earlyStop: EarlyStop?, private val choices: Int = 1) {
    private val before = context.tokens
    val drafts = ArrayList<Draft>()
    val tokens = ArrayList<Int>()
    val confidences = ArrayList<Double>()

    /** Drafts the next token from [logits], [V]. Whether another one is worth drafting. */
    fun draft(logits: FloatArray): Boolean {
        val made = sampler.draft(logits, before, tokens, choices)
        drafts += made
        tokens += made.token
        if (earlyStop == null) return true
        confidences += made.confidence
        return !earlyStop.enough(confidences)
    }

    /** [states] as in [Proposal]. */
    fun proposal(states: List<ByteBuffer>? = null) = Proposal.chain(tokens, drafts.map { it.probs }, confidences, states)
}
