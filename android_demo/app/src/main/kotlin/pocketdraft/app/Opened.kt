package pocketdraft.app

import java.io.File
import pocketdraft.core.Chat
import pocketdraft.core.ChatTurns
import pocketdraft.core.Manifest
import pocketdraft.core.PocketdraftError
import pocketdraft.core.Role
import pocketdraft.core.Session
import pocketdraft.core.Target
import pocketdraft.core.TOKENIZER_NAME
import pocketdraft.core.Tokenizer
import pocketdraft.core.requireMemory
import pocketdraft.engines.openEngine

/** An open bundle, and the conversation on it: once drafted, once plain. */
class Opened private constructor(val manifest: Manifest, private val store: Conversations, val threads: Int) : AutoCloseable {
    val tokenizer = Tokenizer.read(File(manifest.folder, TOKENIZER_NAME), manifest.bos)
    val turns = ChatTurns.read(manifest)
    private val engine = openEngine(manifest, threads)
    val target = Target(engine)
    var drafted = chat(drafter)
        private set

    // K/V of its own: made only where somebody compares.
    private var plainOrNull: Chat? = null
    val plain: Chat get() = plainOrNull ?: chat("none").also { plainOrNull = it }

    init {
        drafted.resume(store.read(manifest))
    }

    /** Written after each answer, so that the conversation outlives the app. */
    fun save() = store.write(manifest, drafted.said)

    fun forget() {
        drafted = chat(drafter)
        plainOrNull = null
        save()
    }

    /** As the bundle was tuned, else what it holds, with a few drafts. */
    val drafter get() = manifest.tuned?.drafter ?: manifest.drafters.default
    val drafts get() = manifest.tuned?.drafts ?: measuredDrafts

    /** How many the benchmark drafts a round: also where the choice is not to. */
    val measuredDrafts: Int
        get() = manifest.tuned?.drafts?.takeIf { it > 0 } ?: minOf(DRAFTS, manifest.graphsOf(Role.VERIFY).last().width - 1)

    /** Why nothing is drafted, or null. */
    val offBecause: String? get() = manifest.tuned?.takeIf { it.drafts == 0 }?.let { "${it.reason} (${it.device})" }

    override fun close() = engine.close()

    private fun chat(drafter: String) =
        Chat(Session.open(target, drafter, drafts, schedule = manifest.tuned?.schedule), turns, tokenizer)

    companion object {
        const val DRAFTS = 4

        /** Throws [PocketdraftError] for a bundle that is broken, of a newer format, or too large for the memory. */
        fun open(folder: File, phone: Phone, threads: Int, progress: (Double) -> Unit): Opened {
            requireMemory(Manifest.read(folder), phone.freeMemory())
            return Opened(Manifest.open(folder, progress), Conversations(phone.conversations), threads)
        }
    }
}
