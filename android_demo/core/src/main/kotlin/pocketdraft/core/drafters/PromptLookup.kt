package pocketdraft.core.drafters

import pocketdraft.core.Context
import pocketdraft.core.Proposal

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
