package pocketdraft.app

import android.content.Context
import android.view.View
import android.widget.ScrollView
import java.io.File
import pocketdraft.core.Manifest
import pocketdraft.core.PocketdraftError

/** The bundles on the phone, and the way to bring another. */
class BundleScreen(private val context: Context, private val demo: Demo, private val pick: () -> Unit) : Screen {
    private val list = context.column()
    override val view: View = ScrollView(context).apply { addView(list) }
    private var shown: Pair<File?, Boolean>? = null

    override fun refresh() {
        // Folders are looked at anew where something was opened or done, not at each step of a copy.
        val state = demo.opened?.manifest?.folder to (demo.doing == null)
        if (state == shown) return
        shown = state
        val rows = demo.phone.bundles().map(::row).ifEmpty { listOf(context.card(context.label(context.getString(R.string.no_bundles)))) }
        list.show(
            listOf(context.title(context.getString(R.string.bundles))) + rows +
                context.button(context.getString(R.string.pick_folder)) { pick() },
        )
    }

    private fun row(folder: File): View {
        val isOpen = demo.opened?.manifest?.folder == folder
        val open = context.button(context.getString(if (isOpen) R.string.is_open else R.string.open)) { demo.open(folder) }
        open.isEnabled = !isOpen
        open.contentDescription = context.getString(R.string.open_named, folder.name)
        return context.card(
            context.label(folder.name),
            context.label(description(folder), TextSize.SMALL, R.color.muted),
            open,
        )
    }

    private fun description(folder: File): String = try {
        val manifest = Manifest.read(folder)
        val backend = manifest.backend.name.lowercase()
        context.getString(R.string.bundle_line, manifest.target, backend, manifest.bytes / 1e6, manifest.contextLength)
    } catch (error: PocketdraftError) {
        error.message ?: ""
    }
}
