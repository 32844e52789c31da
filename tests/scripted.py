"""A scripted engine: no weights, but every fault in what the loop feeds it changes its output or raises.

The next token is a hash of the (slot, token) pairs that a row may see. A stale slot, a mask one too wide, a
position off by one or a wrong committed length therefore changes the text, and `plain` tells what it should be.
What a row of a tree sees must spell its path, one token for each position up to its own, or it raises; and so does a
row of a tree that is still at its own slot, or computed at another position, where it counts as committed.
Hidden states are handles to the token sequence behind them, so the drafter knows whether it was given the
right one, and raises if not.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pocketdraft.runtime.drafter_specs import DrafterSpecs, MTPSpec
from pocketdraft.runtime.graphs import STATE, GraphSpec, KVLayer, TensorSpec
from pocketdraft.runtime.manifest import FORMAT_VERSION, FileEntry, Manifest, Part, Source, Sources, Tokens

VOCABULARY = 12
PARTS = ("target", "drafter", "embedder", "per_layer_embedder")


def next_token(tokens: tuple[int, ...], salt: str = "target") -> int:
    """The scripted model: a pure function of the tokens before."""
    digest = hashlib.blake2b(f"{salt}{tokens}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % VOCABULARY


def plain(prompt: list[int], budget: int, stop: frozenset[int] = frozenset(), capacity: int = 10**9) -> list[int]:
    """What plain decoding gives, computed without engine, cache or loop."""
    tokens: list[int] = []
    # The last token is predicted when the cache is full: one more than there are free slots.
    while len(tokens) < budget and len(prompt) + len(tokens) <= capacity:
        tokens.append(next_token((*prompt, *tokens)))
        if tokens[-1] in stop:
            break
    return tokens


def scripted_manifest(
    capacity: int = 64,
    verify: tuple[int, ...] = (2, 3, 5),
    prefill: tuple[int, ...] = (4, 8),
    stop: tuple[int, ...] = (),
    per_layer: bool = True,
) -> Manifest:
    def graph(name: str, role: str, part: str, width: int) -> GraphSpec:
        return GraphSpec.model_validate(
            {"name": name, "role": role, "part": part, "width": width, "inputs": (), "outputs": ()}
        )

    graphs = [graph("embedder", "embed", "embedder", 1), graph("decode", "decode", "target", 1)]
    graphs += [graph(f"prefill_{n}", "prefill", "target", n) for n in prefill]
    graphs += [graph(f"verify_{n}", "verify", "target", n) for n in verify]
    graphs += [graph("mtp_drafter", "draft", "drafter", 1)]
    if per_layer:
        graphs += [graph("per_layer_embedder", "embed_per_layer", "per_layer_embedder", 1)]
    return Manifest(
        format_version=FORMAT_VERSION,
        backend="litert",
        context_length=capacity,
        vocab_size=VOCABULARY,
        kv=(KVLayer(layer=0, kind="full", heads=1, head_dim=1),),
        graphs=tuple(graphs),
        parts={name: Part(file="model.litertlm", offset=0, size=1) for name in PARTS},
        drafters=DrafterSpecs(mtp=MTPSpec(head="dense", position="pending", kv_full=0, kv_sliding=0)),
        tokens=Tokens(bos=None, stop=stop),
        recipe={},
        source=Sources(target=Source(name="t", sha256=""), drafters={"mtp": Source(name="d", sha256="")}),
        versions={},
        files={"model.litertlm": FileEntry(sha256="", size=1)},
    )


class Slots(list[int | None]):
    """Tokens by slot; `positions` are those that their K/V were computed at."""

    def __init__(self, tokens: list[int | None]) -> None:
        super().__init__(tokens)
        self.positions = list(range(len(tokens)))


@dataclass
class ScriptedEngine:
    """`wrong_half` makes the drafter wrong on about half of the contexts, always the same ones."""

    manifest: Manifest
    wrong_half: bool = True
    calls: list[str] = field(default_factory=list)
    takes_trees: bool = True
    _hidden: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    def new_cache(self) -> Slots:
        return Slots([None] * self.manifest.context_length)

    def fork(self, cache: Slots) -> Slots:
        copy = Slots(cache)
        copy.positions = list(cache.positions)
        return copy

    def compact(self, cache: Slots, sources: list[int], start: int) -> None:
        assert self.takes_trees
        assert start < sources[0]
        assert sources == sorted(set(sources))
        for slot, source in enumerate(sources, start):
            cache[slot], cache.positions[slot] = cache[source], cache.positions[source]

    def run(self, graph: str, inputs: Any, cache: Slots | None = None) -> dict[str, Any]:
        self.calls.append(graph)
        spec = next(g for g in self.manifest.graphs if g.name == graph)
        if spec.part == "embedder":
            return {"embeddings": inputs["token_ids"].astype(np.float32)[..., None]}
        if spec.part == "per_layer_embedder":
            return {"embeddings": -inputs["token_ids"].astype(np.float32)[..., None, None]}
        assert cache is not None
        return self._draft(inputs, cache) if spec.role == "draft" else self._target(spec, inputs, cache)

    def read_kv(self, cache: Slots) -> dict[str, Any]:
        raise NotImplementedError

    def close(self) -> None: ...

    def _target(self, spec: GraphSpec, inputs: Any, cache: Slots) -> dict[str, Any]:
        positions, tokens = inputs["input_pos"], inputs["embeddings"][0, :, 0].astype(int)
        assert len(positions) == len(tokens) == spec.width
        start, end = int(positions[0]), int(positions[0]) + spec.width
        tree = list(positions) != list(range(start, end))
        assert self.takes_trees or not tree, "positions with a gap"
        assert end <= len(cache), f"{spec.name} writes slot {end - 1} of {len(cache)}"
        if "per_layer_embeddings" in inputs:
            assert (-inputs["per_layer_embeddings"][0, :, 0, 0] == tokens).all(), "per-layer rows of other tokens"
        cache[start:end] = tokens.tolist()
        cache.positions[start:end] = positions.tolist()
        logits = np.zeros((1, spec.width, VOCABULARY), np.float32)
        hidden = np.zeros((1, spec.width, 1), np.float32)
        for row in range(spec.width):
            mask = inputs["mask"][0, 0, row]
            seen = self._path(cache, mask, start + row) if tree else self._seen(cache, mask)
            logits[0, row, next_token(seen)] = 1.0
            hidden[0, row, 0] = self._remember(seen, seen)
        return {"logits": logits, "activations": hidden} if spec.role != "prefill" else {}

    def _draft(self, inputs: Any, cache: Slots) -> dict[str, Any]:
        token, handle = (int(value) for value in inputs["activations"][0, 0])
        committed = self._seen(cache, inputs["mask"][0, 0, 0])
        seed, before = self._hidden[handle]
        assert len(committed) == inputs["input_pos"][0] + 1, "position is not that of the last visible slot"
        assert seed == committed, "hidden state or K/V of another context"
        sequence = (*before, token)
        right = next_token(sequence)
        wrong = self.wrong_half and next_token(sequence, "drafter") % 2 == 0
        logits = np.zeros((1, 1, VOCABULARY), np.float32)
        logits[0, 0, (right + 1) % VOCABULARY if wrong else right] = 1.0
        projected = np.array([[[self._remember(committed, sequence)]]], np.float32)
        return {"logits": logits, "projected_activations": projected}

    def _seen(self, cache: Slots, mask: Any) -> tuple[int, ...]:
        """Tokens of the visible slots; a gap or a slot never written shows as -1, which no text holds."""
        last = int(np.flatnonzero(mask).max())
        assert cache.positions[: last + 1] == list(range(last + 1)), "K/V of a tree that were not compacted"
        return tuple(-1 if not mask[i] or cache[i] is None else int(cache[i] or 0) for i in range(last + 1))

    def _path(self, cache: Slots, mask: Any, slot: int) -> tuple[int, ...]:
        """Tokens that the row in `slot` sees: one of each position up to its own, its own last."""
        seen = np.flatnonzero(mask).tolist()
        positions = [cache.positions[one] for one in seen]
        assert seen[-1] == slot, "a row sees another one that comes after it, or not itself"
        assert positions == list(range(cache.positions[slot] + 1)), "what a row sees is no path"
        return tuple(-1 if cache[one] is None else int(cache[one] or 0) for one in seen)

    def _remember(self, seed: tuple[int, ...], sequence: tuple[int, ...]) -> int:
        """A hidden state: what it has read, and the committed context from which its draft started."""
        self._hidden.append((seed, sequence))
        return len(self._hidden) - 1


@dataclass
class RecurrentEngine(ScriptedEngine):
    """One recurrent layer, as `export/models/delta_net.py` has it: its state settles on what lies `back` tokens before
    a call's end, padding included, and raises where that is gone back on."""

    back: int = 5
    settled: int = 0  # of the one sequence

    def __post_init__(self) -> None:
        state = TensorSpec(name=f"{STATE}_0", dtype="float32", shape=(1, 1, 1, 1))
        graphs = [
            graph.model_copy(update={"inputs": (*graph.inputs, state)}) if graph.role == "decode" else graph
            for graph in self.manifest.graphs
        ]
        self.manifest = self.manifest.model_copy(update={"graphs": tuple(graphs), "takes_back": self.back})

    def _target(self, spec: GraphSpec, inputs: Any, cache: Slots) -> dict[str, Any]:
        start = int(inputs["input_pos"][0])
        self.settled = self.settled if start else 0
        assert start >= self.settled, f"{spec.name} goes on from {start}, the state has settled up to {self.settled}"
        self.settled = max(self.settled, start + spec.width - self.back)
        return super()._target(spec, inputs, cache)


@dataclass
class RingEngine(ScriptedEngine):
    """One sliding layer in a ring of `slots`: a token is a function of the last `window` tokens, read from the ring.

    As in the graphs, a call writes all its rows before any of them looks, and the window is cut by slots. A slot that
    no longer holds what a row believes in raises, and so do positions in view that are not the last ones.
    """

    window: int = 4
    slots: int = 16

    def __post_init__(self) -> None:
        layer = KVLayer(layer=0, kind="sliding", heads=1, head_dim=1, slots=self.slots)
        self.manifest = self.manifest.model_copy(update={"kv": (layer,)})

    def new_cache(self) -> Any:
        return [(-1, -1, -1)] * self.slots  # slot of the context, position, token

    def compact(self, cache: Any, sources: list[int], start: int) -> None:
        for slot, source in enumerate(sources, start):
            cache[slot % self.slots] = slot, *cache[source % self.slots][1:]

    def _target(self, spec: GraphSpec, inputs: Any, cache: Any) -> dict[str, Any]:
        positions, tokens = inputs["input_pos"].tolist(), inputs["embeddings"][0, :, 0].astype(int).tolist()
        assert positions[0] + spec.width <= self.manifest.context_length
        for slot, (position, token) in enumerate(zip(positions, tokens, strict=True), positions[0]):
            cache[slot % self.slots] = slot, position, token
        logits = np.zeros((1, spec.width, VOCABULARY), np.float32)
        for row, last in enumerate(positions):
            seen = [slot for slot in np.flatnonzero(inputs["mask"][0, 0, row]).tolist() if slot > last - self.window]
            held = [cache[slot % self.slots] for slot in seen]
            assert [slot for slot, _, _ in held] == seen, "a ring has lost what is looked back at"
            in_view = list(range(max(0, last - self.window + 1), last + 1))
            assert [position for _, position, _ in held] == in_view, "what a row sees is no path"
            logits[0, row, next_token(tuple(token for _, _, token in held))] = 1.0
        return {"logits": logits, "activations": logits} if spec.role != "prefill" else {}
