package pocketdraft.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

class ChatTest {
    private val tokenizer = Tokenizer.read(java.io.File(Golden.folder, "../../export/tiny/target/tokenizer.json"), 2)
    private val turns = ChatTurns("<bos><|turn>user\n", "<turn|>\n<|turn>model\n", "<turn|>\n<|turn>user\n")

    @Test
    fun `a second turn runs only what the first has not, even where the answer would be cut otherwise now`() {
        val engine = Counting(tokenizer.encodeRendered("s").single(), 5)
        assertTrue(tokenizer.encodeRendered("sss").size < 3)
        val chat = Chat(Session.open(Target(engine), "none", 0), turns, tokenizer)
        val pieces = ArrayList<Piece>()
        chat.ask("hello", 3, { false }, pieces::add)
        assertEquals(listOf("hello", pieces.joinToString("") { it.text }), chat.said)
        val first = engine.written.size
        chat.ask("more", 2, { false }, {})
        assertEquals("sss", chat.said[1])
        assertTrue(tokenizer.decode(engine.sequence, true).startsWith(turns.render(listOf("hello", "sss", "more"))))
        // All but the last answer's pending token lay in the cache already.
        assertTrue(engine.written.drop(first).min() >= first - 1)
        assertEquals(4, chat.said.size)
    }

    @Test
    fun `stopped early, what was said until then is the answer`() {
        val chat = Chat(Session.open(Target(Counting(tokenizer.encodeRendered(" yes").first(), 5)), "none", 0), turns, tokenizer)
        var said = 0
        chat.ask("hello", 50, { said >= 2 }, { said++ })
        assertEquals(2, tokenizer.encodeRendered(chat.said[1]).size)
        chat.ask("more", 1, { false }, {})
        assertEquals(4, chat.said.size)
    }

    @Test
    fun `a question that does not fit leaves the conversation as it was`() {
        val chat = Chat(Session.open(Target(Counting(300, 5)), "none", 0), turns, tokenizer)
        assertThrows(PocketdraftError::class.java) { chat.ask("long ".repeat(500), 5, { false }, {}) }
        assertTrue(chat.said.isEmpty())
        chat.ask("short", 2, { false }, {})
        assertEquals(2, chat.said.size)
    }
}
