"""The scripted engine with the graphs of every kind of drafter. As in `scripted.py`, what is fed wrong raises.

A state that is handed from graph to graph, a tap or an early layer's, is a handle to the tokens behind it. A drafter's
own K/V hold, by position, what was written there; a graph that reads them checks that it is what belongs there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scripted import VOCABULARY, ScriptedEngine, Slots, next_token, scripted_manifest

from pocketdraft.runtime.drafter_specs import (
    DFlashSpec,
    DrafterSpecs,
    DraftModelSpec,
    EarlyExitSpec,
    MTPHeadsSpec,
)
from pocketdraft.runtime.graphs import GraphSpec, TensorSpec
from pocketdraft.runtime.manifest import Manifest, Part

BLOCK, MASK_TOKEN = 6, VOCABULARY - 1
OWN = ("dflash", "draft_model", "early", "between")


def every_drafter(
    capacity: int = 64,
    verify: tuple[int, ...] = (2, 3, 5),
    stop: tuple[int, ...] = (),
    per_layer: bool = True,
    heads: int = 1,
) -> Manifest:
    """`heads` are native MTP heads."""
    plain = scripted_manifest(capacity, verify, stop=stop, per_layer=per_layer)
    widths = sorted({1, 4, 8, *verify})
    made = [
        *(("dflash_context", f"dflash_context_{width}", "dflash", width) for width in widths),
        ("dflash_draft", "dflash_draft", "dflash", BLOCK),
        *(("head", f"head_{width}", "target", width) for width in (1, BLOCK)),
        ("exit_draft", "exit_draft", "target", 1),
        ("exit_head", "exit_head", "target", 1),
        *(("exit_verify", f"exit_verify_{width}", "target", width) for width in (1, *verify)),
        ("model_embed", "model_embedder", "draft_model", 1),
        ("model_decode", "model_decode", "draft_model", 1),
        *(("model_prefill", f"model_prefill_{width}", "draft_model", width) for width in (4, 8)),
    ]
    graphs = [
        GraphSpec.model_validate({"role": r, "name": n, "part": p, "width": w, "inputs": (), "outputs": ()})
        for r, n, p, w in made
    ]
    graphs += [_head(head, width, capacity) for head in range(heads) for width in widths]
    specs = DrafterSpecs(
        mtp=plain.drafters.mtp,
        dflash=DFlashSpec(block=BLOCK, mask_token=MASK_TOKEN, taps=(0,)),
        early_exit=EarlyExitSpec(layers=1),
        mtp_heads=MTPHeadsSpec(heads=heads),
        draft_model=DraftModelSpec(),
    )
    parts = {name: Part(file="model.litertlm", offset=0, size=1) for name in ("dflash", "mtp_heads", "draft_model")}
    return plain.model_copy(
        update={"graphs": (*plain.graphs, *graphs), "drafters": specs, "parts": {**plain.parts, **parts}}
    )


def _head(head: int, width: int, capacity: int) -> GraphSpec:
    """A native head's graph: which head, its K/V say."""
    kv = TensorSpec(name=f"mtp_heads_kv_cache_k_{head}", dtype="float32", shape=(1, 1, capacity, 1))
    name = f"mtp_heads_{head}_{width}" if head else f"mtp_heads_{width}"
    return GraphSpec(name=name, role="mtp_heads", part="mtp_heads", width=width, inputs=(kv,), outputs=())


class AllSlots(Slots):
    """`own` are the drafters' K/V by kind, what was written by position; "early" is the target's own first layers', and
    "between" that of layers between its exits. The rest is the last layers'. A native head's are the tokens that the
    row stands for: those of its state and the one beside it."""

    def __init__(self, tokens: list[int | None], heads: int) -> None:
        super().__init__(tokens)
        self.own: dict[str | int, list[Any]] = {kind: [None] * len(tokens) for kind in (*OWN, *range(heads))}


@dataclass
class EveryDrafter(ScriptedEngine):
    """`join` is the last position that a sequence kept when it went back: what native head k has there and at k before
    it is of the tokens that came next before. `known_from` is the first position whose K/V drafters keep of their own.
    """

    manifest: Manifest = field(default_factory=every_drafter)
    join: int | None = None
    known_from: int = 0

    def new_cache(self) -> AllSlots:
        heads = self.manifest.drafters.mtp_heads
        return AllSlots([None] * self.manifest.context_length, heads.heads if heads else 0)

    def fork(self, cache: Any) -> AllSlots:
        copy = AllSlots(cache, 0)
        copy.positions = list(cache.positions)
        copy.own = {kind: list(rows) for kind, rows in cache.own.items()}
        return copy

    def compact(self, cache: Any, sources: list[int], start: int) -> None:
        super().compact(cache, sources, start)
        for slot, source in enumerate(sources, start):
            for kind in ("early", "between"):
                cache.own[kind][slot] = cache.own[kind][source]

    def run(self, graph: str, inputs: Any, cache: Any = None) -> dict[str, Any]:
        spec = next(one for one in self.manifest.graphs if one.name == graph)
        known = {
            "model_embed": self._embed,
            "head": self._head_of,
            "exit_head": self._exit_head,
            "further_head": self._further_head,
        }
        own = {
            "dflash_context": self._context,
            "dflash_draft": self._block,
            "mtp_heads": self._heads,
            "exit_draft": self._early,
            "exit_fill": self._fill,
            "exit_verify": self._late,
            "further_exit": self._between,
            "further_fill": self._fill,
            "further_rest": self._late,
            "model_decode": self._model,
            "model_prefill": self._model,
        }
        if spec.role in known:
            self.calls.append(graph)
            return known[spec.role](inputs)
        if spec.role in own:
            self.calls.append(graph)
            return own[spec.role](spec, inputs, cache)
        return super().run(graph, inputs, cache)

    def _target(self, spec: GraphSpec, inputs: Any, cache: Any) -> dict[str, Any]:
        start = int(inputs["input_pos"][0])
        tokens = inputs["embeddings"][0, :, 0].astype(int).tolist()
        for kind in ("early", "between"):
            cache.own[kind][start : start + spec.width] = tokens
        outputs = super()._target(spec, inputs, cache)
        if spec.role == "prefill":
            rows = [self._seen(cache, inputs["mask"][0, 0, row]) for row in range(spec.width)]
            outputs["activations"] = np.array([[[self._remember(seen, seen)] for seen in rows]], np.float32)
        return {**outputs, "taps": outputs["activations"]}

    def _right_or_wrong(self, tokens: tuple[int, ...]) -> int:
        wrong = self.wrong_half and next_token(tokens, "drafter") % 2 == 0
        return (next_token(tokens) + wrong) % VOCABULARY

    def _tokens(self, state: Any) -> tuple[int, ...]:
        return self._hidden[int(state)][1]

    # --- states to logits

    def _embed(self, inputs: Any) -> dict[str, Any]:
        return {"embeddings": inputs["token_ids"].astype(np.float32)[..., None]}

    def _logits(self, tokens: list[int]) -> dict[str, Any]:
        logits = np.zeros((1, len(tokens), VOCABULARY), np.float32)
        logits[0, np.arange(len(tokens)), tokens] = 9.0
        return {"logits": logits}

    def _head_of(self, inputs: Any) -> dict[str, Any]:
        return self._logits([self._right_or_wrong(self._tokens(state)) for state in inputs["activations"][0, :, 0]])

    def _exit_head(self, inputs: Any) -> dict[str, Any]:
        return self._logits([self._right_or_wrong(self._tokens(inputs["exit_states"][0, 0, 0]))])

    def _further_head(self, inputs: Any) -> dict[str, Any]:
        state = inputs["exit_states"][0, 0, 0]
        assert self._at_exit(state) == 1, "another exit's state"
        return self._logits([self.at_second(self._tokens(state))])

    @staticmethod
    def at_second(tokens: tuple[int, ...]) -> int:
        """The token of those that leave at the second exit."""
        return (next_token(tokens) + 2) % VOCABULARY

    # --- DFlash

    def _context(self, spec: GraphSpec, inputs: Any, cache: Any) -> dict[str, Any]:
        positions, taps = inputs["input_pos"].tolist(), inputs["taps"][0, :, 0]
        assert len(positions) == len(taps) == spec.width
        assert positions[-1] < len(cache), "K/V past the cache"
        for position, tap in zip(positions, taps, strict=True):
            cache.own["dflash"][position] = self._tokens(tap)
        return {}

    def _block(self, spec: GraphSpec, inputs: Any, cache: Any) -> dict[str, Any]:
        tokens, positions = inputs["embeddings"][0, :, 0].astype(int).tolist(), inputs["input_pos"].tolist()
        start = positions[0]
        assert positions == list(range(start, start + BLOCK))
        assert tokens[1:] == [MASK_TOKEN] * (BLOCK - 1)
        rows = inputs["mask"][0, 0]
        assert (rows == rows[0]).all(), "a block sees itself and what is committed, all of its rows the same"
        seen = np.flatnonzero(rows[0]).tolist()
        assert seen == list(range(self.known_from, start + BLOCK)), "the block does not see all that is committed"
        committed = cache.own["dflash"][:start]
        text = committed[-1]
        for position in range(self.known_from, start):
            assert committed[position] == text[: position + 1], "K/V of another context"
        assert len(text) == start, "K/V of another context"
        cache.own["dflash"][start : start + BLOCK] = [None] * BLOCK
        text, states = (*text, tokens[0]), [0.0]
        for _ in range(BLOCK - 1):
            states.append(self._remember(text, text))
            text = (*text, self._right_or_wrong(text))
        return {"activations": np.array(states, np.float32)[None, :, None]}

    # --- native MTP heads

    def _heads(self, spec: GraphSpec, inputs: Any, cache: Any) -> dict[str, Any]:
        positions, states = inputs["input_pos"].tolist(), inputs["activations"][0, :, 0]
        tokens = inputs["embeddings"][0, :, 0].astype(int).tolist()
        own, ahead = cache.own[spec.head], spec.head + 2
        texts = [(*self._tokens(state), token) for state, token in zip(states, tokens, strict=True)]
        own[positions[0] : positions[0] + spec.width] = texts
        made = []
        for row, (position, text) in enumerate(zip(positions, texts, strict=True)):
            seen = np.flatnonzero(inputs["mask"][0, 0, row]).tolist()
            assert seen == list(range(self.known_from, position + 1)), "a head sees all positions up to its own"
            if len(text) == position + ahead or row == 0:  # else padding
                wrong = {at for at in range(self.known_from, position + 1) if own[at] != text[: at + ahead]}
                kept = set() if self.join is None else set(range(self.join - spec.head, self.join + 1))
                assert wrong <= kept, "hidden state or K/V of another context"
            made.append(self._remember(text, text))
        return {"projected_activations": np.array(made, np.float32)[None, :, None]}

    # --- early exit

    def _early(self, spec: GraphSpec, inputs: Any, cache: Any) -> dict[str, Any]:
        (position,) = inputs["input_pos"].tolist()
        cache.own["early"][position] = int(inputs["embeddings"][0, 0, 0])
        assert np.flatnonzero(inputs["mask"][0, 0, 0]).tolist() == list(range(position + 1))
        seen = tuple(cache.own["early"][: position + 1])
        return self._left(seen, 0)

    def _between(self, spec: GraphSpec, inputs: Any, cache: Any) -> dict[str, Any]:
        """The layers from the first exit to the second: they see the K/V of those before them and their own."""
        (position,), state = inputs["input_pos"].tolist(), inputs["exit_states"][0, 0, 0]
        assert self._at_exit(state) == 0, "another exit's state"
        text = self._tokens(state)
        cache.own["between"][position] = text[-1]
        assert np.flatnonzero(inputs["mask"][0, 0, 0]).tolist() == list(range(position + 1))
        for kind in ("early", "between"):
            assert tuple(cache.own[kind][: position + 1]) == text, f"{kind} K/V of another context"
        return self._left(text, 1)

    def _left(self, tokens: tuple[int, ...], number: int) -> dict[str, Any]:
        """What an exit gives: a state, which knows where it was made, and a score of it."""
        state = self._remember((number,), tokens)
        score = 3.0 if self.is_sure(tokens, number) else -3.0
        return {"exit_states": np.array([[[state]]], np.float32), "score": np.array([[score]], np.float32)}

    def _at_exit(self, state: Any) -> int:
        return self._hidden[int(state)][0][0]

    def is_sure(self, tokens: tuple[int, ...], number: int = 0) -> bool:
        """What an exit's classifier says: of about half of the contexts, always the same ones."""
        return next_token(tokens, f"classifier{number or ''}") % 2 == 0

    def _fill(self, spec: GraphSpec, inputs: Any, cache: Any) -> dict[str, Any]:
        """The other layers' K/V, of a state that left: without them, who looks back there sees no token."""
        (position,) = inputs["input_pos"].tolist()
        text = self._tokens(inputs["exit_states"][0, 0, 0])
        assert text == tuple(cache.own["early"][: position + 1]), "the state of another token, or another place"
        assert inputs.keys() == {"exit_states", "input_pos"}
        further = spec.role == "further_fill"
        assert self._at_exit(inputs["exit_states"][0, 0, 0]) == further, "another exit's state"
        if not further:
            cache.own["between"][position] = text[-1]
        cache[position], cache.positions[position] = text[-1], position
        return {}

    def _late(self, spec: GraphSpec, inputs: Any, cache: Any) -> dict[str, Any]:
        """The other layers: their K/V are of the tokens behind the states."""
        read = [self._tokens(state) for state in inputs["exit_states"][0, :, 0]]
        start = int(inputs["input_pos"][0])
        assert cache.own["early"][start] == read[0][-1], "the first layers' K/V are not there"
        real = [len(text) == start + row + 1 for row, text in enumerate(read)]
        tokens = [text[-1] if known else 0 for text, known in zip(read, real, strict=True)]  # as padding's are
        further = spec.role == "further_rest"
        assert self._at_exit(inputs["exit_states"][0, 0, 0]) == further, "another exit's state"
        if further:
            assert cache.own["between"][start] == read[0][-1], "the K/V of the layers between are not there"
        else:
            cache.own["between"][start : start + spec.width] = tokens
        outputs = super()._target(spec, {**inputs, "embeddings": np.array([tokens], np.float32)[..., None]}, cache)
        for row, text in enumerate(read):
            seen = self._seen(cache, inputs["mask"][0, 0, row])
            assert text == seen if real[row] else row, "states of another context"
        return {**outputs, "taps": outputs["activations"]}

    # --- an independent draft model

    def _model(self, spec: GraphSpec, inputs: Any, cache: Any) -> dict[str, Any]:
        positions = inputs["input_pos"].tolist()
        own = cache.own["draft_model"]
        own[positions[0] : positions[0] + spec.width] = inputs["embeddings"][0, :, 0].astype(int).tolist()
        if spec.role == "model_prefill":
            return {}
        seen = tuple(own[slot] for slot in np.flatnonzero(inputs["mask"][0, 0, 0]))
        assert len(seen) == positions[0] + 1
        return {**self._logits([self._right_or_wrong(seen)]), "activations": np.zeros((1, 1, 1), np.float32)}
