package pocketdraft.core

import java.io.ByteArrayOutputStream

/** Tokens' spellings to text. */
internal fun interface TokenDecoder {
    fun decode(spellings: List<String>): String

    companion object {
        fun of(record: Record?): TokenDecoder {
            val steps = steps(record)
            return TokenDecoder { spellings -> steps.fold(spellings) { pieces, step -> step(pieces) }.joinToString("") }
        }

        private fun steps(record: Record?): List<(List<String>) -> List<String>> = when (val type = record?.text("type")) {
            null -> emptyList()
            "Sequence" -> record.records("decoders").flatMap(::steps)
            "ByteLevel" -> listOf { pieces -> listOf(ByteSpelling.text(pieces.joinToString(""))) }
            "Replace" -> {
                val from = record.record("pattern").text("String")
                val to = record.text("content")
                listOf { pieces -> pieces.map { it.replace(from, to) } }
            }
            "ByteFallback" -> listOf(::joinBytes)
            "Fuse" -> listOf { pieces -> listOf(pieces.joinToString("")) }
            "Strip" -> listOf(stripped(record.text("content"), record.int("start"), record.int("stop")))
            else -> throw unsupported("decoder", type)
        }

        private fun stripped(content: String, start: Int, stop: Int) = { pieces: List<String> ->
            pieces.map { piece ->
                var text = piece
                repeat(start) { text = text.removePrefix(content) }
                repeat(stop) { text = text.removeSuffix(content) }
                text
            }
        }

        /** Runs of byte tokens to text; a run that is no UTF-8 becomes one U+FFFD a byte. */
        private fun joinBytes(pieces: List<String>): List<String> {
            val joined = ArrayList<String>()
            val run = ByteArrayOutputStream()
            fun flush() {
                if (run.size() == 0) return
                val bytes = run.toByteArray()
                joined += runCatching { bytes.decodeToString(throwOnInvalidSequence = true) }.getOrElse { "\uFFFD".repeat(bytes.size) }
                run.reset()
            }
            for (piece in pieces) {
                val byte = byteOf(piece)
                if (byte == null) {
                    flush()
                    joined += piece
                } else {
                    run.write(byte)
                }
            }
            flush()
            return joined
        }
    }
}

/** The byte that a token such as `<0xE2>` stands for. */
internal fun byteOf(spelling: String): Int? =
    if (spelling.length == 6 && spelling.startsWith("<0x") && spelling.endsWith(">")) spelling.substring(3, 5).toIntOrNull(16) else null

/** GPT-2's spelling of bytes by printable characters. */
internal object ByteSpelling {
    private val characters = CharArray(256)
    private val bytes = HashMap<Char, Int>()

    init {
        var spare = 256
        for (byte in 0..255) {
            val printable = byte in 33..126 || byte in 161..172 || byte in 174..255
            characters[byte] = if (printable) byte.toChar() else (spare++).toChar()
            bytes[characters[byte]] = byte
        }
    }

    fun of(text: String): String = text.toByteArray().map { characters[it.toInt() and 0xff] }.joinToString("")

    /** Bytes that are no UTF-8 become U+FFFD. What is no spelling of a byte stays as it is. */
    fun text(spelling: String): String {
        val out = ByteArrayOutputStream()
        for (character in spelling) {
            bytes[character]?.let(out::write) ?: out.write(character.toString().toByteArray())
        }
        return out.toByteArray().decodeToString()
    }
}

/**
 * Gives text as soon as it is final; all pieces and [finish] together are the text decoded at once.
 *
 * A token may end inside a character. A run of byte tokens becomes U+FFFD if a later byte spoils it: it is held back
 * until it has ended.
 */
class TextStream internal constructor(private val tokenizer: Tokenizer) {
    private var before = emptyList<Int>() // tokens of the last piece: decoders may look one token back
    private val held = ArrayList<Int>()

    fun feed(token: Int): String {
        if (tokenizer.isSpecial(token)) return ""
        held += token
        if (byteOf(tokenizer.spelling(token)) != null || tokenizer.decode(held).endsWith('\uFFFD')) return ""
        return finish()
    }

    /** What is held back, as it is: U+FFFD where a character was cut. */
    fun finish(): String {
        val piece = tokenizer.decode(before + held).substring(tokenizer.decode(before).length)
        before = held.toList()
        held.clear()
        return piece
    }
}
