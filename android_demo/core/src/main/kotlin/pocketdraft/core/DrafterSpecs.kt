package pocketdraft.core

/** Drafters that run graphs of a bundle, each of which [roles] it has then. The first that a bundle holds is its default. */
enum class DrafterKind(vararg val roles: Role) {
    MTP(Role.DRAFT),
    DFLASH(Role.DFLASH_CONTEXT, Role.DFLASH_DRAFT, Role.HEAD),
    EARLY_EXIT(Role.EXIT_DRAFT, Role.EXIT_HEAD, Role.EXIT_VERIFY),
    MTP_HEADS(Role.MTP_HEADS, Role.HEAD),
    DRAFT_MODEL(Role.MODEL_EMBED, Role.MODEL_PREFILL, Role.MODEL_DECODE),
    ;

    /** As the bundle spells it. */
    val label = name.lowercase()
}

/** One pass drafts a block: the pending token and [block] - 1 times [maskToken]. */
data class DFlashSpec(val block: Int, val maskToken: Int)

/** Drafters that run another one's graphs, or one's of several. */
private val MADE_OF = mapOf(
    "mtp_tree" to setOf(DrafterKind.MTP),
    "hybrid" to setOf(DrafterKind.MTP, DrafterKind.MTP_HEADS),
    "dflash_tree" to setOf(DrafterKind.DFLASH),
)

/** What a bundle says of the drafters that it holds, as far as the loop needs it; see `runtime/drafter_specs.py`. */
class DrafterSpecs(record: Record) {
    val kinds = DrafterKind.entries.filter { !record.isNull(it.label) }

    /** Null where the bundle does not hold one. */
    val dflash = record.recordOrNull("dflash")?.let { DFlashSpec(it.int("block"), it.int("mask_token")) }

    /** How many native MTP heads there are; 0 where the bundle holds none. */
    val mtpHeads = record.recordOrNull("mtp_heads")?.int("heads") ?: 0

    /** What drafts unless told otherwise: one that the bundle holds, else what needs no weights. */
    val default = kinds.firstOrNull()?.label ?: "prompt_lookup"

    /** All that can draft here. */
    val runnable = kinds.map { it.label } + MADE_OF.filterValues { it.any(kinds::contains) }.keys + "prompt_lookup"

    init {
        record.end()
    }
}
