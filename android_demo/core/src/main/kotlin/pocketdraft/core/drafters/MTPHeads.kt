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

/** States of the positions from [start] on that wait for the tokens after them: what a head is to read. */
private class Waiting {
    var start = 0
        private set
    var rows = emptyList<ByteBuffer>()
        private set

    /** In the place of those from [from] on. Those before that would leave a gap are dropped. */
    fun put(from: Int, new: List<ByteBuffer>) {
        val before = rows.take(maxOf(0, from - start)).takeIf { start + it.size == from }.orEmpty()
        start = from - before.size
        rows = before + new
    }

    /** Those before [end]: they were read. */
    fun drop(end: Int) {
        rows = rows.drop(maxOf(0, end - start))
        start = maxOf(start, end)
    }

    /** Those from [end] on: the context has no such positions. */
    fun cut(end: Int) {
        rows = rows.take(maxOf(0, end - start))
    }
}

/**
 * Native MTP heads (DeepSeek-V3, Qwen3.5): decoder layers more, trained with the target, with K/V of their own.
 *
 * At each position the head reads the target's hidden state there beside the embedding of the token after it, and says
 * the one after that. A single head that drafts on reads its own last state beside its own draft. Of several, head k
 * reads head k - 1's states beside the tokens k positions further on, and makes draft k + 1; what it has read with drafts
 * that did not stand it reads again.
 */
class MTPHeadsDrafter(
    private val target: Target,
    private val cache: Cache,
    private val sampler: Sampler,
    private val earlyStop: EarlyStop?,
) : Drafter {
    private val heads = List(target.engine.manifest.drafters.mtpHeads) { head ->
        target.graphsOf(Role.MTP_HEADS).filter { it.head == head }
    }
    private val waiting = heads.map { Waiting() }
    private val lmHead = target.graphsOf(Role.HEAD).first()
    private val states = target.inputsOf(lmHead)

    // Of the last round: how many positions were read, what was drafted.
    private var end = 0
    private var drafts = emptyList<Int>()

    override fun restart(prefilled: List<Prefilled>) {
        settle(emptyList())
        prefilled.forEach { waiting[0].put(it.start, checkNotNull(it.hidden)) }
    }

    override fun propose(context: Context, count: Int): Proposal {
        settle(context.tokens.let { it.subList(minOf(end + 1, it.size), it.size) })
        waiting[0].cut(cache.length)
        if (count < 1 || waiting[0].rows.isEmpty()) return Proposal.NOTHING
        end = cache.length
        cache.follow(DrafterKind.MTP_HEADS, waiting[0].start, end)
        val most = if (heads.size == 1) count else minOf(count, heads.size)
        val chain = Chain(context, sampler, earlyStop)
        var state = catchUp(0, context, emptyList())
        while (true) {
            put(states.getValue("activations"), 0, state)
            val going = chain.draft(target.logits(target.engine.run(lmHead.name, states)))
            drafts = chain.tokens
            if (!going || drafts.size == most) return chain.proposal()
            state = if (heads.size > 1) {
                catchUp(drafts.size, context, drafts)
            } else {
                read(0, end + drafts.size - 1, listOf(state), drafts.takeLast(1)).last()
            }
        }
    }

    override fun observe(verdict: Verdict, verified: Verified) =
        waiting[0].put(cache.length - verdict.rows.size, verdict.rows.map { copied(verified.hidden[it]) })

    /** What was read with tokens that stand, [came] being those after the positions that were read, waits no more. */
    private fun settle(came: List<Int>) {
        val stand = drafts.zip(came).takeWhile { (draft, token) -> draft == token }.size
        waiting.take(drafts.size).forEachIndexed { head, it -> it.drop(end - maxOf(0, head - stand)) }
        drafts = emptyList()
    }

    /** A head's state at the last position that waits for it. At all of them the next head is to read its states. */
    private fun catchUp(head: Int, context: Context, drafts: List<Int>): ByteBuffer {
        val unread = waiting[head]
        val after = (context.tokens.drop(unread.start + 1) + drafts).drop(head)
        val made = read(head, unread.start, unread.rows, after)
        if (head + 1 < heads.size) waiting[head + 1].put(unread.start, made)
        return made.last()
    }

    /**
     * A head's states at the positions from [from] on, of which [hidden] are the states that it is fed and [after] the
     * tokens beside them. Of a single head's, only what its last call gave holds, and until its next.
     */
    private fun read(head: Int, from: Int, hidden: List<ByteBuffer>, after: List<Int>): List<ByteBuffer> {
        val embedded = after.take(hidden.size).map(target::embed)
        val made = ArrayList<ByteBuffer>()
        for (call in followingCalls(heads[head], from, hidden.size, cache.capacity)) {
            val (inputs, rows) = target.inputsOf(call.graph) to (call.from until call.from + call.real)
            fill(inputs.getValue("embeddings"), embedded.slice(rows))
            fill(inputs.getValue("activations"), hidden.slice(rows))
            target.place(from + call.from, inputs, cache.followed(DrafterKind.MTP_HEADS).start)
            val output = target.engine.run(call.graph.name, inputs, cache.handle).getValue("projected_activations")
            val size = output.capacity() / call.graph.width
            for (row in 0 until call.real) {
                val state = slice(output, row * size, size)
                made += if (heads.size > 1) copied(state) else state
            }
        }
        return made
    }
}
