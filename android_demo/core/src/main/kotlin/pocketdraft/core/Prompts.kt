package pocketdraft.core

/** A prompt of the standard set, or of the user's own: `runtime/prompts.py`. */
data class Prompt(val text: String, val domain: String) {
    companion object {
        /** One JSON object a line; the first [perDomain] of each domain. Throws [PocketdraftError] naming the line. */
        fun parse(lines: Sequence<String>, perDomain: Int = Int.MAX_VALUE): List<Prompt> {
            val taken = HashMap<String, Int>()
            val prompts = lines.mapIndexed { index, line -> index + 1 to line }.filter { (_, line) -> line.isNotBlank() }
                .map { (number, line) -> parse(number, line) }
                .filter { taken.merge(it.domain, 1, Int::plus)!! <= perDomain }
                .toList()
            return prompts.ifEmpty { throw PocketdraftError("There is no prompt; each line is an object with `text`.") }
        }

        private fun parse(number: Int, line: String): Prompt {
            val record = Record.parse(line) { place, fault ->
                PocketdraftError("Line $number is no prompt ($place: $fault); each line is an object with `text`.")
            }
            return Prompt(record.text("text"), if (record.isNull("domain")) "own" else record.text("domain"))
        }
    }
}
