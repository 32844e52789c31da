package pocketdraft.core

/** How many drafts the next round asks for. */
fun interface DraftLength {
    fun next(stats: Stats): Int
}

/** Whether to stop at the drafts made so far, given how sure the drafter is of each. */
fun interface EarlyStop {
    fun enough(confidences: List<Double>): Boolean
}

class Fixed(private val drafts: Int) : DraftLength {
    override fun next(stats: Stats) = drafts
}

/**
 * Stops by the table that `pocketdraft tune` made: `runtime/schedule.py`.
 *
 * `shares[t]` of drafts with the tenth t of confidence are accepted; it stops at k drafts where the product of those
 * lies below `least[k]`. That has an entry for each number of drafts that may be asked for once more.
 */
class Scheduled(private val shares: List<Double>, private val least: List<Double>) : DraftLength, EarlyStop {
    override fun next(stats: Stats) = if (least.isNotEmpty() && least.first() <= 1) least.size else 0

    override fun enough(confidences: List<Double>): Boolean =
        confidences.size >= least.size || confidences.fold(1.0) { reached, it -> reached * shares[confidenceTenth(it)] } < least[confidences.size]
}
