"""Tables for people of what was measured: draft lengths, predictions, and the choice of `tune`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from .drafter_section import drafters_table
from .figures import median_error
from .profile import Profile
from .results import ALL, Precisions, Results
from .terminal import table_console
from .tune import Choice

SHOWN = 6  # candidates of a choice


def print_lengths(found: Results) -> None:
    """A row for each draft length, a column for each domain: tokens/s over plain decoding's."""
    domains = [*found.domains, ALL]
    title = f"{found.bundle}: drafted over plain speed, median and 95 % interval over prompts"
    table = Table("drafts", "accepted", title=title, title_justify="left")
    for domain in domains:
        table.add_column(domain, justify="right")
    plain = {point.domain: point for point in found.points if point.drafter == "none" and point.batch == 1}
    table.add_row("off", "", *(f"{plain[domain].tokens_per_s:,.0f}/s" for domain in domains))
    whole = [point for point in found.points if point.domain == ALL and point.drafter != "none"]
    for row in whole:
        cells = []
        for domain in domains:
            way = (domain, row.drafter, row.drafts, row.batch)
            point = next(one for one in found.points if (one.domain, one.drafter, one.drafts, one.batch) == way)
            assert point.ratio is not None
            cells.append(f"{point.ratio.value:.2f} ({point.ratio.low:.2f}-{point.ratio.high:.2f})")
        drafter = f"{row.drafter} " if len(found.drafters) > 1 else ""
        rows = f", {row.batch} rows" if row.batch > 1 else ""
        table.add_row(f"{drafter}{row.drafts}{rows}", f"{row.accepted_per_round:.2f}", *cells)
    table_console().print(table)


def print_reading(found: Results) -> None:
    """The first token, memory, and what the memory's bandwidth allows."""
    if found.first_token and found.read and found.peak_memory_bytes:
        first, read = found.first_token, found.read
        allowed = f"at {read.bandwidth / 1e9:.1f} GB/s that allows {read.limit_tokens_per_s:,.0f} tokens/s"
        table_console().print(
            f"First token: {first.cold_s * 1e3:.0f} ms cold ({first.opened_s * 1e3:.0f} of them opening), "
            f"{first.warm_s * 1e3:.1f} ms warm. Peak memory {found.peak_memory_bytes / 1e6:.0f} MB. "
            f"Plain decoding reads {(read.target_bytes + read.kv_bytes) / 1e6:.2f} MB a token; {allowed}."
        )


def print_drafters(found: Results) -> None:
    """Each drafter at the length that is best over all prompts."""
    title = f"{found.bundle}: each drafter at its best length, tokens/s and accepted drafts a round"
    made = drafters_table(found)
    table = Table(*made.columns, title=title, title_justify="left")
    for row in made.rows:
        table.add_row(*row)
    table_console().print(table)


def print_predictions(found: Results) -> None:
    table = Table("drafts", title=f"{found.bundle}: predicted over measured speed", title_justify="left")
    held_out = [one for one in found.predictions if one.held_out]
    domains = list(dict.fromkeys(one.domain for one in held_out))
    for domain in domains:
        table.add_column(domain, justify="right")
    for way in dict.fromkeys((one.drafter, one.drafts) for one in held_out):
        row = [one for one in held_out if (one.drafter, one.drafts) == way]
        table.add_row(f"{way[0]} {way[1]}", *(f"{one.error:+.1%}" for one in row))
    console = Console()
    if held_out:
        console.print(table)
        drafters = list(dict.fromkeys(one.drafter for one in held_out))
        errors = (f"{drafter} {median_error(found.predictions, drafter):.1%}" for drafter in drafters)
        console.print(f"Median error on draft lengths that were not used to fit: {', '.join(errors)}.")
    else:
        console.print(
            "Every draft length has a graph of its own, none is left to be held out; run more with --lengths."
        )


def print_choice(bundle: str, found: Choice, profile: Profile) -> None:
    """The candidates with most gain, and the best of each drafter."""
    console = table_console()
    table = Table("", "gain", title=f"{bundle} on {profile.device.name} ({profile.origin})", title_justify="left")
    ranked = sorted(found.candidates, key=lambda one: -one.gain)
    firsts = {one.drafter: one for one in reversed(ranked)}
    best = [one for rank, one in enumerate(ranked) if rank < SHOWN or one == firsts[one.drafter]]
    domains = list(best[0].gains) if best else []
    for domain in domains:
        table.add_column(domain, justify="right")
    for one in best:
        style = "bold" if one == found.chosen else ""
        table.add_row(one.name, f"{one.gain:.2f}x", *(f"{one.gains[d]:.2f}x" for d in domains), style=style)
    console.print(table)
    console.print(f"[bold]{found.chosen.name}[/]: {found.reason}.")
    for domain, gain in found.loses.items():
        console.print(f"It loses on {domain}: {gain:.2f}x.")
    if found.left_out:
        console.print(f"The profile does not time the rounds of {', '.join(found.left_out)}: left out.")


def print_recipes(found: Precisions) -> None:
    title = "Drafter precision by tokens/s; the output is the same for all"
    table = Table(
        "drafter", "MB", "best", "tokens a round", "tokens/s", "over plain", title=title, title_justify="left"
    )
    for row in found.recipes:
        style = "bold" if row.recipe == found.best else ""
        shown = (f"{row.drafter_bytes / 1e6:.2f}", row.drafts, f"{row.tokens_per_round:.2f}")
        table.add_row(row.recipe, *shown, f"{row.tokens_per_s:,.0f}", f"{row.gain:.2f}x", style=style)
    console = table_console()
    console.print(table)
    off = "" if max(row.gain for row in found.recipes) > 1 else " Plain decoding is faster than any."
    console.print(f"Best: export with --drafter-recipe {found.best}.{off}")
