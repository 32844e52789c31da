"""Tables for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .bench import DomainBench
from .manifest import Manifest
from .validate import Check, Validation

MARKS = {
    "pass": "[green]pass[/]",
    "fail": "[bold red]FAIL[/]",
    "info": "[cyan]info[/]",
    "skipped": "[yellow]skipped[/]",
}


def print_validation(found: Validation, bundle: Path) -> None:
    console = Console()
    for rung, rows in found.ladder.items():
        table = Table(title=f"Parity: {rung}", title_justify="left")
        for column in ("graph", "max error", "mean error", "argmax agrees", "KL", ""):
            table.add_column(column, justify="left" if column in ("graph", "") else "right")
        for row in rows:
            agreement = "" if row.argmax_agreement is None else f"{row.argmax_agreement:.1%}"
            kl = "" if row.kl is None else f"{row.kl:.1e}"
            if row.limit is None:
                mark = MARKS["info"]
            else:
                mark = MARKS["pass"] if row.passed else f"{MARKS['fail']} > {row.limit:.0e}, first at {row.layer}"
            table.add_row(row.graph, f"{row.max_error:.1e}", f"{row.mean_error:.1e}", agreement, kl, mark)
        console.print(table)
    table = Table("check", "", "detail", title="Law", title_justify="left")
    for check in found.checks:
        table.add_row(check.name, MARKS[check.outcome], check.detail)
    console.print(table)
    console.print(f"{bundle}: {'valid' if found.passed else '[bold red]NOT valid[/]'}")


def print_run(result: dict[str, Any], quiet: bool) -> None:
    print()
    if quiet:
        return
    stats, ratio = result["stats"], result["drafted_tokens_per_s"] / result["plain_tokens_per_s"]
    console = Console(stderr=True)
    table = Table("", "plain", result["drafter"])
    table.add_row(
        "tokens/s", f"{result['plain_tokens_per_s']:.0f}", f"{result['drafted_tokens_per_s']:.0f} ({ratio:.2f}x)"
    )
    table.add_row("accepted per round", "", f"{stats['accepted_per_round']:.2f}")
    table.add_row("rounds", str(stats["emitted"]), str(stats["rounds"]))
    table.add_row("same tokens", "", "yes" if result["identical"] else "[bold red]NO[/]")
    console.print(table)


def summarize(domains: dict[str, DomainBench], litert_lm: Check) -> dict[str, Any]:
    """The JSON line. Speeds are means over domains of their medians over prompts."""
    count = len(domains)
    return {
        "identical": all(domain.identical for domain in domains.values()),
        "litert_lm_identical": {"pass": True, "fail": False}.get(litert_lm.outcome),
        "accepted_per_round": {name: round(d.stats["mtp"].accepted_per_round, 3) for name, d in domains.items()},
        "plain_tokens_per_s": round(sum(d.tokens_per_s("none") for d in domains.values()) / count, 1),
        "drafted_tokens_per_s": round(sum(d.tokens_per_s("mtp") for d in domains.values()) / count, 1),
        "by_domain": {name: domain.to_json() for name, domain in domains.items()},
    }


def print_bench(domains: dict[str, DomainBench], litert_lm: Check, drafts: int, threads: int) -> None:
    columns = (
        "domain",
        "accepted/round",
        "novel only",
        "prompt lookup",
        "plain tok/s",
        "drafted tok/s",
        "ratio",
        "same tokens",
    )
    table = Table(title=f"{drafts} drafts a round, {threads} thread(s), median over prompts", title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == "domain" else "right")
    for name, domain in domains.items():
        lookup = domain.stats["prompt_lookup"]
        table.add_row(
            f"{name} ({len(domain.runs['none'])})",
            f"{domain.stats['mtp'].accepted_per_round:.2f}",
            f"{domain.novel_accepted:.2f}",
            f"{lookup.accepted / max(1, lookup.rounds):.2f}",
            f"{domain.tokens_per_s('none'):.0f}",
            f"{domain.tokens_per_s('mtp'):.0f}",
            f"{domain.ratio:.2f}x",
            "yes" if domain.identical else "[bold red]NO[/]",
        )
    console = Console()
    console.print(table)
    console.print(f"LiteRT-LM: {MARKS[litert_lm.outcome]} {litert_lm.detail}")


def print_manifest(manifest: Manifest, bundle: Path) -> None:
    console = Console()
    table = Table("graph", "role", "part", "T", "inputs", "outputs", title=str(bundle), title_justify="left")
    for graph in manifest.graphs:
        inputs = ", ".join(f"{t.name} {t.dtype}{list(t.shape)}" for t in graph.inputs if not t.is_kv)
        outputs = ", ".join(f"{t.name} {list(t.shape)}" for t in graph.outputs if not t.is_kv) or "K/V"
        table.add_row(graph.name, graph.role, graph.part, str(graph.width), inputs, outputs)
    console.print(table)
    drafter = manifest.drafter
    layers = ", ".join(f"{layer.layer} ({layer.kind}, {layer.heads}x{layer.head_dim})" for layer in manifest.kv)
    console.print(f"context {manifest.context_length}, vocabulary {manifest.vocab_size}; K/V of layers {layers}")
    console.print(
        f"drafter: {drafter.kind}, {drafter.head} head, position {drafter.position}, "
        f"reads K/V of layers {drafter.kv_sliding} and {drafter.kv_full}"
    )
    for name, part in manifest.parts.items():
        recipe = manifest.recipe["embedder" if name.endswith("embedder") else name]
        console.print(f"{name}: {part.size / 1e6:.2f} MB, recipe {recipe['name']}")  # type: ignore[index]
    console.print(
        f"made of {manifest.source.target} and {manifest.source.drafter} by "
        + ", ".join(f"{n} {v}" for n, v in manifest.versions.items())
    )
