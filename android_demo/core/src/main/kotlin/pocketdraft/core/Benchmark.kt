package pocketdraft.core

/** One generation: what it gave, and the time of its rounds, the prompt's prefill left out. */
class Run(val tokens: List<Int>, val seconds: Double) {
    val tokensPerSecond get() = tokens.size / seconds
}

/** Plain and drafted runs of one domain, in pairs, and what the drafted rounds gave. */
class DomainResult(val domain: String) {
    val plain = ArrayList<Run>()
    val drafted = ArrayList<Run>()
    val plainStats = Stats()
    val stats = Stats()

    val plainTokensPerSecond get() = median(plain.map { it.tokensPerSecond })
    val draftedTokensPerSecond get() = median(drafted.map { it.tokensPerSecond })

    /** Median over prompts of drafted over plain speed. */
    val ratio get() = median(drafted.zip(plain) { a, b -> a.tokensPerSecond / b.tokensPerSecond })

    /** The law: drafting changes no token. */
    val identical get() = drafted.map { it.tokens } == plain.map { it.tokens }
}

/**
 * Plain against drafted decoding by the bundle's default drafter, greedy, paired prompt by prompt and in turn, so that noise and heat hit both alike:
 * `runtime/bench.py`'s protocol.
 */
class Benchmark(
    private val target: Target,
    private val tokenizer: Tokenizer,
    private val prompts: List<Prompt>,
    private val drafts: Int,
    private val budget: Int = 64,
) {
    /** By domain; only whole pairs where [stopped] says to end. [progress] is told the share done and the last domain. */
    fun run(stopped: () -> Boolean, progress: (Double, DomainResult) -> Unit): List<DomainResult> {
        val found = LinkedHashMap<String, DomainResult>()
        val warmUp = DomainResult("")
        for ((index, prompt) in (listOf(prompts.first()) + prompts).withIndex()) {
            if (stopped()) break
            val result = if (index == 0) warmUp else found.getOrPut(prompt.domain) { DomainResult(prompt.domain) }
            val tokens = tokenizer.encode(prompt.text)
            val pair = listOf("none", target.engine.manifest.drafters.default)
            for (method in if (index % 2 == 0) pair else pair.reversed()) {
                val plain = method == "none"
                val stats = if (plain) result.plainStats else result.stats
                val run = generate(method, tokens, stats)
                if (plain) result.plain += run else result.drafted += run
            }
            progress(index.toDouble() / prompts.size, result)
        }
        return found.values.toList()
    }

    private fun generate(method: String, prompt: List<Int>, stats: Stats): Run {
        val session = Session.open(target, method, drafts, stats = stats)
        val before = stats.seconds.sum()
        val tokens = session.generate(prompt, budget).flatMap { it.tokens }.toList()
        stats.check()
        return Run(tokens, stats.seconds.sum() - before)
    }
}

/** Of a list that is not empty. */
fun median(values: List<Double>): Double = quantile(values, 0.5)

/** The linearly interpolated quantile, as numpy's. */
fun quantile(values: List<Double>, share: Double): Double {
    val sorted = values.sorted()
    val place = share * (sorted.size - 1)
    val low = place.toInt()
    val high = minOf(low + 1, sorted.size - 1)
    return sorted[low] + (place - low) * (sorted[high] - sorted[low])
}
