package pocketdraft.app

import android.app.Activity
import android.os.Bundle
import android.widget.TextView
import dev.pocketdraft.demo.R
import pocketdraft.core.Backend
import pocketdraft.engines.missing

/** Placeholder: says which backends this build runs. */
class MainActivity : Activity() {
    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        val backends = Backend.entries.joinToString("\n") { missing(it) ?: "$it: loaded" }
        setContentView(TextView(this).apply { text = "${getString(R.string.app_name)}\n$backends" })
    }
}
