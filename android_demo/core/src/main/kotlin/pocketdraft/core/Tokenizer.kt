package pocketdraft.core

import com.google.gson.JsonElement
import com.google.gson.JsonObject
import java.io.File
import java.util.PriorityQueue

/**
 * The bundle's `tokenizer.json`: Hugging Face's BPE with the parts that Gemma, Llama and GPT tokenizers are made of.
 *
 * No library reads that file on a phone and on a desktop alike. What this does not know is refused by name. [bos] is
 * put before every prompt.
 */
class Tokenizer private constructor(root: Record, private val bos: Int?) {
    private val model = root.record("model")
    private val ids: Map<String, Int>
    private val spellings = HashMap<Int, String>()
    private val ranks = HashMap<Pair<String, String>, Int>()
    private val byteFallback = model.flag("byte_fallback", false)
    private val ignoreMerges = model.flag("ignore_merges", false)
    private val unknown = model.textOrNull("unk_token")
    private val added: Map<String, Int>
    private val special: Set<Int>
    private val normalize = normalizer(root.recordOrNull("normalizer"))
    private val split = preTokenizer(root.recordOrNull("pre_tokenizer"))
    private val decoder = TokenDecoder.of(root.recordOrNull("decoder"))
    private val anyAdded: Regex?

    init {
        if (model.text("type") != "BPE") throw unsupported("model", model.text("type"))
        val vocabulary = model.raw("vocab") as JsonObject
        ids = vocabulary.entrySet().associate { (spelling, id) -> spelling to id.asInt }
        ids.forEach { (spelling, id) -> spellings[id] = spelling }
        model.array("merges").forEachIndexed { rank, merge -> ranks[pair(merge)] = rank }
        val entries = root.records("added_tokens")
        added = entries.associate { it.text("content") to it.int("id") }
        special = entries.filter { it.flag("special", false) }.map { it.int("id") }.toSet()
        added.forEach { (spelling, id) -> spellings[id] = spelling }
        anyAdded = added.keys.sortedByDescending { it.length }.joinToString("|", transform = Regex::escape)
            .takeIf { it.isNotEmpty() }?.toRegex()
    }

    /** Token ids of a prompt. Throws [PocketdraftError] if it is empty. */
    fun encode(text: String): List<Int> {
        val tokens = encodeRendered(text)
        if (tokens.isEmpty()) throw PocketdraftError("The prompt is empty; write some text.")
        return listOfNotNull(bos) + tokens
    }

    /** Token ids of a text that spells its own special tokens. */
    fun encodeRendered(text: String): List<Int> {
        val tokens = ArrayList<Int>()
        var end = 0
        for (match in anyAdded?.findAll(text) ?: emptySequence()) {
            tokens += encodePlain(text.substring(end, match.range.first))
            tokens += added.getValue(match.value)
            end = match.range.last + 1
        }
        return tokens + encodePlain(text.substring(end))
    }

    /** As it stands in the vocabulary; nothing for a token that it has not. */
    fun spelling(token: Int): String = spellings[token] ?: ""

    fun isSpecial(token: Int) = token in special

    /** Text of the tokens, with special tokens spelled out if wanted. */
    fun decode(tokens: List<Int>, withSpecial: Boolean = false): String {
        // An added token is no part of what the decoder joins.
        val text = StringBuilder()
        val run = ArrayList<String>()
        for (token in tokens) {
            if (token in special) {
                if (!withSpecial) continue
                text.append(decoder.decode(run)).append(spelling(token))
                run.clear()
            } else {
                run += spelling(token)
            }
        }
        return text.append(decoder.decode(run)).toString()
    }

    fun stream() = TextStream(this)

    private fun encodePlain(text: String): List<Int> =
        if (text.isEmpty()) emptyList() else split(normalize(text)).flatMap(::encodeWord)

    /** Merges the pair of the lowest rank, the leftmost of equal ones, until none is left. */
    private fun encodeWord(word: String): List<Int> {
        if (ignoreMerges) ids[word]?.let { return listOf(it) }
        val pieces = word.codePoints().toArray().map { String(Character.toChars(it)) }.toTypedArray<String?>()
        val next = IntArray(pieces.size) { it + 1 }
        val previous = IntArray(pieces.size) { it - 1 }
        val queue = PriorityQueue<Merge>()
        fun offer(left: Int) {
            val right = next.getOrElse(left) { pieces.size }
            if (left < 0 || right >= pieces.size) return
            val rank = ranks[pieces[left]!! to pieces[right]!!] ?: return
            queue += Merge(rank, left, pieces[left]!!, pieces[right]!!)
        }
        for (left in 0 until pieces.size - 1) offer(left)
        while (true) {
            val merge = queue.poll() ?: break
            val left = merge.at
            val right = next[left]
            if (pieces[left] != merge.left || right >= pieces.size || pieces[right] != merge.right) continue
            pieces[left] = merge.left + merge.right
            pieces[right] = null
            next[left] = next[right]
            if (next[left] < pieces.size) previous[next[left]] = left
            offer(previous[left])
            offer(left)
        }
        return pieces.filterNotNull().flatMap(::idsOf)
    }

    private fun idsOf(piece: String): List<Int> {
        ids[piece]?.let { return listOf(it) }
        if (byteFallback) {
            val bytes = piece.toByteArray().map { ids["<0x%02X>".format(it.toInt() and 0xff)] }
            if (null !in bytes) return bytes.filterNotNull()
        }
        return listOfNotNull(unknown?.let(ids::get))
    }

    private class Merge(val rank: Int, val at: Int, val left: String, val right: String) : Comparable<Merge> {
        override fun compareTo(other: Merge) = compareValuesBy(this, other, Merge::rank, Merge::at)
    }

    companion object {
        /** Throws [PocketdraftError] for a file that is no tokenizer, or of a kind that is not known here. */
        fun read(file: File, bos: Int?): Tokenizer {
            val root = Record.parse(file.readText()) { place, fault ->
                PocketdraftError("$file is not a tokenizer ($place: $fault); export the bundle again.")
            }
            return Tokenizer(root, bos)
        }

        private fun pair(merge: JsonElement): Pair<String, String> = if (merge.isJsonArray) {
            merge.asJsonArray[0].asString to merge.asJsonArray[1].asString
        } else {
            merge.asString.split(" ").let { (left, right) -> left to right }
        }
    }
}

internal fun unsupported(part: String, type: String) =
    PocketdraftError("The tokenizer's $part is $type, which this app does not know; run this bundle on a desktop.")

private fun normalizer(record: Record?): (String) -> String = when (val type = record?.text("type")) {
    null -> { text -> text }
    "Sequence" -> record.records("normalizers").map(::normalizer).let { all -> { text -> all.fold(text) { t, f -> f(t) } } }
    "Replace" -> pattern(record).let { from -> record.text("content").let { to -> { text -> text.replace(from) { to } } } }
    "Prepend" -> record.text("prepend").let { before -> { text -> before + text } }
    else -> throw unsupported("normalizer", type)
}

private fun preTokenizer(record: Record?): (String) -> List<String> = when (val type = record?.text("type")) {
    null -> { text -> listOf(text) }
    "Sequence" -> record.records("pretokenizers").map(::preTokenizer)
        .let { all -> { text -> all.fold(listOf(text)) { pieces, next -> pieces.flatMap(next) } } }
    "ByteLevel" -> byteLevel(record)
    "Digits" -> Regex(if (record.flag("individual_digits", false)) "\\p{N}" else "\\p{N}+").let { digits -> { cut(it, digits, "Isolated") } }
    "Split" -> splitter(record)
    else -> throw unsupported("pre-tokenizer", type)
}

private fun byteLevel(record: Record): (String) -> List<String> {
    val words = if (record.flag("use_regex", true)) GPT2_WORDS else null
    val prefix = record.flag("add_prefix_space", true)
    return { text ->
        val spaced = if (prefix && !text.startsWith(" ")) " $text" else text
        (if (words == null) listOf(spaced) else cut(spaced, words, "Isolated")).map(ByteSpelling::of)
    }
}

private fun splitter(record: Record): (String) -> List<String> {
    val behavior = record.text("behavior")
    if (record.flag("invert", false)) throw unsupported("pre-tokenizer", "an inverted Split")
    if (behavior !in setOf("Isolated", "MergedWithPrevious", "Removed")) throw unsupported("pre-tokenizer", "a Split $behavior")
    val pattern = pattern(record)
    return { text -> cut(text, pattern, behavior) }
}

/** The pieces between matches, and the matches: on their own, at the end of the piece before, or not at all. */
private fun cut(text: String, pattern: Regex, behavior: String): List<String> {
    val pieces = ArrayList<String>()
    var end = 0
    for (match in pattern.findAll(text)) {
        val before = text.substring(end, match.range.first)
        end = match.range.last + 1
        when (behavior) {
            "MergedWithPrevious" -> pieces += before + match.value
            "Removed" -> pieces += before
            else -> pieces += listOf(before, match.value)
        }
    }
    pieces += text.substring(end)
    return pieces.filter { it.isNotEmpty() }
}

private fun pattern(record: Record): Regex {
    val pattern = record.record("pattern")
    return if (pattern.isNull("Regex")) Regex.fromLiteral(pattern.text("String")) else unicode(pattern.text("Regex"))
}

/** `\s`, `\w` and the like over all of Unicode, which Android's expressions are anyway. */
private fun unicode(regex: String) = Regex("(?U)$regex".takeIf { ON_JVM } ?: regex)

private val ON_JVM = System.getProperty("java.vm.name") != "Dalvik"
private val GPT2_WORDS = unicode("'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+")
