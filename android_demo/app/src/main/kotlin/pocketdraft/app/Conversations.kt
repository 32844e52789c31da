package pocketdraft.app

import com.google.gson.Gson
import java.io.File
import pocketdraft.core.Manifest

/** What was said with each bundle, as JSON lists. */
class Conversations(private val folder: File) {
    fun read(manifest: Manifest): List<String> {
        val file = file(manifest)
        if (!file.isFile) return emptyList()
        // What cannot be read any more is an empty conversation: there is nothing else to be done about it.
        val said = runCatching { Gson().fromJson(file.readText(), Array<String>::class.java)?.filterNotNull() }.getOrNull()
        return said?.takeIf { it.size % 2 == 0 } ?: emptyList()
    }

    fun write(manifest: Manifest, said: List<String>) {
        val partial = File(folder, "${file(manifest).name}.partial")
        partial.writeText(Gson().toJson(said))
        partial.renameTo(file(manifest))
    }

    private fun file(manifest: Manifest) = File(folder, "${manifest.folder.name}.json")
}
