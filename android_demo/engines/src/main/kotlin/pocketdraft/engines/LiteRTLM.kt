package pocketdraft.engines

import java.io.ByteArrayOutputStream
import java.io.File
import java.util.concurrent.CountDownLatch
import pocketdraft.core.Backend
import pocketdraft.core.PocketdraftError

/** LiteRT-LM's C API; see `litert_lm_jni.c`. Results are native addresses; a failure is a RuntimeException. */
internal object LiteRTLMNative {
    external fun engine(file: String, threads: Int, speculate: Boolean, cache: String): Long
    external fun closeEngine(engine: Long)
    external fun session(engine: Long, budget: Int): Long
    external fun closeSession(session: Long)
    external fun prefill(session: Long, utf8: ByteArray)
    external fun decode(session: Long, listener: LiteRTLMListener): Long
    external fun release(listener: Long)
    external fun cancel(session: Long)
    external fun benchmark(session: Long): DoubleArray
}

/** Called from a thread of LiteRT-LM's own: text in UTF-8, or why there is no more of it. */
internal interface LiteRTLMListener {
    fun onChunk(text: ByteArray?, error: ByteArray?, last: Boolean)
}

/**
 * What LiteRT-LM made of a prompt: [tokens] and [tokensPerSecond] as it counts them, [chunks] of text as they came.
 *
 * With speculation a chunk is one verified draft; LiteRT-LM tells its rate of acceptance to nobody but its log.
 */
data class LiteRTLMReply(val text: String, val tokens: Int, val tokensPerSecond: Double, val chunks: Int)

/**
 * Google's LiteRT-LM on a bundle's `model.litertlm`: the loop that we did not write, to hold ours against.
 *
 * It may overshoot the budget by up to a draft, ends a text at a NUL character and leaves a split character at the end
 * out or as U+FFFD. One generation at a time; only [cancel] may come from another thread.
 */
class LiteRTLM private constructor(private val file: File, private var engine: Long) : AutoCloseable {
    private val lock = Any()
    private var session = 0L

    /**
     * Greedily continues [text], with no template around it. [onText] sees what comes, on LiteRT-LM's thread, and must
     * not throw. Throws [PocketdraftError].
     */
    fun generate(text: String, maxTokens: Int, onText: (String) -> Unit = {}): LiteRTLMReply {
        if (engine == 0L) throw PocketdraftError("LiteRT-LM on $file is closed; open it again.")
        return failing {
            synchronized(lock) { session = LiteRTLMNative.session(engine, maxTokens) }
            try {
                LiteRTLMNative.prefill(session, text.encodeToByteArray())
                val stream = Stream(onText)
                val listener = LiteRTLMNative.decode(session, stream)
                try {
                    stream.await()
                } catch (interrupted: InterruptedException) {
                    LiteRTLMNative.cancel(session)
                    stream.await()
                    throw interrupted
                } finally {
                    LiteRTLMNative.release(listener)
                }
                reply(stream)
            } finally {
                synchronized(lock) {
                    LiteRTLMNative.closeSession(session)
                    session = 0L
                }
            }
        }
    }

    /** Ends the generation that runs, if one does; it returns what it has. */
    fun cancel() = synchronized(lock) { if (session != 0L) LiteRTLMNative.cancel(session) }

    override fun close() {
        if (engine != 0L) LiteRTLMNative.closeEngine(engine)
        engine = 0L
    }

    private fun reply(stream: Stream): LiteRTLMReply {
        stream.error?.let { throw RuntimeException(it) }
        val figures = LiteRTLMNative.benchmark(session)
        return LiteRTLMReply(
            stream.text,
            figures.firstOrNull()?.toInt() ?: 0,
            figures.lastOrNull() ?: 0.0,
            stream.chunks,
        )
    }

    private inline fun <T> failing(call: () -> T): T =
        native({ "LiteRT-LM cannot run $file: $it; export again." }, call)

    companion object {
        /**
         * Opens the `.litertlm` [file] on the CPU. [threads] 0 leaves the number to LiteRT-LM; [cache] is the folder
         * where it keeps weights that it has packed. Throws [PocketdraftError].
         */
        fun open(
            file: File,
            threads: Int,
            speculate: Boolean,
            cache: File,
            libraries: File? = System.getProperty(LIBRARIES_PROPERTY)?.let(::File),
        ): LiteRTLM {
            load(Backend.LITERT, libraries)
            val engine = native({ "LiteRT-LM cannot open $file: $it; export again." }) {
                LiteRTLMNative.engine(file.path, threads, speculate, cache.path)
            }
            return LiteRTLM(file, engine)
        }
    }
}

/** Puts chunks together; passes whole characters on. */
private class Stream(private val onText: (String) -> Unit) : LiteRTLMListener {
    private val received = ByteArrayOutputStream()
    private val done = CountDownLatch(1)
    private var told = 0
    var chunks = 0
        private set
    var error: String? = null
        private set
    val text: String get() = received.toString("UTF-8")

    override fun onChunk(text: ByteArray?, error: ByteArray?, last: Boolean) {
        try {
            if (text != null && text.isNotEmpty()) take(text)
            // A cancelled or full session ends with an error that is none.
            this.error = error?.decodeToString()?.takeUnless { "CANCELLED" in it || "Max number of tokens" in it }
        } finally {
            if (last || error != null) done.countDown()
        }
    }

    fun await() = done.await()

    private fun take(chunk: ByteArray) {
        chunks++
        received.write(chunk)
        val whole = text.trimEnd('\uFFFD')
        if (whole.length > told) onText(whole.substring(told))
        told = maxOf(told, whole.length)
    }
}
