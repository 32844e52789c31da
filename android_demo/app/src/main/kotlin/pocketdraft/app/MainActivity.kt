package pocketdraft.app

import android.app.Activity
import android.os.Bundle
import android.widget.TextView
import dev.pocketdraft.demo.R
import pocketdraft.core.greeting
import pocketdraft.engines.Shim

/** Placeholder: says which native libraries load. */
class MainActivity : Activity() {
    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        val shims = Shim.entries.joinToString("\n") { "${it.library}: ${it.load() ?: "loaded"}" }
        setContentView(TextView(this).apply { text = "${greeting()}\n${getString(R.string.app_name)}\n$shims" })
    }
}
