package pocketdraft.core

enum class Finish { STOP, BUDGET, CONTEXT }

/** What one round gave: the first [drafted] of [tokens] were the drafter's. [finish] is set on the last. */
data class Emitted(val tokens: List<Int>, val drafted: Int, val finish: Finish?)

/** The tokens of one sequence, and the only place where stop tokens and budgets cut. The last token is pending. */
class Context(private val stop: Set<Int>) {
    val tokens = ArrayList<Int>()
    var remaining = 0
        private set
    var finish: Finish? = null
        private set
    val last get() = tokens.last()

    fun begin(prompt: List<Int>, budget: Int) {
        tokens += prompt
        remaining = budget
        finish = null
    }

    /**
     * Takes the verdict's tokens up to the first stop token, or to the budget.
     *
     * [room] is what the cache has left after the accepted drafts; without a slot for the pending token it ends.
     */
    fun commit(verdict: Verdict, room: Int): Emitted {
        val coming = (verdict.accepted + verdict.nextToken).take(remaining)
        val end = coming.indexOfFirst { it in stop }
        val taken = if (end < 0) coming else coming.take(end + 1)
        tokens += taken
        remaining -= taken.size
        finish = when {
            end >= 0 -> Finish.STOP
            remaining == 0 -> Finish.BUDGET
            room == 0 -> Finish.CONTEXT
            else -> null
        }
        return Emitted(taken, minOf(taken.size, verdict.accepted.size), finish)
    }

    /** Forgets what lies beyond [length]. */
    fun truncate(length: Int) {
        tokens.subList(length, tokens.size).clear()
    }
}
