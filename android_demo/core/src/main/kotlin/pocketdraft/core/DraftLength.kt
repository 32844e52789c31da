package pocketdraft.core

/** How many drafts the next round asks for. */
fun interface DraftLength {
    fun next(stats: Stats): Int
}

/** Whether to stop at the drafts made so far, given the probability that the drafter gave each. */
fun interface EarlyStop {
    fun enough(confidences: List<Double>): Boolean
}

class Fixed(private val drafts: Int) : DraftLength {
    override fun next(stats: Stats) = drafts
}
