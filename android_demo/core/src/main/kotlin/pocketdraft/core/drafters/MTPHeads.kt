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
import pocketdraft.core.copied
import pocketdraft.core.fill
import pocketdraft.core.followingCalls
import pocketdraft.core.put
import pocketdraft.core.slice

/**
 * Native MTP heads (DeepSeek-V3, Qwen3.5): a decoder layer more, trained with the target, with K/V of its own.
 *
 * At each position the head reads the target's hidden state there beside the embedding of the token after it, and says
 * the one after that. Drafting on, it reads its own last state beside its own draft.
 */
class MTPHeadsDrafter(
    private val target: Target,
    private val cache: Cache,
    private val sampler: Sampler,
    private val earlyStop: EarlyStop?,
) : Drafter {
    private val graphs = target.graphsOf(Role.MTP_HEADS)
    private val head = target.graphsOf(Role.HEAD).first()
    private val states = target.inputsOf(head)

    // The target's states from a position on that wait for the tokens after them.
    private var start = 0
    private var waiting = emptyList<ByteBuffer>()

    override fun restart(prefilled: List<Prefilled>) = prefilled.forEach { wait(it.start, checkNotNull(it.hidden)) }

    override fun propose(context: Context, count: Int): Proposal {
        val unread = waiting.take(maxOf(0, cache.length - start))
        if (count < 1 || unread.isEmpty()) return Proposal.NOTHING
        val end = start + unread.size
        cache.follow(DrafterKind.MTP_HEADS, start, end)
        var state = read(start, unread, context.tokens.subList(start + 1, end + 1))
        start = end
        waiting = emptyList()
        val chain = Chain(context, sampler, earlyStop)
        while (true) {
            put(states.getValue("activations"), 0, state)
            val going = chain.draft(target.logits(target.engine.run(head.name, states)))
            if (!going || chain.tokens.size == count) return chain.proposal()
            state = read(end + chain.tokens.size - 1, listOf(state), chain.tokens.takeLast(1))
        }
    }

    override fun observe(verdict: Verdict, verified: Verified) =
        wait(cache.length - verdict.rows.size, verdict.rows.map { copied(verified.hidden[it]) })

    /** Until the token after the last of them is known. Those before that are not the context's are dropped. */
    private fun wait(from: Int, hidden: List<ByteBuffer>) {
        val before = waiting.take(maxOf(0, from - start)).takeIf { start + it.size == from }.orEmpty()
        start = from - before.size
        waiting = before + hidden
    }

    /** The head's state at the last of the positions from [from] on, of which [hidden] are the states and [after] the
     * tokens that come next. It holds until the head's next call. */
    private fun read(from: Int, hidden: List<ByteBuffer>, after: List<Int>): ByteBuffer {
        val embedded = after.map(target::embed)
        var state = hidden.last()
        for (call in followingCalls(graphs, from, hidden.size, cache.capacity)) {
            val (inputs, rows) = target.inputsOf(call.graph) to (call.from until call.from + call.real)
            fill(inputs.getValue("embeddings"), embedded.slice(rows))
            fill(inputs.getValue("activations"), hidden.slice(rows))
            target.place(from + call.from, inputs, cache.followed(DrafterKind.MTP_HEADS).start)
            val output = target.engine.run(call.graph.name, inputs, cache.handle).getValue("projected_activations")
            val size = output.capacity() / call.graph.width
            state = slice(output, (call.real - 1) * size, size)
        }
        return state
    }
}
