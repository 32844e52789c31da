package pocketdraft.core

import java.io.File

/** A chat template as plain strings: `runtime/chat_turns.py`. */
data class ChatTurns(val opening: String, val answer: String, val next: String) {
    /** User and model in turn, the user last: up to where the answer is to begin. */
    fun render(said: List<String>): String =
        said.foldIndexed(opening) { index, before, text -> before + text + if (index % 2 == 0) answer else next }

    companion object {
        const val FILE = "chat_turns.json"

        /** Those of the bundle, or null: then it only continues texts. */
        fun read(manifest: Manifest): ChatTurns? {
            if (FILE !in manifest.files) return null
            val file = File(manifest.folder, FILE)
            val root = Record.parse(file.readText()) { place, fault ->
                PocketdraftError("$file is damaged at $place ($fault); export the bundle again.")
            }
            return ChatTurns(root.text("opening"), root.text("answer"), root.text("next"))
        }
    }
}

/** A piece of an answer: its text, and which of its tokens were drafted and accepted. */
data class Piece(val text: String, val drafted: Boolean)

/**
 * A conversation over one sequence: each turn runs only what the turns before have not. Without [turns] there are no
 * roles: what is said is continued.
 */
class Chat(private val session: Session, private val turns: ChatTurns?, private val tokenizer: Tokenizer) {
    /** User and model in turn. */
    val said = ArrayList<String>()
    val stats get() = session.stats
    private var text = ""
    private var tokens = emptyList<Int>() // the conversation up to the last answer's end

    /**
     * The answer to [question], of up to [budget] tokens, piece by piece. Stopped early, what was said until then is
     * the answer. Throws [PocketdraftError] where the conversation does not fit, and is then as it was before.
     */
    fun ask(question: String, budget: Int, stopped: () -> Boolean, onPiece: (Piece) -> Unit) {
        val asked = if (turns == null) question else question.trim()
        val rendered = turns?.render(said + asked) ?: (said + asked).joinToString("")
        val prompt = encode(rendered)
        session.begin(session.rewind(prompt), budget)
        val stream = tokenizer.stream()
        try {
            while (session.context.finish == null && !stopped()) {
                val emitted = session.round()
                emitted.tokens.forEachIndexed { index, token ->
                    val ends = emitted.finish == Finish.STOP && index == emitted.tokens.lastIndex
                    if (!ends) piece(stream.feed(token), index < emitted.drafted, onPiece)
                }
            }
            piece(stream.finish(), false, onPiece)
        } finally {
            val answer = session.context.tokens.drop(prompt.size).toMutableList()
            if (session.context.finish == Finish.STOP) answer.removeLast() // the template spells it
            val spelled = tokenizer.decode(answer, withSpecial = true)
            said += listOf(asked, spelled)
            text = rendered + spelled
            tokens = prompt + answer
        }
    }

    /** Goes on from what was said [earlier], user and model in turn. */
    fun resume(earlier: List<String>) {
        if (said == earlier) return
        said.clear()
        said += earlier
        text = ""
        tokens = emptyList()
    }

    private fun piece(text: String, drafted: Boolean, onPiece: (Piece) -> Unit) {
        if (text.isNotEmpty()) onPiece(Piece(text, drafted))
    }

    /** Where the text goes on from the last answer, that one's tokens stay those that the target chose. */
    private fun encode(rendered: String): List<Int> {
        if (text.isNotEmpty() && rendered.startsWith(text)) return tokens + tokenizer.encodeRendered(rendered.drop(text.length))
        return if (turns == null) tokenizer.encode(rendered) else tokenizer.encodeRendered(rendered)
    }
}
