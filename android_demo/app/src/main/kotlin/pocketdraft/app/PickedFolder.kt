package pocketdraft.app

import android.content.ContentResolver
import android.net.Uri
import android.provider.DocumentsContract
import android.provider.DocumentsContract.Document
import java.io.File
import pocketdraft.core.MANIFEST_NAME
import pocketdraft.core.PocketdraftError

/** A folder that was chosen in the system's file picker. */
class PickedFolder(private val resolver: ContentResolver, private val tree: Uri) {
    private class Entry(val id: String, val name: String, val size: Long)

    val name: String get() = DocumentsContract.getTreeDocumentId(tree).substringAfterLast('/').substringAfterLast(':')

    /** Copies its files to a folder of the same name in [place], which appears whole or not at all. */
    fun copyTo(place: File, stopped: () -> Boolean, progress: (Double) -> Unit): File {
        val entries = entries()
        if (entries.none { it.name == MANIFEST_NAME }) {
            throw PocketdraftError("$name is no bundle: it has no $MANIFEST_NAME; pick the folder that `pocketdraft export` made.")
        }
        val total = entries.sumOf { it.size }
        place.mkdirs()
        if (place.usableSpace < total) {
            throw PocketdraftError("$name has ${total / MEGA} MB, ${place.usableSpace / MEGA} MB are free; make room for it.")
        }
        val partial = File(place, ".$name.partial")
        partial.deleteRecursively()
        partial.mkdirs()
        try {
            var done = 0L
            for (entry in entries) done = copy(entry, File(partial, File(entry.name).name), done, total, stopped, progress)
            val folder = File(place, name)
            folder.deleteRecursively()
            if (!partial.renameTo(folder)) throw PocketdraftError("$folder cannot be written; restart the app and pick again.")
            return folder
        } finally {
            partial.deleteRecursively()
        }
    }

    private fun copy(entry: Entry, to: File, before: Long, total: Long, stopped: () -> Boolean, progress: (Double) -> Unit): Long {
        val uri = DocumentsContract.buildDocumentUriUsingTree(tree, entry.id)
        val from = resolver.openInputStream(uri) ?: throw PocketdraftError("${entry.name} cannot be read; pick the folder again.")
        var done = before
        val piece = ByteArray(1 shl 20)
        from.use { to.outputStream().use { out ->
            while (true) {
                if (stopped()) throw PocketdraftError("Copying $name was stopped; pick it again to go on.")
                val count = from.read(piece)
                if (count < 0) break
                out.write(piece, 0, count)
                done += count
                progress(done.toDouble() / total)
            }
        } }
        return done
    }

    private fun entries(): List<Entry> {
        val children = DocumentsContract.buildChildDocumentsUriUsingTree(tree, DocumentsContract.getTreeDocumentId(tree))
        val columns = arrayOf(Document.COLUMN_DOCUMENT_ID, Document.COLUMN_DISPLAY_NAME, Document.COLUMN_SIZE, Document.COLUMN_MIME_TYPE)
        val cursor = resolver.query(children, columns, null, null, null) ?: throw PocketdraftError("$name cannot be listed; pick it again.")
        return cursor.use {
            generateSequence { if (it.moveToNext()) it else null }
                .filter { row -> row.getString(3) != Document.MIME_TYPE_DIR }
                .map { row -> Entry(row.getString(0), row.getString(1), row.getLong(2)) }
                .toList()
        }
    }

    private companion object {
        const val MEGA = 1_000_000
    }
}
