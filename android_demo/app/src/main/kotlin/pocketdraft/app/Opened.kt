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

    /** As the bundle was tuned, else the first that it holds, until another one is chosen. */
    var drafter = manifest.tuned?.drafter ?: manifest.drafters.default
        private set
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

    /** The next drafter that the bundle can run goes on with the conversation. */
    fun nextDrafter() {
        val all = manifest.drafters.runnable
        drafter = all[(all.indexOf(drafter) + 1) % all.size]
        drafted = chat(drafter).also { it.resume(drafted.said) }
    }

    /** What `pocketdraft tune` chose, as long as it is what drafts. */
    private val tuned get() = manifest.tuned?.takeIf { it.drafter == drafter }
    private val few get() = minOf(DRAFTS, manifest.graphsOf(Role.VERIFY).last().width - 1)
    val drafts get() = tuned?.drafts ?: few

    /** How many the benchmark drafts a round, by the default drafter: also where the choice is not to. */
    val measuredDrafts get() = manifest.tuned?.takeIf { it.drafter == manifest.drafters.default }?.drafts ?: few

    /** Why nothing is drafted, or null. */
    val offBecause: String? get() = tuned?.takeIf { it.drafts == 0 }?.let { "${it.reason} (${it.device})" }

    override fun close() = engine.close()

    private fun chat(drafter: String) =
        Chat(Session.open(target, drafter, drafts, schedule = tuned?.schedule), turns, tokenizer)

    companion object {
        const val DRAFTS = 4

        /** Throws [PocketdraftError] for a bundle that is broken, of a newer format, or too large for the memory. */
        fun open(folder: File, phone: Phone, threads: Int, progress: (Double) -> Unit): Opened {
            requireMemory(Manifest.read(folder), phone.freeMemory())
            return Opened(Manifest.open(folder, progress), Conversations(phone.conversations), threads)
        }
    }
}
