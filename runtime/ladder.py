"""The parity ladder: feed the same tokens to the same graphs on several engines, compare what comes out.

Each rung gets the top rung's embeddings and hidden states as inputs, so an error shows in the graph that
made it. K/V is each rung's own and is compared layer by layer, which names the layer where two rungs part.
Here are the graphs that transformers has too: the target's, and MTP's. For the others see `replay.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .engine import Arrays, Engine
from .graphs import GraphSpec
from .manifest import Manifest

Outputs = dict[str, npt.NDArray[np.float32]]
CLIMBED = {"embed", "embed_per_layer", "prefill", "decode", "verify", "draft"}  # roles of the graphs that `climb` runs
DRAFT_STEPS = 4
Judged = Literal["max", "mean"]


@dataclass(frozen=True)
class Difference:
    """One graph on two rungs. `argmax_agreement` and `kl` (nats, mean over rows) are of the logits, if any.

    `limit` bounds the error that `judged` names. `layer` is the first one whose K/V exceeds it, "output"
    where K/V does not.
    """

    graph: str
    max_error: float
    mean_error: float
    argmax_agreement: float | None
    kl: float | None
    layer: str | None
    limit: float | None
    judged: Judged

    @property
    def passed(self) -> bool:
        error = self.max_error if self.judged == "max" else self.mean_error
        return bool(np.isfinite(error)) and (self.limit is None or error <= self.limit)


@dataclass(frozen=True)
class Feed:
    """Inputs by position: `rows[name][:, position]`; `hidden` seeds the drafter's chain of steps."""

    tokens: tuple[int, ...]
    rows: dict[str, npt.NDArray[np.float32]]
    hidden: list[npt.NDArray[np.float32]]


def climb(
    manifest: Manifest, engine: Engine, tokens: Sequence[int], feed: Feed | None
) -> tuple[dict[str, Outputs], Feed]:
    """Runs every graph of the target once, and MTP's. Without a feed the engine becomes the top rung and makes one."""
    rows = feed.rows if feed else {}
    found: dict[str, Outputs] = {}
    for role, name in (("embed", "embeddings"), ("embed_per_layer", "per_layer_embeddings")):
        for graph in manifest.graphs_of(role):
            outputs = [engine.run(graph.name, {"token_ids": np.array([[t]], np.int32)}) for t in tokens]
            found[graph.name] = {"embeddings": np.concatenate([o["embeddings"] for o in outputs], 1)}
            if feed is None:
                rows[name] = found[graph.name]["embeddings"]
    cache, position = engine.new_cache(), 0
    for graph in (*manifest.graphs_of("prefill"), *manifest.graphs_of("decode")):
        found[graph.name] = _run_target(engine, graph, cache, rows, position)
        position += graph.width
    for graph in manifest.graphs_of("verify"):  # each at the same place, over what the one before left there
        found[graph.name] = _run_target(engine, graph, cache, rows, position)
    seed = found["decode"]["activations"]
    hidden = feed.hidden if feed else [seed]
    for graph in manifest.graphs_of("draft"):
        found[graph.name] = _run_drafter(engine, graph, cache, rows["embeddings"], position, hidden, chain=feed is None)
    return found, Feed(tuple(tokens), rows, hidden)


def tokens_needed(manifest: Manifest) -> int:
    """Length of the text that `climb` feeds."""
    prefill = sum(graph.width for graph in manifest.graphs_of("prefill"))
    return prefill + 1 + max(DRAFT_STEPS, *(graph.width for graph in manifest.graphs_of("verify")))


def enough_tokens(manifest: Manifest, tokens: Sequence[int]) -> list[int]:
    """`tokens` cut, or repeated, to the length that `climb` needs."""
    length = tokens_needed(manifest)
    return (list(tokens) * (length // len(tokens) + 1))[:length]


def compare(
    upper: dict[str, Outputs], lower: dict[str, Outputs], limits: Mapping[str, float | None], judged: Judged = "max"
) -> list[Difference]:
    """Graph by graph; `limits` by graph name, None where a difference is only reported."""
    return [_difference(name, upper[name], lower[name], limits[name], judged) for name in upper]


def _run_target(engine: Engine, graph: GraphSpec, cache: Any, rows: Outputs, position: int) -> Outputs:
    context = engine.manifest.context_length
    positions = np.arange(position, position + graph.width, dtype=np.int32)
    inputs: dict[str, npt.NDArray[Any]] = {name: row[:, positions] for name, row in rows.items()}
    inputs |= {"input_pos": positions, "mask": (np.arange(context) <= positions[:, None])[None, None]}
    return run_graph(engine, graph, inputs, cache)


def run_graph(engine: Engine, graph: GraphSpec, inputs: Arrays, cache: Any) -> Outputs:
    """What it gives, and the rows of K/V that it wrote, int8 ones as what they are worth."""
    outputs = dict(engine.run(graph.name, inputs, cache))
    written = [tensor.name for tensor in graph.outputs if tensor.has_slots]
    held = engine.read_kv(cache) if written else {}
    steps = {layer.layer: layer.steps for layer in engine.manifest.kv}
    for name in written:
        of_keys, own = "kv_cache_k" in name, steps.get(int(name.rpartition("_")[2]))
        value, axis = held[name], 2 if of_keys else 3
        rows = np.take(value, inputs["input_pos"] % value.shape[axis], axis)
        if own is not None and value.dtype == np.int8:
            rows = rows * np.float32(own.keys if of_keys else own.values)
        outputs[name] = rows
    return outputs


def _run_drafter(
    engine: Engine,
    graph: GraphSpec,
    cache: Any,
    embeddings: Any,
    committed: int,
    hidden: list[npt.NDArray[np.float32]],
    chain: bool,
) -> Outputs:
    """A draft of DRAFT_STEPS at a constant position. The top rung feeds itself; the others get its states."""
    position = np.array([committed - 1], np.int32)
    mask = (np.arange(engine.manifest.context_length) < committed)[None, None, None]
    logits, projected = [], []
    for step in range(DRAFT_STEPS):
        embedding = embeddings[:, committed + step : committed + step + 1]
        inputs = {"activations": np.concatenate([embedding, hidden[step]], -1), "input_pos": position, "mask": mask}
        outputs = engine.run(graph.name, inputs, cache)
        logits.append(outputs["logits"])
        projected.append(outputs["projected_activations"])
        if chain:
            hidden.append(outputs["projected_activations"])
    return {"logits": np.concatenate(logits, 1), "projected_activations": np.concatenate(projected, 1)}


def _difference(graph: str, upper: Outputs, lower: Outputs, limit: float | None, judged: Judged) -> Difference:
    errors = {name: np.abs(lower[name] - upper[name]) for name in upper}
    kv = sorted((n for n in errors if "kv_cache_" in n), key=lambda n: int(n.rpartition("_")[2]))
    # What makes no tokens makes K/V and states for what does: all of it counts.
    scored = [error for name, error in errors.items() if name not in kv or "logits" not in upper]
    worst, mean = max(float(e.max()) for e in scored), float(np.mean([e.mean() for e in scored]))
    agreement = kl = None
    if "logits" in upper:
        agreement = float((upper["logits"].argmax(-1) == lower["logits"].argmax(-1)).mean())
        kl = _kl(upper["logits"], lower["logits"])
    found = Difference(graph, worst, mean, agreement, kl, None, limit, judged)
    if found.passed or limit is None:
        return found
    measure = np.max if judged == "max" else np.mean
    parted = next((name for name in kv if not measure(errors[name]) <= limit), None)
    return replace(found, layer=f"layer {parted.rpartition('_')[2]}" if parted else "output")


def _kl(upper: npt.NDArray[np.float32], lower: npt.NDArray[np.float32]) -> float:
    p, q = _log_softmax(upper), _log_softmax(lower)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def _log_softmax(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    shifted = x.astype(np.float64) - x.max(-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
