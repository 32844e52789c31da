package pocketdraft.core

import com.google.gson.JsonObject
import java.io.File
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

class TokenizerTest {
    @Test
    fun `tokens, text and stream are those of Hugging Face's tokenizers`() {
        for (recorded in Golden.read("texts")) {
            val tokenizer = tokenizer(recorded)
            for (case in recorded.getAsJsonArray("texts").map { it.asJsonObject }) {
                val tokens = case["tokens"].ints()
                assertEquals(tokens, tokenizer.encodeRendered(case["text"].asString))
                assertEquals(case["decoded"].asString, tokenizer.decode(tokens))
                assertEquals(case["spelled"].asString, tokenizer.decode(tokens, withSpecial = true))
                val stream = tokenizer.stream()
                assertEquals(case.getAsJsonArray("pieces").map { it.asString }, tokens.map(stream::feed) + stream.finish())
            }
            for (case in recorded.getAsJsonArray("broken").map { it.asJsonObject }) {
                assertEquals(case["decoded"].asString, tokenizer.decode(case["tokens"].ints()))
            }
        }
    }

    @Test
    fun `a long text without a space is merged in moments`() {
        val tokenizer = tokenizer(Golden.read("texts").first { it["name"].asString == "byte fallback" })
        val text = "hello ".repeat(20_000)
        assertEquals(text, tokenizer.decode(tokenizer.encodeRendered(text)))
    }

    @Test
    fun `a tokenizer of another kind is refused by name`() {
        val file = File.createTempFile("tokenizer", ".json")
        file.writeText("""{"model": {"type": "Unigram", "vocab": {}, "merges": []}, "added_tokens": []}""")
        val error = assertThrows(PocketdraftError::class.java) { Tokenizer.read(file, null) }
        assertTrue(error.message, "Unigram" in error.message!!)
        file.writeText("{")
        assertThrows(PocketdraftError::class.java) { Tokenizer.read(file, null) }
        file.delete()
    }

    private fun tokenizer(recorded: JsonObject): Tokenizer {
        val whole = recorded["tokenizer"]
        if (whole.isJsonNull) return Tokenizer.read(File(Golden.folder, "../../export/tiny/target/tokenizer.json"), null)
        val file = File.createTempFile("tokenizer", ".json")
        file.writeText(whole.toString())
        return Tokenizer.read(file, null).also { file.delete() }
    }
}
