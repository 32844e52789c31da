package pocketdraft.engines

import java.io.File
import java.nio.file.Files
import kotlin.math.abs
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import pocketdraft.core.Manifest
import pocketdraft.core.PocketdraftError
import pocketdraft.core.Tokenizer

/** Bundles of the embedded pair, one a backend: without this property there is nothing to run. */
val BUNDLES: List<File> = System.getProperty("pocketdraft.bundles").orEmpty().split(File.pathSeparator)
    .filter { it.isNotEmpty() }.map(::File)

const val TEXT = "import os\n\nclass Path:\n    def __init__(self, "

fun tokenizer(manifest: Manifest) = Tokenizer.read(File(manifest.folder, "tokenizer.json"), manifest.bos)

/** A copy of the bundle that may be damaged; it goes when the JVM does. */
fun copied(bundle: File): File {
    val copy = Files.createTempDirectory("pocketdraft-test-").toFile()
    bundle.copyRecursively(copy)
    Runtime.getRuntime().addShutdownHook(Thread { copy.deleteRecursively() })
    return copy
}

/** Asserts that [call] is refused in one sentence with these [words] in it. */
fun assertRefused(vararg words: String, call: () -> Any?) {
    val message = assertThrows(PocketdraftError::class.java) { call() }.message.orEmpty()
    words.forEach { assertTrue("'$it' is not in: $message", it in message) }
}

fun difference(one: FloatArray, other: FloatArray): Float = one.indices.maxOf { abs(one[it] - other[it]) }
