package pocketdraft.core

import java.nio.ByteBuffer

/** A chain of drafts as it grows: what a drafter makes of its logits, token after token. */
class Chain(context: Context, private val sampler: Sampler, private val earlyStop: EarlyStop?) {
    private val before = context.tokens
    private val probs = ArrayList<DoubleArray?>()
    private val confidences = ArrayList<Double>()
    val tokens = ArrayList<Int>()

    /** Drafts the next token from [logits], [V]. Whether another one is worth drafting. */
    fun draft(logits: FloatArray): Boolean {
        val made = sampler.draft(logits, before, tokens)
        tokens += made.token
        probs += made.probs
        if (earlyStop == null) return true
        confidences += made.confidence
        return !earlyStop.enough(confidences)
    }

    /** [states] as in [Proposal]. */
    fun proposal(states: List<ByteBuffer>? = null) = Proposal.chain(tokens, probs, confidences, states)
}
