package pocketdraft.core.drafters

import pocketdraft.core.Context
import pocketdraft.core.Proposal

private const val LONGEST_MATCH = 3

/** What followed the last few tokens the last time they occurred. */
object PromptLookup : Drafter {
    override fun propose(context: Context, count: Int) = Proposal.chain(lookUp(context.tokens, count).first)
}

/** At most [count] tokens that followed the last ones before, and how many of those they followed. */
internal fun lookUp(tokens: List<Int>, count: Int): Pair<List<Int>, Int> {
    for (length in minOf(LONGEST_MATCH, tokens.size - 1) downTo 1) {
        val key = tokens.takeLast(length)
        for (start in tokens.size - length - 1 downTo 0) {
            if (tokens.subList(start, start + length) == key) {
                val from = start + length
                return tokens.subList(from, minOf(from + maxOf(count, 0), tokens.size)).toList() to length
            }
        }
    }
    return emptyList<Int>() to 0
}
