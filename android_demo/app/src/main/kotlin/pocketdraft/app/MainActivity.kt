package pocketdraft.app

import android.app.Activity
import android.content.ActivityNotFoundException
import android.content.Intent
import android.net.Uri
import android.os.Bundle
import android.view.View
import android.view.WindowManager
import android.widget.FrameLayout
import android.widget.LinearLayout
import android.widget.TextView
import java.io.File
import java.io.IOException

/** What the app shows; each screen draws itself anew from the demo's state. */
interface Screen {
    val view: View

    fun refresh()
}

/** The one Activity: a screen, what is being done, and the way to the other screens. All that lasts is in [Demo]. */
class MainActivity : Activity() {
    private val demo get() = (application as DemoApp).demo
    private lateinit var screens: List<Pair<Int, Screen>>
    private lateinit var place: FrameLayout
    private lateinit var status: TextView
    private lateinit var stop: View
    private var shown = 0

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        screens = listOf(
            R.string.bundles to BundleScreen(this, demo, ::pickFolder),
            R.string.chat to ChatScreen(this, demo),
            R.string.benchmark to BenchmarkScreen(this, demo, ::saveProfile),
            R.string.about to AboutScreen(this, demo),
        )
        place = FrameLayout(this)
        status = label("", TextSize.SMALL, R.color.accent).apply {
            accessibilityLiveRegion = View.ACCESSIBILITY_LIVE_REGION_POLITE
        }
        stop = button(getString(R.string.stop)) { demo.stop() }
        val tabs = screens.mapIndexed { index, (name, _) -> button(getString(name)) { select(index) }.stretched() }
        val root = column(
            place.stretched(vertical = true),
            row(status.stretched(), stop),
            row(*tabs.toTypedArray()),
        )
        root.setPadding(pixels(16), pixels(16), pixels(16), pixels(8))
        setContentView(root)
        select(state?.getInt(SHOWN) ?: 0)
        if (state == null) obey(intent)
    }

    override fun onNewIntent(intent: Intent) {
        super.onNewIntent(intent)
        obey(intent)
    }

    override fun onStart() {
        super.onStart()
        demo.onChange = ::refresh
        refresh()
    }

    override fun onStop() {
        demo.onChange = {}
        super.onStop()
    }

    override fun onSaveInstanceState(state: Bundle) {
        super.onSaveInstanceState(state)
        state.putInt(SHOWN, shown)
    }

    @Deprecated("the platform's own way, without a library")
    override fun onActivityResult(request: Int, result: Int, data: Intent?) {
        val uri = data?.data?.takeIf { result == RESULT_OK } ?: return
        when (request) {
            PICK -> demo.bring(PickedFolder(contentResolver, uri))
            SAVE -> save(uri)
        }
    }

    /** `pocketdraft phone-bench` names a bundle and a run. */
    private fun obey(intent: Intent) {
        val bundle = intent.getStringExtra("benchmark") ?: return
        val run = intent.getStringExtra("run") ?: return
        // It becomes a file's name.
        if (run.all { it.isLetterOrDigit() || it == '-' }) demo.benchmark(bundle, run)
        select(screens.indexOfFirst { it.second is BenchmarkScreen })
    }

    private fun select(index: Int) {
        shown = index
        place.removeAllViews()
        place.addView(screens[index].second.view)
        title = getString(screens[index].first)
        refresh()
    }

    private fun refresh() {
        screens[shown].second.refresh()
        status.text = demo.doing ?: demo.message ?: ""
        stop.shownIf(demo.doing != null)
        // Generation goes on as long as somebody looks at it.
        val awake = WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON
        if (demo.doing != null) window.addFlags(awake) else window.clearFlags(awake)
    }

    private fun pickFolder() = ask(Intent(Intent.ACTION_OPEN_DOCUMENT_TREE), PICK)

    private fun saveProfile(file: File) {
        val intent = Intent(Intent.ACTION_CREATE_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE)
        ask(intent.setType("application/json").putExtra(Intent.EXTRA_TITLE, file.name), SAVE)
    }

    @Suppress("DEPRECATION")
    private fun ask(intent: Intent, request: Int) = try {
        startActivityForResult(intent, request)
    } catch (error: ActivityNotFoundException) {
        demo.tell(getString(R.string.no_file_picker))
    }

    private fun save(uri: Uri) {
        val profile = demo.profile ?: return
        try {
            contentResolver.openOutputStream(uri)?.use { out -> profile.inputStream().use { it.copyTo(out) } }
        } catch (error: IOException) {
            demo.tell(getString(R.string.cannot_read, error.message ?: ""))
        }
    }

    private companion object {
        const val SHOWN = "shown"
        const val PICK = 1
        const val SAVE = 2
    }
}
