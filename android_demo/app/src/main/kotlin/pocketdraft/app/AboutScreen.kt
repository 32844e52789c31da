package pocketdraft.app

import android.content.Context
import android.view.View
import android.widget.ScrollView

/** Versions and licences of what is inside, and what the open bundle is made of. */
class AboutScreen(private val context: Context, private val demo: Demo) : Screen {
    private val list = context.column()
    override val view: View = ScrollView(context).apply { addView(list) }

    override fun refresh() {
        val parts = demo.phone.runtimes().map { context.getString(R.string.part_line, it["name"].asString, it["version"].asString, it["licence"].asString) }
        val manifest = demo.opened?.manifest
        val bundle = manifest?.let {
            context.getString(R.string.bundle_about, it.target, it.sources.joinToString(), it.backend.name.lowercase(), it.recipe)
        }
        list.show(
            listOf(
                context.title(context.getString(R.string.about)),
                context.card(context.label(context.getString(R.string.about_text))),
                context.card(context.label(parts.joinToString("\n"), TextSize.SMALL)),
                context.card(context.label(bundle ?: context.getString(R.string.no_bundle), TextSize.SMALL)),
            ),
        )
    }
}
