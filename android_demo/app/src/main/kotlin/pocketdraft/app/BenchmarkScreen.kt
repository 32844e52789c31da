package pocketdraft.app

import android.content.Context
import android.view.View
import android.widget.ScrollView
import java.io.File
import pocketdraft.core.Backend
import pocketdraft.core.DomainResult

/** The standard prompts, plain and drafted in turn; and the profile that `pocketdraft tune` takes. */
class BenchmarkScreen(private val context: Context, private val demo: Demo, private val save: (File) -> Unit) : Screen {
    private val start = context.button(context.getString(R.string.start_benchmark)) { demo.benchmark() }
    private val export = context.button(context.getString(R.string.save_profile)) { demo.profile?.let(save) }
    private val vendor = context.button(context.getString(R.string.measure_litert_lm)) { demo.benchmarkLiteRTLM() }
    private val vendorResult = context.label("", TextSize.SMALL)
    private val table = context.column()
    override val view: View = context.column(
        context.title(context.getString(R.string.benchmark)),
        context.label(context.getString(R.string.benchmark_explained), TextSize.SMALL, R.color.muted),
        context.row(start.stretched(), export.stretched()),
        vendor,
        vendorResult,
        ScrollView(context).apply { addView(table) }.stretched(vertical = true),
    )
    private var shown: List<DomainResult>? = null

    override fun refresh() {
        start.isEnabled = demo.opened != null && demo.doing == null
        export.isEnabled = demo.profile != null
        val manifest = demo.opened?.manifest
        vendor.shownIf(manifest?.backend == Backend.LITERT)
        vendor.isEnabled = demo.doing == null
        val speeds = demo.liteRTLM[manifest?.folder]
        vendorResult.text = speeds?.let { (plain, drafted) -> context.getString(R.string.litert_lm_line, plain, drafted) }
        vendorResult.shownIf(speeds != null)
        if (demo.results == shown) return
        shown = demo.results
        table.show(demo.results.map(::card))
    }

    private fun card(result: DomainResult): View {
        val fastest = maxOf(result.plainTokensPerSecond, result.draftedTokensPerSecond)
        fun line(speed: Double) = context.getString(R.string.speed, speed)
        return context.card(
            context.label(context.getString(R.string.domain_line, result.domain, result.ratio, result.stats.acceptedPerRound)),
            context.bar(result.draftedTokensPerSecond / fastest, R.color.accent, line(result.draftedTokensPerSecond)),
            context.bar(result.plainTokensPerSecond / fastest, R.color.muted, line(result.plainTokensPerSecond)),
            context.label(
                context.getString(if (result.identical) R.string.same_tokens else R.string.other_tokens),
                TextSize.SMALL,
                R.color.muted,
            ),
        )
    }
}
