"""Tables of what others measured or reported, for the report."""

from __future__ import annotations

from collections.abc import Sequence

from .pages import Section, Table
from .profile import Profile, Speed
from .results import Imported


def imported(rows: Sequence[Imported]) -> Table:
    columns = ("tool", "model", "what", "rows", "drafts", "tokens/s", "prefill/s", "first token, ms", "accepted")
    shown = tuple(
        (
            row.tool,
            row.model,
            row.what,
            str(row.batch),
            _or_blank(row.drafts, "{:d}"),
            _or_blank(row.tokens_per_s, "{:,.1f}"),
            _or_blank(row.prefill_tokens_per_s, "{:,.1f}"),
            _or_blank(row.first_token_s and 1e3 * row.first_token_s, "{:,.1f}"),
            _or_blank(row.accepted_per_round, "{:.2f}"),
        )
        for row in rows
    )
    return Table("Other programs' figures", columns, shown, open=True)


def reported(profiles: Sequence[Profile]) -> Section:
    rows = tuple(_speed(profile, speed) for profile in profiles for speed in profile.speeds)
    columns = ("device", "source", "model", "drafts", "rows", "plain/s", "drafted/s", "ratio", "note")
    text = "By device profiles. What is marked reported comes from others and was not measured by this project."
    return Section("Devices", text, tables=(Table("Speeds by device", columns, rows, open=True),))


def _speed(profile: Profile, speed: Speed) -> tuple[str, ...]:
    note = [f"{speed.note}"] if speed.note else []
    if speed.acceptance_by_position and profile.origin == "reported":
        note.append("accepted " + " / ".join(f"{share:.3f}" for share in speed.acceptance_by_position))
    return (
        profile.device.name,
        profile.source if profile.origin == "measured" else f"reported: {profile.source}",
        speed.model,
        _or_blank(speed.drafts, "{:d}"),
        str(speed.batch),
        _or_blank(speed.plain_tokens_per_s, "{:,.2f}"),
        _or_blank(speed.tokens_per_s, "{:,.2f}"),
        _or_blank(speed.gain, "{:.2f}"),
        "; ".join(note),
    )


def _or_blank(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
