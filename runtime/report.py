"""Tables for people."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .bench import DomainBench
from .calm import RISKS
from .compare import BundleBench
from .graphs import STATE
from .manifest import DELEGATION_NAME, ERRORS_NAME, Manifest, recipe_part
from .terminal import table_console
from .validate import Check, Validation

WORST_SHOWN = 8
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
    table = Table("", "plain", "calm" if "calm" in result else result["drafter"])
    table.add_row(
        "tokens/s", f"{result['plain_tokens_per_s']:.0f}", f"{result['drafted_tokens_per_s']:.0f} ({ratio:.2f}x)"
    )
    table.add_row("accepted per round", "", f"{stats['accepted_per_round']:.2f}")
    table.add_row("rounds", str(stats["emitted"]), str(stats["rounds"]))
    same = {True: "yes", False: "[bold red]NO[/]", None: "drawn anew"}
    calm = result.get("calm")
    if calm is None:
        table.add_row("same tokens", "", same[result["identical"]])
        console.print(table)
        return
    table.add_row("left early", "", f"{calm['left_early']:.0%}")
    if len(calm["left_at"]) > 1:
        for layers, share in calm["left_at"].items():
            table.add_row(f"after layer {layers}", "", f"{share:.0%}")
    table.add_row("differs by", "", f"{calm['divergence']:.2f}")
    console.print(table)
    console.print(
        f"Lossy: {RISKS[calm['consistency']]} <= {calm['delta']:g} with probability {1 - calm['epsilon']:g}, measured "
        f"{calm['risk']:.3f} on {calm['texts']} texts ({calm['texts_sha256'][:12]})."
    )


def summarize(found: Sequence[BundleBench]) -> dict[str, Any]:
    """The JSON line: the first bundle's figures, verdicts over all of them, and all under `bundles`."""
    rows = [bench.to_json() for bench in found]
    verdicts = {key: [row[key] for row in rows if row[key] is not None] for key in ("identical", "litert_lm_identical")}
    overall = {key: all(values) if values else None for key, values in verdicts.items()}
    return rows[0] | overall | ({"bundles": rows} if len(rows) > 1 else {})


def print_comparison(found: Sequence[BundleBench]) -> None:
    domains = list(found[0].domains)
    columns = ("MB", "max error", "argmax", "KL", *domains, "plain/s", "drafted/s", "ratio", "same", "LiteRT-LM")
    table = Table(
        "backend",
        "recipe",
        title="Bundles side by side",
        title_justify="left",
        caption="max error, argmax, KL: graphs against transformers; by domain: accepted drafts a round;\n"
        "same: drafted = plain tokens; LiteRT-LM: its text is ours",
        caption_justify="left",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for bench in found:
        parity = bench.parity
        plain, drafted = bench.tokens_per_s("none"), bench.tokens_per_s("mtp")
        table.add_row(
            bench.manifest.backend,
            bench.manifest.recipe_name,
            f"{bench.manifest.size / 1e6:.1f}",
            *((f"{parity.max_error:.0e}", f"{parity.argmax_agreement:.0%}", f"{parity.kl:.0e}") if parity else "---"),
            *(f"{bench.domains[name].stats['mtp'].accepted_per_round:.2f}" for name in domains),
            f"{plain:.0f}",
            f"{drafted:.0f}",
            f"{drafted / plain:.2f}x",
            "yes" if bench.identical else "[bold red]NO[/]",
            {"pass": "yes", "fail": "[bold red]NO[/]"}.get(bench.litert_lm.outcome, "-"),
        )
    table_console().print(table)


def print_bench(domains: dict[str, DomainBench], litert_lm: Check, drafts: int, threads: int) -> None:
    columns = ("domain", "accepted", "novel", "lookup", "plain/s", "drafted/s", "ratio", "same")
    count = sum(len(domain.runs["none"]) for domain in domains.values())
    table = Table(
        title=f"{count} prompts, {drafts} drafts a round, {threads} thread(s)",
        caption="accepted: drafts per round; novel: only rounds whose next four tokens had not occurred before;\n"
        "lookup: the same by prompt lookup; /s: tokens a second, median over prompts; same: drafted = plain tokens",
        title_justify="left",
        caption_justify="left",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "domain" else "right")
    for name, domain in domains.items():
        lookup = domain.stats["prompt_lookup"]
        table.add_row(
            name,
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
    errors = json.loads((bundle / ERRORS_NAME).read_text()) if (bundle / ERRORS_NAME).is_file() else []
    table = Table("part", "graphs", "MB", "recipe", "weights", title=str(bundle), title_justify="left")
    for name, part in manifest.parts.items():
        graphs = ", ".join(graph.name for graph in manifest.graphs if graph.part == name)
        recipe: Any = manifest.recipe[recipe_part(name)]
        dtypes = Counter(error["dtype"] for error in errors if error["weight"].startswith(f"{name}."))
        weights = ", ".join(f"{count} {dtype}" for dtype, count in dtypes.items()) or "float32"
        table.add_row(name, graphs, f"{part.size / 1e6:.2f}", recipe["name"], weights)
    console.print(table)
    layers = ", ".join(f"{layer.layer} ({layer.kind}, {layer.heads}x{layer.head_dim})" for layer in manifest.kv)
    dtype = "int8" if any(layer.steps for layer in manifest.kv) else "float32"
    console.print(
        f"{manifest.backend} for the {manifest.device}, context {manifest.context_length}, "
        f"vocabulary {manifest.vocab_size}; K/V {dtype} of layers {layers}"
    )
    states = ", ".join(tensor.name.rpartition("_")[2] for tensor in manifest.target_memory if STATE in tensor.name)
    if states:
        console.print(f"states of layers {states}, which take back {manifest.takes_back} tokens")
    for kind in manifest.drafters.kinds:
        facts = getattr(manifest.drafters, kind).model_dump()
        console.print(f"drafter {kind}: " + ", ".join(f"{name} {value}" for name, value in facts.items()))
    console.print(f"made of {manifest.source.names} by {_versions(manifest)}")
    if (bundle / DELEGATION_NAME).is_file():
        for method, counts in json.loads((bundle / DELEGATION_NAME).read_text()).items():
            listed = ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
            console.print(f"{method}: operators outside of XNNPACK: {listed}")
    if errors:
        table = Table(
            "weight",
            "dtype",
            "shape",
            "max error",
            "SQNR dB",
            title=f"Worst weights of {ERRORS_NAME}",
            title_justify="left",
        )
        for error in errors[:WORST_SHOWN]:
            shape = "x".join(map(str, error["shape"]))
            table.add_row(error["weight"], error["dtype"], shape, f"{error['max_abs']:.1e}", f"{error['sqnr_db']:.1f}")
        console.print(table)


def _versions(manifest: Manifest) -> str:
    return ", ".join(f"{name} {version}" for name, version in manifest.versions.items())


def print_estimate(found: Any) -> None:
    """Of `export.estimate.Estimate`."""
    console = Console()
    table = Table("part", "graphs", "parameters", "MB", title="Bundle", title_justify="left")
    for part in found.parts:
        table.add_row(part.name, ", ".join(part.graphs), f"{part.parameters / 1e6:,.1f} M", f"{part.bytes / 1e6:,.1f}")
    parameters = sum(part.parameters for part in found.parts)
    table.add_row("all", "", f"{parameters / 1e6:,.1f} M", f"{found.bundle_bytes / 1e6:,.1f}", style="bold")
    console.print(table)
    table = Table("context", "K/V, MB", title="On the phone", title_justify="left")
    for context, size in found.kv_bytes.items():
        mark = " (planned)" if context == found.context else ""
        table.add_row(f"{context:,}{mark}", f"{size / 1e6:,.1f}")
    console.print(table)
    smallest = found.smallest_phone_gb
    phone = "no phone has twice that" if smallest is None else f"a phone with {smallest} GB has twice that"
    console.print(f"Weights beside the embedding tables, and K/V: {found.phone_bytes / 1e9:.2f} GB; {phone}.")
    console.print(
        f"The export: about {found.peak_bytes / 1e9:.1f} GB of memory, {found.disk_bytes / 1e9:.1f} GB of disk, "
        f"{found.seconds / 60:.1f} minutes on two cores."
    )
    for limit in found.limits:
        if limit.kept:
            console.print(f"{MARKS['pass']} {limit.name}: {limit.needed / 1e9:.2f} of {limit.bound / 1e9:.2f} GB")
        else:
            console.print(
                f"{MARKS['fail']} {limit.name}: {limit.needed / 1e9:.2f} GB, the limit is {limit.bound / 1e9:.2f} GB; "
                f"{limit.mend}"
            )
