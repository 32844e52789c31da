package pocketdraft.app

import android.content.Context
import android.text.InputType
import android.text.SpannableStringBuilder
import android.text.Spanned
import android.text.style.BackgroundColorSpan
import android.text.style.UnderlineSpan
import android.view.View
import android.view.inputmethod.EditorInfo
import android.widget.CheckBox
import android.widget.EditText
import android.widget.ScrollView
import pocketdraft.core.Piece

/** The conversation: answers in the colours of who wrote their tokens, beside plain decoding's if that is wanted. */
class ChatScreen(private val context: Context, private val demo: Demo) : Screen {
    private val speculation = context.label("", TextSize.SMALL, R.color.muted)
    private val exchanges = context.column()
    private val scroll = ScrollView(context).apply { addView(exchanges) }
    private val compare = CheckBox(context).apply {
        id = R.id.compare // what has an id survives a rotation
        text = context.getString(R.string.compare)
        textSize = TextSize.SMALL
        isChecked = true
    }
    private val question = EditText(context).apply {
        id = R.id.question
        inputType = InputType.TYPE_CLASS_TEXT or InputType.TYPE_TEXT_FLAG_CAP_SENTENCES
        setHorizontallyScrolling(false)
        hint = context.getString(R.string.ask)
        textSize = TextSize.BODY
        imeOptions = EditorInfo.IME_ACTION_SEND
        maxLines = 4
        setOnEditorActionListener { _, action, _ -> (action == EditorInfo.IME_ACTION_SEND).also { if (it) send() } }
    }
    private val sendButton = context.button(context.getString(R.string.send)) { send() }
    private val again = context.button(context.getString(R.string.new_conversation)) { demo.newConversation() }
    private val drafter = context.button("") { demo.nextDrafter() }
    private var cards = emptyList<ExchangeCard>()

    override val view: View = context.column(
        context.title(context.getString(R.string.chat)),
        speculation,
        scroll.stretched(vertical = true),
        context.row(compare.stretched(), drafter, again),
        context.row(question.stretched(), sendButton),
    )

    override fun refresh() {
        val opened = demo.opened
        val off = opened?.offBecause
        speculation.text = when {
            opened == null -> context.getString(R.string.no_bundle)
            off != null -> context.getString(R.string.speculation_off, off)
            opened.turns == null -> context.getString(R.string.continues, opened.drafts)
            else -> context.getString(R.string.speculation_on, opened.drafts)
        }
        compare.isEnabled = off == null
        sendButton.isEnabled = opened != null && demo.doing == null
        again.isEnabled = opened != null && demo.doing == null
        drafter.shownIf(opened != null)
        drafter.isEnabled = demo.doing == null
        drafter.text = opened?.drafter
        drafter.contentDescription = context.getString(R.string.drafter_named, opened?.drafter)
        val follows = !scroll.canScrollVertically(1)
        if (cards.map { it.exchange } != demo.exchanges) {
            val known = cards.associateBy { it.exchange }
            cards = demo.exchanges.map { known[it] ?: ExchangeCard(context, it) }
            exchanges.show(cards.map { it.view })
        }
        cards.lastOrNull()?.refresh()
        if (follows) scroll.post { scroll.scrollTo(0, exchanges.height) }
    }

    private fun send() {
        val text = question.text.toString()
        if (text.isBlank() || !sendButton.isEnabled) return
        question.text.clear()
        demo.ask(text, compare.isChecked && compare.isEnabled)
    }
}

/** One question and its answers, side by side. */
private class ExchangeCard(private val context: Context, val exchange: Exchange) {
    private val drafted = AnswerColumn(context, exchange.drafted, R.string.drafted, R.color.accent)
    private val plain = exchange.plain?.let { AnswerColumn(context, it, R.string.plain, R.color.muted) }
    private val verdict = context.label("", TextSize.SMALL, R.color.muted)
    val view: View = context.card(
        context.label(exchange.question, color = R.color.muted),
        context.row(*listOfNotNull(drafted.view, plain?.view).toTypedArray()),
        verdict,
    )

    init {
        refresh()
    }

    fun refresh() {
        val fastest = maxOf(exchange.drafted.speed, exchange.plain?.speed ?: 0.0)
        drafted.refresh(fastest)
        plain?.refresh(fastest)
        val other = exchange.plain?.text
        verdict.text = when {
            other.isNullOrEmpty() -> ""
            other == exchange.drafted.text -> context.getString(R.string.same_text, exchange.drafted.speed / exchange.plain.speed)
            exchange.drafted.text.startsWith(other) -> ""
            else -> context.getString(R.string.other_text)
        }
    }
}

private class AnswerColumn(private val context: Context, private val answer: Answer, name: Int, private val color: Int) {
    private val name = context.getString(name)
    private val text = context.label("").apply { setTextIsSelectable(true) }
    private val speed = context.column()
    val view: View = context.column(context.label(this.name, TextSize.SMALL, color), text, speed).stretched()
        .apply { setPadding(0, 0, context.pixels(8), 0) }
    private val styled = SpannableStringBuilder()
    private var shown = 0

    fun refresh(fastest: Double) {
        while (shown < answer.pieces.size) append(answer.pieces[shown++])
        text.text = styled
        if (answer.speed == 0.0) return
        val line = context.getString(R.string.speed, answer.speed)
        val accepted = context.getString(R.string.accepted, answer.acceptedPerRound)
        val drafts = answer.pieces.any { it.drafted }
        speed.show(
            listOfNotNull(
                context.bar(answer.speed / fastest, color, line),
                if (drafts) context.label(accepted, TextSize.SMALL, R.color.muted) else null,
            ),
        )
        speed.contentDescription = listOf(name, line, if (drafts) accepted else "").joinToString(", ")
    }

    /** Accepted drafts have a ground of their own; the target's own tokens are underlined, for eyes that see no colour. */
    private fun append(piece: Piece) {
        val start = styled.length
        styled.append(piece.text)
        val style = if (piece.drafted) BackgroundColorSpan(context.getColor(R.color.accepted)) else UnderlineSpan()
        if (color == R.color.accent) styled.setSpan(style, start, styled.length, Spanned.SPAN_EXCLUSIVE_EXCLUSIVE)
    }
}
