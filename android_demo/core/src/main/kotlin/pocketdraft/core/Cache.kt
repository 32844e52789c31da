package pocketdraft.core

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
    val room get() = capacity - length

    /** Commits the rows of the last verify that lie on the accepted path: a prefix of them, as the proposal is a chain. */
    fun keep(rows: List<Int>) {
        check(rows == rows.indices.toList()) { "rows $rows are no prefix: trees need an engine that compacts K/V" }
        advance(rows.size)
    }

    fun advance(slots: Int) {
        check(slots <= room) { "$slots slots committed where $room were free" }
        length += slots
    }

    fun writes(width: Int) {
        written = maxOf(written, length + width)
    }

    /** Takes back what lies beyond [to]. What a sliding layer's ring held may be gone: see [Target.rewind]. */
    fun truncate(to: Int) {
        length = minOf(length, to)
    }

    fun clear() {
        length = 0
        written = 0
    }
}
