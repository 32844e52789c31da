package pocketdraft.core

import java.nio.ByteBuffer

/** A drafter proposes and observes; it never owns the loop. */
interface Drafter {
    /** The context has grown by a prompt: what was observed before is stale. */
    fun restart() {}

    /** At most [count] nodes after the pending token; none is allowed, and means plain decoding. */
    fun propose(context: Context, count: Int): Proposal

    /** What the target made of the proposal. K/V of the kept rows is committed by now. */
    fun observe(verdict: Verdict, verified: Verified) {}
}

/** No drafter: plain decoding, one token a round. */
object NoDrafter : Drafter {
    override fun propose(context: Context, count: Int) = Proposal.NOTHING
}

/** What followed the last few tokens the last time they occurred. */
object PromptLookup : Drafter {
    private const val LONGEST_MATCH = 3

    override fun propose(context: Context, count: Int): Proposal {
        val tokens = context.tokens
        for (length in minOf(LONGEST_MATCH, tokens.size - 1) downTo 1) {
            val key = tokens.takeLast(length)
            for (start in tokens.size - length - 1 downTo 0) {
                if (tokens.subList(start, start + length) == key) {
                    val from = start + length
                    return Proposal.chain(tokens.subList(from, minOf(from + maxOf(count, 0), tokens.size)).toList())
                }
            }
        }
        return Proposal.NOTHING
    }
}

/**
 * Gemma 4's multi-token-prediction drafter: without a cache of its own, reading the target's K/V.
 *
 * A step takes the embedding of the last token beside a hidden state: the target's own for the first draft, the
 * drafter's projection for the others. Position and visible K/V are the committed context's throughout a draft.
 */
class MTPDrafter(
    private val target: Target,
    private val cache: Cache,
    private val sampler: Sampler,
    private val earlyStop: EarlyStop?,
) : Drafter {
    private val graph = target.engine.manifest.graphsOf(Role.DRAFT).first()
    private val inputs = target.inputsOf(graph)
    private val activations = inputs.getValue("activations")
    private val hidden = graph.output("projected_activations").allocate()
    private val logits = FloatArray(target.engine.manifest.vocabSize)
    private var seeded = false

    override fun restart() {
        seeded = false
    }

    override fun propose(context: Context, count: Int): Proposal {
        if (!seeded || count < 1) return Proposal.NOTHING
        target.place(cache.length - 1, inputs)
        var state: ByteBuffer = hidden
        var token = context.last
        val tokens = ArrayList<Int>()
        val probs = ArrayList<DoubleArray?>()
        val confidences = ArrayList<Double>()
        while (tokens.size < count) {
            val embedding = target.embed(token)
            put(activations, 0, embedding)
            put(activations, embedding.capacity(), state)
            val outputs = target.engine.run(graph.name, inputs, cache.handle)
            state = outputs.getValue("projected_activations")
            val draft = sampler.draft(floats(outputs.getValue("logits"), 0, logits), context.tokens, tokens)
            token = draft.token
            tokens += token
            probs += draft.probs
            if (earlyStop != null) {
                confidences += draft.confidence
                if (earlyStop.enough(confidences)) break
            }
        }
        return Proposal.chain(tokens, probs, confidences)
    }

    override fun observe(verdict: Verdict, verified: Verified) {
        put(hidden, 0, verified.hidden(verdict.rows.last()))
        seeded = true
    }
}
