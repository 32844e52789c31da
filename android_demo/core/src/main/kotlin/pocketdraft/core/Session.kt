package pocketdraft.core

import pocketdraft.core.drafters.Drafter
import pocketdraft.core.drafters.load

/** The draft-verify loop, in the paper's order (Leviathan et al., arXiv 2211.17192): a port of `runtime/session.py`. */
class Session(
    private val target: Target,
    private val cache: Cache,
    private val drafter: Drafter,
    private val draftLength: DraftLength,
    private val sampler: Sampler,
    val stats: Stats = Stats(),
    private val clock: () -> Long = System::nanoTime,
) {
    val context = Context(target.engine.manifest.stop.toSet())
    private lateinit var times: SequenceTimes // since the last prompt

    /** Appends [prompt] and gives up to [budget] new tokens, a round at a time, while they are asked for. */
    fun generate(prompt: List<Int>, budget: Int): Sequence<Emitted> = sequence {
        begin(prompt, budget)
        while (context.finish == null) yield(round())
    }

    /** Appends [prompt] and runs it, but for its last token: from here on there are rounds, until `finish` is set. */
    fun begin(prompt: List<Int>, budget: Int) {
        check(prompt, budget)
        context.begin(prompt, budget)
        times = SequenceTimes(target.times)
        drafter.restart(target.prefill(cache, context.tokens.subList(cache.length, context.tokens.size - 1).toList()))
    }

    /** One draft and its verification: one token at least. */
    fun round(): Emitted {
        val lap = Stopwatch(stats.seconds, clock)
        val count = minOf(draftLength.next(stats), target.longestDraft(cache), context.remaining - 1)
        lap(RoundPart.HOST)
        val proposal = drafter.propose(context, count)
        val draftS = lap(RoundPart.DRAFT)
        val verified = target.verify(cache, context.last, proposal)
        val verifyS = lap(RoundPart.VERIFY)
        val verdict = accept(verified.logits, proposal, context.tokens, sampler)
        target.keep(cache, verdict.rows)
        drafter.observe(verdict, verified)
        val emitted = context.commit(verdict, cache.room)
        cache.truncate(context.tokens.size)
        stats.record(proposal, verdict, emitted)
        val hostS = lap(RoundPart.HOST)
        times.add(verified.width, verifyS, proposal.confidences.size, draftS, hostS)
        return emitted
    }

    /** Goes back to what the sequence shares with [tokens]; the rest of them, one at least, is what to begin with. */
    fun rewind(tokens: List<Int>): List<Int> {
        val shared = context.tokens.zip(tokens.dropLast(1)).takeWhile { (ours, theirs) -> ours == theirs }.size
        target.rewind(cache, shared)
        context.truncate(shared)
        return tokens.drop(shared)
    }

    /** Throws [PocketdraftError] for a prompt that is empty, holds unknown tokens or does not fit. */
    private fun check(prompt: List<Int>, budget: Int) {
        val vocabulary = target.engine.manifest.vocabSize
        if (prompt.isEmpty()) throw PocketdraftError("The prompt is empty; give at least one token.")
        prompt.find { it !in 0 until vocabulary }?.let {
            throw PocketdraftError("The prompt holds token $it, the bundle's vocabulary has $vocabulary; use its own tokenizer.")
        }
        val length = context.tokens.size + prompt.size
        if (length > cache.capacity) {
            throw PocketdraftError(
                "The conversation makes $length tokens, the bundle's context holds ${cache.capacity}; " +
                    "start a new one, or export with a larger --context.",
            )
        }
        if (budget < 1) throw PocketdraftError("The budget is $budget tokens; give at least 1.")
    }

    companion object {
        /**
         * A fresh sequence. [drafter] is one of [DrafterSpecs.runnable] or "none"; [drafts] their number in a round, and with a
         * [schedule] the drafter may stop before. [cache] may hold the first tokens of the prompt that is to come.
         */
        fun open(
            target: Target,
            drafter: String,
            drafts: Int,
            sampler: Sampler = Sampler(),
            stats: Stats = Stats(),
            schedule: Scheduled? = null,
            cache: Cache = target.newCache(),
            clock: () -> Long = System::nanoTime,
        ): Session {
            val made = load(drafter, target, cache, sampler, schedule)
            return Session(target, cache, made, schedule ?: Fixed(drafts), sampler, stats, clock)
        }
    }
}

/** Adds the time since the lap before to a part's, and tells it. */
private class Stopwatch(private val seconds: DoubleArray, private val clock: () -> Long) {
    private var last = clock()

    operator fun invoke(part: RoundPart): Double {
        val now = clock()
        val taken = (now - last) / 1e9
        last = now
        seconds[part.ordinal] += taken
        return taken
    }
}
