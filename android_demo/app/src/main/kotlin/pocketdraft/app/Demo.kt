package pocketdraft.app

import android.os.Handler
import android.os.Looper
import java.io.File
import java.util.concurrent.Executors
import java.util.concurrent.atomic.AtomicReference
import pocketdraft.core.Benchmark
import pocketdraft.core.Chat
import pocketdraft.core.DomainResult
import pocketdraft.core.GraphTimer
import pocketdraft.core.Piece
import pocketdraft.core.PocketdraftError
import pocketdraft.core.Profile
import pocketdraft.core.Prompt
import pocketdraft.core.Stats
import pocketdraft.core.median
import pocketdraft.core.memoryBandwidth
import pocketdraft.engines.LiteRTLM

/** A question and what came of it, as it grows. [plain] is null where nobody compares. */
class Exchange(val question: String, compare: Boolean) {
    val drafted = Answer()
    val plain: Answer? = if (compare) Answer() else null
}

class Answer {
    val pieces = ArrayList<Piece>()
    var speed = 0.0 // tokens/s
    var acceptedPerRound = 0.0
    val text get() = pieces.joinToString("") { it.text }
}

/**
 * The app without its screens. Work runs on one thread of its own, one piece at a time; all that is read here changes on
 * the main thread, and [onChange] is called there.
 */
class Demo(val phone: Phone) {
    var opened: Opened? = null
        private set
    val exchanges = ArrayList<Exchange>()
    var results: List<DomainResult> = emptyList()
        private set
    var profile: File? = null
        private set

    /** By bundle: tokens/s of LiteRT-LM's own loop, plain and drafted. */
    val liteRTLM = HashMap<File, Pair<Double, Double>>()

    /** What is being done, or null; and what a user must be told, until the next work begins. */
    var doing: String? = null
        private set
    var message: String? = null
        private set
    var onChange: () -> Unit = {}

    private val main = Handler(Looper.getMainLooper())
    private val worker = Executors.newSingleThreadExecutor { Thread(it, "pocketdraft") }
    private var awaited = false
    private val stopReason = AtomicReference<String?>()

    fun open(folder: File, run: String? = null) = work(phone.text(R.string.opening, folder.name), run) {
        val before = opened
        show { forget() }
        before?.close()
        val bundle = Opened.open(folder, phone, THREADS) { share ->
            show { doing = phone.text(R.string.checking, folder.name, (share * 100).toInt()) }
        }
        show {
            opened = bundle
            bundle.drafted.said.chunked(2).forEach { (question, answer) ->
                exchanges += Exchange(question, false).apply { drafted.pieces += Piece(answer, false) }
            }
        }
    }

    /** Copies a bundle into the app's own folder, then opens it. */
    fun bring(from: PickedFolder) = work(phone.text(R.string.copying, from.name)) {
        val folder = from.copyTo(phone.copies, ::isStopped) { share ->
            show { doing = phone.text(R.string.copying_share, from.name, (share * 100).toInt()) }
        }
        main.post { open(folder) }
    }

    fun ask(question: String, compare: Boolean, budget: Int = ANSWER_TOKENS) = work(phone.text(R.string.answering)) {
        val bundle = opened ?: throw PocketdraftError(phone.text(R.string.no_bundle))
        val exchange = Exchange(question, compare)
        show { exchanges += exchange }
        answer(bundle.drafted, exchange.drafted, question, budget)
        bundle.save()
        if (exchange.plain != null && !isStopped()) {
            // The same conversation, decoded plainly: only this answer is new to it, or all that came before too.
            bundle.plain.resume(bundle.drafted.said.dropLast(2))
            answer(bundle.plain, exchange.plain, question, budget)
        }
    }

    /** Runs the standard prompts, or those of a tester's run called [run], and writes the profile. */
    fun benchmark(run: String? = null) = work(phone.text(R.string.benchmarking), run) {
        // A run's bundle that could not be opened has told why.
        val bundle = opened ?: if (run != null) return@work else throw PocketdraftError(phone.text(R.string.no_bundle))
        show { results = emptyList() }
        val prompts = Prompt.parse(phone.prompts(), PROMPTS_PER_DOMAIN)
        val bandwidth = memoryBandwidth(bundle.manifest, THREADS)
        val before = bundle.target.lookups to bundle.target.lookupsRun
        val found = Benchmark(bundle.target, bundle.tokenizer, prompts, bundle.measuredDrafts, BENCHMARK_TOKENS).run(::isStopped) { share, _ ->
            show { doing = phone.text(R.string.benchmarking_share, (share * 90).toInt()) }
            run?.let { Status.write(phone, it, "running", share * 0.9) }
        }
        val looked = (bundle.target.lookupsRun - before.second).toDouble() / maxOf(1, bundle.target.lookups - before.first)
        val timings = GraphTimer(bundle.target).time(::isStopped)
        if (isStopped()) return@work
        val writer = phone.profile(bundle.manifest, THREADS)
        val file = File(phone.results, "${run ?: bundle.manifest.folder.name}.profile.json")
        Profile.write(writer.toJson(timings, found, looked, bundle.measuredDrafts, bandwidth), file)
        show {
            results = found
            profile = file
        }
        run?.let { Status.write(phone, it, "done", 1.0) }
    }

    /** LiteRT-LM's own loop on the same prompts. Our engine makes room for it, and is opened again after. */
    fun benchmarkLiteRTLM() = work(phone.text(R.string.measuring_litert_lm)) {
        val bundle = opened ?: throw PocketdraftError(phone.text(R.string.no_bundle))
        val folder = bundle.manifest.folder
        val file = File(folder, bundle.manifest.parts.getValue("target").file)
        val prompts = Prompt.parse(phone.prompts(), PROMPTS_PER_DOMAIN)
        show { forget() }
        bundle.close()
        try {
            val (plain, drafted) = listOf(false, true).map { speculate -> liteRTLMSpeed(file, prompts, speculate) }
            show { liteRTLM[folder] = plain to drafted }
        } finally {
            main.post { open(folder) }
        }
    }

    private fun liteRTLMSpeed(file: File, prompts: List<Prompt>, speculate: Boolean): Double =
        LiteRTLM.open(file, THREADS, speculate, phone.cache).use { engine ->
            median(prompts.map { prompt ->
                if (isStopped()) throw PocketdraftError(phone.text(R.string.stopped))
                engine.generate(prompt.text, BENCHMARK_TOKENS).tokensPerSecond
            })
        }

    /** Opens a bundle and runs the benchmark: what `pocketdraft phone-bench` asks for. */
    fun benchmark(bundle: String, run: String) {
        Status.write(phone, run, "running", 0.0)
        val folder = phone.bundles().find { it.name == bundle }
        if (folder == null) {
            Status.write(phone, run, "failed", 0.0, phone.text(R.string.no_such_bundle, bundle))
            return
        }
        open(folder, run)
        benchmark(run)
    }

    /** Ends what runs at its next token, for [reason] if there is one to tell. */
    fun stop(reason: String = "") {
        stopReason.compareAndSet(null, reason)
    }

    /** For a user to read. */
    fun tell(words: String) = show { message = words }

    fun newConversation() = work(phone.text(R.string.opening, "")) {
        opened?.forget()
        show { exchanges.clear() }
    }

    fun nextDrafter() = work(phone.text(R.string.opening, "")) { opened?.nextDrafter() }

    private fun answer(chat: Chat, answer: Answer, question: String, budget: Int) {
        val before = Counts(chat.stats)
        chat.ask(question, budget, ::isStopped) { piece ->
            val so = Counts(chat.stats) - before
            show {
                answer.pieces += piece
                answer.speed = so.tokensPerSecond
                answer.acceptedPerRound = so.acceptedPerRound
            }
        }
    }

    private fun work(what: String, run: String? = null, task: () -> Unit) = worker.execute {
        stopReason.set(null)
        show {
            doing = what
            message = null
        }
        val failure = try {
            task()
            null
        } catch (error: PocketdraftError) {
            error.message
        } catch (error: OutOfMemoryError) {
            phone.text(R.string.out_of_memory)
        } catch (error: java.io.IOException) {
            phone.text(R.string.cannot_read, error.message ?: "")
        }
        val told = failure ?: stopReason.get()
        if (run != null && told != null) Status.write(phone, run, "failed", 0.0, told.ifEmpty { phone.text(R.string.stopped) })
        show {
            doing = null
            message = told?.ifEmpty { null }
        }
    }

    private fun forget() {
        opened = null
        exchanges.clear()
        results = emptyList()
        profile = null
    }

    private fun isStopped() = stopReason.get() != null

    /** Changes come one by one, screens are drawn anew once a frame: a small model says thousands of tokens a second. */
    private fun show(change: () -> Unit) {
        main.post {
            change()
            if (!awaited) main.postDelayed(::changed, FRAME_MS)
            awaited = true
        }
    }

    private fun changed() {
        awaited = false
        onChange()
    }

    private companion object {
        const val THREADS = 4
        const val FRAME_MS = 33L
        const val ANSWER_TOKENS = 256
        const val PROMPTS_PER_DOMAIN = 2
        const val BENCHMARK_TOKENS = 64
    }
}

/** Emitted tokens, seconds and accepted drafts of a session so far. */
private class Counts(private val emitted: Int, private val seconds: Double, private val accepted: Int, private val rounds: Int) {
    constructor(stats: Stats) : this(stats.emitted, stats.seconds.sum(), stats.accepted, stats.rounds)

    operator fun minus(other: Counts) =
        Counts(emitted - other.emitted, seconds - other.seconds, accepted - other.accepted, rounds - other.rounds)

    val tokensPerSecond get() = if (seconds > 0) emitted / seconds else 0.0
    val acceptedPerRound get() = if (rounds > 0) accepted.toDouble() / rounds else 0.0
}
