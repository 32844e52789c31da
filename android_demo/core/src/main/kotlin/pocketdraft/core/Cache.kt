package pocketdraft.core

/** The positions from [start] to before [stop]. */
data class Positions(val start: Int, val stop: Int) {
    val isEmpty get() = start == stop
}

/**
 * How much of a sequence's K/V is committed. The K/V itself stays in the engine, behind [handle].
 *
 * Whatever lies beyond [length] is scratch that later calls overwrite; [written] is the furthest that any call reached.
 */
class Cache(val handle: Any, val capacity: Int) {
    var length = 0
        private set
    var written = 0
        private set
    private val drafters = HashMap<DrafterKind, Positions>()
    val room get() = capacity - length

    /** Commits the first rows of the last verify. Rows with gaps, which only a tree has, are moved together before. */
    fun keep(rows: List<Int>) {
        check(rows == rows.indices.toList()) { "rows $rows are no prefix of the call: see Target.keep" }
        advance(rows.size)
    }

    fun advance(slots: Int) {
        check(slots <= room) { "$slots slots committed where $room were free" }
        length += slots
    }

    fun writes(width: Int) {
        written = maxOf(written, length + width)
    }

    /** The positions of which this drafter's own K/V are there, none of them after the committed ones. */
    fun followed(drafter: DrafterKind): Positions = drafters[drafter] ?: Positions(0, 0)

    /** This drafter's own K/V from [start] to before [stop] were written. Where they leave a gap, what was before is lost. */
    fun follow(drafter: DrafterKind, start: Int, stop: Int) {
        val known = followed(drafter)
        drafters[drafter] = Positions(if (start in known.start..known.stop) known.start else start, stop)
    }

    /** Takes back what lies beyond [to]. What a sliding layer's ring held may be gone: see [Target.rewind]. */
    fun truncate(to: Int) {
        length = minOf(length, to)
        drafters.replaceAll { _, known -> Positions(minOf(known.start, length), minOf(known.stop, length)) }
    }

    fun clear() {
        truncate(0)
        written = 0
    }
}
