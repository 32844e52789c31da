package pocketdraft.core

import kotlin.math.max

/** Logits [T, V] as an engine gave them. */
fun interface Rows {
    /** Row [index], [V]. It holds until the next call. */
    fun row(index: Int): FloatArray
}

/**
 * [accepted] drafts in order, then [nextToken], which is the target's own.
 *
 * [rows] are the rows of the verify call whose K/V stays: row 0, the pending token's, and one per accepted draft. The
 * last of them is where [nextToken] was predicted.
 */
data class Verdict(val accepted: List<Int>, val nextToken: Int, val rows: List<Int>)

/**
 * Which drafts stand, and what comes after them: `runtime/accept.py`, which says why it is lossless.
 *
 * [logits] has row 0 after the pending token and row i + 1 after node i. [tokens] are those of the context, the
 * pending one last.
 */
fun accept(logits: Rows, proposal: Proposal, tokens: List<Int>, sampler: Sampler): Verdict = when {
    sampler.rejects -> rejection(logits, proposal, tokens, sampler)
    sampler.takesArgmax -> walk(proposal) { row, _ -> bestOf(logits.row(row)) }
    else -> walk(proposal) { row, path -> sampler.choose(logits.row(row), tokens + path) }
}

/** Walks the proposal, a tree or a chain, while the token that the target chooses is one of its nodes. */
private fun walk(proposal: Proposal, choose: (Int, List<Int>) -> Int): Verdict {
    val accepted = ArrayList<Int>()
    val rows = arrayListOf(0)
    while (true) {
        val choice = choose(rows.last(), accepted)
        val child = proposal.child(rows.last() - 1, choice) ?: return Verdict(accepted, choice, rows)
        accepted += choice
        rows += child + 1
    }
}

/** Accepts each draft of a chain with probability min(1, p / q), in order, until one is refused. */
private fun rejection(logits: Rows, proposal: Proposal, tokens: List<Int>, sampler: Sampler): Verdict {
    if (!proposal.isChain) {
        throw PocketdraftError("The proposal is a tree, rejection takes a chain; accept trees by exact match.")
    }
    val noise = sampler.noise.child(tokens.size)
    for (row in 0..proposal.size) {
        val path = proposal.tokens.take(row)
        var weights = sampler.probabilities(logits.row(row), tokens + path)
        val position = tokens.size + row
        if (row < proposal.size) {
            val token = proposal.tokens[row]
            val q = proposal.probs.getOrNull(row)
            if (noise.uniform(Lane.ACCEPT, position) * (q?.get(token) ?: 1.0) < weights[token]) continue
            weights = residual(weights, q, token)
        }
        return Verdict(path, noise.draw(weights, Lane.TARGET, position), (0..row).toList())
    }
    error("the row after the last draft has no draft to accept")
}

/** (p - q)+, not normalised. All 0 only if p = q up to rounding: then p. */
private fun residual(p: DoubleArray, q: DoubleArray?, token: Int): DoubleArray {
    val weights = if (q == null) p.copyOf().also { it[token] = 0.0 } else DoubleArray(p.size) { max(p[it] - q[it], 0.0) }
    return if (weights.any { it > 0 }) weights else p
}
