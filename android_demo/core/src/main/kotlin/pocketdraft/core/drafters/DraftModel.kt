package pocketdraft.core.drafters

import pocketdraft.core.Cache
import pocketdraft.core.Chain
import pocketdraft.core.Context
import pocketdraft.core.EarlyStop
import pocketdraft.core.GraphSpec
import pocketdraft.core.Prefilled
import pocketdraft.core.Proposal
import pocketdraft.core.Role
import pocketdraft.core.Sampler
import pocketdraft.core.Target

private const val PREFIX = "MODEL_" // of roles
private const val SLOTS = 2 // the dimension of K

/** An independent draft model: a smaller model of the same tokenizer, which decodes on K/V of its own. */
class DraftModelDrafter(
    target: Target,
    cache: Cache,
    private val sampler: Sampler,
    private val earlyStop: EarlyStop?,
) : Drafter {
    private val model = asTarget(target)
    private val cache = Cache(cache.handle, cache.capacity)
    private val read = ArrayList<Int>() // tokens whose K/V its cache holds
    private var same = 0 // so many of them are the context's, as was seen

    override fun restart(prefilled: List<Prefilled>) {
        same = 0
    }

    override fun propose(context: Context, count: Int): Proposal {
        if (count < 1) return Proposal.NOTHING
        catchUp(context.tokens)
        var token = context.last
        val chain = Chain(context, sampler, earlyStop)
        while (chain.tokens.size < count) {
            val logits = model.verify(cache, token, Proposal.NOTHING).logits.row(0)
            cache.keep(listOf(0))
            read += token
            if (!chain.draft(logits)) break
            token = chain.tokens.last()
        }
        return chain.proposal()
    }

    /** Goes back to what its cache shares with the context, and reads the rest but for the pending token. */
    private fun catchUp(tokens: List<Int>) {
        val committed = tokens.size - 1
        while (same < minOf(read.size, committed) && read[same] == tokens[same]) same++
        model.rewind(cache, same)
        read.subList(cache.length, read.size).clear()
        model.prefill(cache, tokens.subList(cache.length, committed).toList())
        read += tokens.subList(read.size, committed)
        same = read.size
    }
}

/** The engine, as if the draft model were its target. */
private fun asTarget(target: Target): Target {
    val graphs = target.engine.manifest.graphs.filter { it.role.name.startsWith(PREFIX) }
    val moved = graphs.map { it.copy(role = Role.valueOf(it.role.name.removePrefix(PREFIX))) }
    return Target(target.engine, moved, moved.flatMap(GraphSpec::inputs).filter { "kv_cache_k" in it.name }.minOfOrNull { it.shape[SLOTS] })
}
