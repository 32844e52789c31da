package pocketdraft.app

import android.content.Context
import android.graphics.drawable.GradientDrawable
import android.view.Gravity
import android.view.View
import android.view.ViewGroup
import android.view.ViewGroup.LayoutParams.MATCH_PARENT
import android.view.ViewGroup.LayoutParams.WRAP_CONTENT
import android.widget.Button
import android.widget.LinearLayout
import android.widget.TextView

/** Sizes of text in sp, which follow the user's choice of font size. */
object TextSize {
    const val SMALL = 14f
    const val BODY = 18f
    const val TITLE = 24f
}

fun Context.pixels(dp: Int): Int = (dp * resources.displayMetrics.density).toInt()

fun Context.column(vararg children: View): LinearLayout = linear(LinearLayout.VERTICAL, children)

fun Context.row(vararg children: View): LinearLayout = linear(LinearLayout.HORIZONTAL, children)

private fun Context.linear(direction: Int, children: Array<out View>) = LinearLayout(this).apply {
    orientation = direction
    children.forEach(::addView)
}

fun Context.label(text: CharSequence, size: Float = TextSize.BODY, color: Int = R.color.text): TextView = TextView(this).apply {
    this.text = text
    textSize = size
    setTextColor(getColor(color))
}

/** A heading for TalkBack too. */
fun Context.title(text: CharSequence): TextView = label(text, TextSize.TITLE).apply {
    setPadding(0, pixels(8), 0, pixels(8))
    if (android.os.Build.VERSION.SDK_INT >= android.os.Build.VERSION_CODES.P) isAccessibilityHeading = true
}

fun Context.button(text: CharSequence, onClick: () -> Unit): Button = Button(this).apply {
    this.text = text
    textSize = TextSize.BODY
    isAllCaps = false
    minHeight = pixels(48) // what a finger needs
    setOnClickListener { onClick() }
}

/** A rounded surface of its own colour around a view. */
fun Context.card(vararg children: View): LinearLayout = column(*children).apply {
    background = GradientDrawable().apply {
        setColor(getColor(R.color.surface))
        cornerRadius = pixels(12).toFloat()
    }
    setPadding(pixels(16), pixels(12), pixels(16), pixels(12))
    layoutParams = LinearLayout.LayoutParams(MATCH_PARENT, WRAP_CONTENT).apply { bottomMargin = pixels(12) }
}

/** Takes its share of what is left in a row or column. */
fun <V : View> V.stretched(vertical: Boolean = false): V = apply {
    layoutParams = if (vertical) LinearLayout.LayoutParams(MATCH_PARENT, 0, 1f) else LinearLayout.LayoutParams(0, WRAP_CONTENT, 1f)
}

fun <V : View> V.shownIf(visible: Boolean): V = apply { visibility = if (visible) View.VISIBLE else View.GONE }

fun ViewGroup.show(children: List<View>) {
    removeAllViews()
    children.forEach(::addView)
}

/** A bar as long as [share] of the row, beside its label: how two speeds compare at a glance. */
fun Context.bar(share: Double, color: Int, text: String): View {
    val filled = View(this).apply {
        setBackgroundColor(getColor(color))
        importantForAccessibility = View.IMPORTANT_FOR_ACCESSIBILITY_NO
        layoutParams = LinearLayout.LayoutParams(0, pixels(14), share.toFloat().coerceIn(0.01f, 1f))
    }
    val empty = View(this).apply { layoutParams = LinearLayout.LayoutParams(0, pixels(14), 1f - share.toFloat().coerceIn(0f, 1f)) }
    return row(row(filled, empty).stretched(), label(text, TextSize.SMALL).apply { minWidth = pixels(110); gravity = Gravity.END })
        .apply { gravity = Gravity.CENTER_VERTICAL }
}
