"""The target as the loop sees it: tokens in, logits and hidden states out. Picks graphs, builds their inputs."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import tree
from .cache import Cache
from .cost import Times
from .engine import Arrays, Engine
from .errors import PocketdraftError
from .experience import Experience
from .graphs import GraphSpec
from .proposal import Proposal

Floats = npt.NDArray[np.float32]
REMEMBERED_ROWS = 1024
WIDTH = attrgetter("width")


class Verified(NamedTuple):
    """`logits` [1 + N, V] and `hidden` [1 + N, D] after the final norm; row 0 is the pending token's. `width` is the
    graph's. `taps` [1 + N, K] are hidden states of layers before, side by side, where a drafter wants them."""

    logits: Floats
    hidden: Floats
    width: int
    taps: Floats | None = None


class Prefilled(NamedTuple):
    """What a prefill of the positions from `start` on gave besides K/V, where the bundle's drafters want it:
    `hidden` [T, D] and `taps` [T, K] as in `Verified`."""

    start: int
    hidden: Floats | None
    taps: Floats | None


class Target:
    def __init__(self, engine: Engine) -> None:
        manifest = engine.manifest
        self.engine = engine
        self.context_length = manifest.context_length
        self._prefills = manifest.graphs_of("prefill")
        self._verifies = [*manifest.graphs_of("decode"), *manifest.graphs_of("verify")]
        self.experience = Experience(Times([graph.width for graph in self._verifies]))
        self._early = next(iter(manifest.graphs_of("exit_draft")), None)
        self._late_verifies = manifest.graphs_of("exit_verify")
        self._readers = [self._verifies[0], *self._prefills]
        self._padding = self.context_length  # the most that a prefill may have
        self._widest = max(graph.width for graph in (*self._prefills, *self._verifies))
        self._ring = min((layer.slots for layer in manifest.kv if layer.slots), default=self.context_length)
        self._recurrent = bool(manifest.target_memory)
        if self._recurrent:
            assert manifest.takes_back, "a recurrent layer, and the manifest does not say what it takes back"
            self._readers = sorted((*self._verifies, *self._prefills), key=lambda graph: graph.width)
            self._padding = self._widest = self._ring = manifest.takes_back
        self._embedder = manifest.graphs_of("embed")[0].name
        per_layer = manifest.graphs_of("embed_per_layer")
        self._per_layer_embedder = per_layer[0].name if per_layer else None
        # Slices of these two are all positions and masks that a call can need.
        self._slots = np.arange(self.context_length, dtype=np.int32)
        steps = np.repeat([True, False], self.context_length)
        self._prefixes = np.lib.stride_tricks.sliding_window_view(steps, self.context_length)[::-1]
        self._rows: OrderedDict[int, dict[str, npt.NDArray[Any]]] = OrderedDict()

    def new_cache(self) -> Cache:
        """An empty sequence."""
        return Cache(self.engine.new_cache(), self.context_length)

    def fork(self, cache: Cache) -> Cache:
        """K/V of their own that start as a copy; empty where the backend cannot copy them, to be prefilled again."""
        handle = self.engine.fork(cache.handle)
        return self.new_cache() if handle is None else replace(cache, handle=handle)

    def rewind(self, cache: Cache, length: int) -> None:
        """Goes back to `length` slots, or to none where a ring no longer holds what a token there looks back at.

        That token sees the window - 1 slots before it. A ring has window + widest - 1 slots or more (`KVLayout.of`),
        and slot s was overwritten once s plus the ring's size was written. So nothing is lost as long as the ring
        never wrapped, or `length` lies at most the widest call's tokens before what was written. A recurrent layer's
        state takes back as many tokens as the manifest says.
        """
        if cache.written <= self._ring or length >= cache.written - self._widest:
            cache.truncate(length)
        else:
            cache.truncate(0)
            cache.written = 0

    def embed(self, token: int) -> Floats:
        """The scaled embedding, [1, 1, D]."""
        return self._embedded(token)["embeddings"]

    def positions(self, start: int, count: int) -> dict[str, npt.NDArray[Any]]:
        """Inputs of a call whose tokens lie at `start` and after: `input_pos` int32 [T] and `mask` bool
        [1, 1, T, context], where each position sees itself and what came before."""
        end = start + count
        return {"input_pos": self._slots[start:end], "mask": self._prefixes[start + 1 : end + 1][None, None]}

    def prefill(self, cache: Cache, tokens: Sequence[int]) -> list[Prefilled]:
        """Commits K/V of `tokens`, call by call."""
        done, found = 0, []
        while done < len(tokens):
            left = len(tokens) - done
            graph = self._prefill_graph(left, cache.room)
            chunk = tokens[done : done + graph.width]
            outputs = self._run(graph, cache, chunk)
            given = (outputs.get(name) for name in ("activations", "taps"))
            hidden, taps = (None if rows is None else rows[0, : len(chunk)] for rows in given)
            found.append(Prefilled(cache.length, hidden, taps))
            cache.advance(len(chunk))
            done += len(chunk)
        return found

    def longest_draft(self, cache: Cache) -> int:
        """The most drafts that can be verified now: a graph writes its whole width, never past the cache."""
        fitting = bisect_right(self._verifies, cache.room, key=WIDTH)
        return self._verifies[fitting - 1].width - 1 if fitting else -1

    def free_nodes(self, nodes: int) -> int:
        """How many nodes the graph that verifies `nodes` has rows for: the others would be padding."""
        return self._verifies[bisect_right(self._verifies, nodes, key=WIDTH)].width - 1

    def verify(self, cache: Cache, last: int, proposal: Proposal) -> Verified:
        """Runs the pending token and the proposed ones; commits nothing.

        Raises PocketdraftError for a tree that the engine does not take, or that `tree.DEEPEST` refuses.
        """
        tokens, states = (last, *proposal.tokens), proposal.states
        graphs = self._verifies if states is None else self._late_verifies
        graph = graphs[bisect_left(graphs, len(tokens), key=WIDTH)]
        place = None
        if not proposal.is_chain:
            if not self.takes_trees:
                raise PocketdraftError(
                    f"The proposal is a tree of {len(proposal)}, this engine cannot move K/V rows; propose a chain."
                )
            place = tree.inputs(proposal, cache.length, graph.width, self.context_length)
        outputs = self._run(graph, cache, tokens, place, states)
        logits, hidden, taps = outputs["logits"], outputs["activations"], outputs.get("taps")
        count = len(tokens)
        return Verified(logits[0, :count], hidden[0, :count], graph.width, None if taps is None else taps[0, :count])

    def draft_early(self, cache: Cache, token: int, ahead: int) -> dict[str, Floats]:
        """Runs the layers that draft on a token `ahead` slots after the committed ones, where their K/V is written.

        Gives the token's state after them, `exit_states` [1, 1, D], of which a verify runs the other layers only; and
        `score` [1, 1] where the bundle has a trained exit, the logit of "my token is the last layer's".
        """
        assert self._early, "the bundle has no early exit"
        start = cache.length + ahead
        cache.written = max(cache.written, start + 1)
        inputs = {**self._embedded(token), **self.positions(start, 1)}
        return self.engine.run(self._early.name, inputs, cache.handle)

    @property
    def takes_trees(self) -> bool:
        """Whether a proposal may branch: a recurrent layer reads its tokens one after the other."""
        return self.engine.takes_trees and not self._recurrent

    def keep(self, cache: Cache, rows: Sequence[int]) -> None:
        """Commits the rows of the last verify that lie on the accepted path, row 0 being the pending token's.

        From the first gap on, which only a tree has, their K/V is moved to where a chain would have it.
        """
        if rows[-1] >= len(rows):  # they only grow: somewhere there is a gap
            start = next(index for index, row in enumerate(rows) if row != index)
            self.engine.compact(cache.handle, [cache.length + row for row in rows[start:]], cache.length + start)
        cache.advance(len(rows))

    def _prefill_graph(self, left: int, room: int) -> GraphSpec:
        """The narrowest graph that takes all that is left, else the widest; always one that fits the cache, and has
        no more padding than recurrent layers can take back."""
        fitting = [g for g in self._readers if g.width <= room and g.width - left <= self._padding]
        return next((g for g in fitting if g.width >= left), fitting[-1])

    def _run(
        self,
        graph: GraphSpec,
        cache: Cache,
        tokens: Sequence[int],
        place: Arrays | None = None,
        states: Sequence[Floats] | None = None,
    ) -> dict[str, Floats]:
        """Pads to the graph's width; padding lies beyond what will be committed, and nothing real sees it.

        `place` is what `positions` gives, where the tokens are no chain. `states` are the tokens' after the layers
        that drafted, [1, 1, D] each, where those have run.
        """
        cache.written = max(cache.written, cache.length + graph.width)
        padding = graph.width - len(tokens)
        if graph.width == 1:
            inputs = self._embedded(tokens[0])
        else:
            rows = [self._embedded(token) for token in (*tokens, *[0] * padding)]
            inputs = {name: np.concatenate([row[name] for row in rows], 1) for name in rows[0]}
        if states is not None:
            if not self._per_layer_embedder:  # what goes into the layers is all that the embeddings were for
                inputs = {}
            inputs = {**inputs, "exit_states": np.concatenate([*states, *[states[0]] * padding], 1)}
        place = place or self.positions(cache.length, graph.width)
        return self.engine.run(graph.name, {**inputs, **place}, cache.handle)

    def _embedded(self, token: int) -> dict[str, npt.NDArray[Any]]:
        """Rows of the last tokens are remembered: an embedding is a pure function of its token."""
        row = self._rows.get(token)
        if row is None:
            ids = np.array([[token]], np.int32)
            row = {"embeddings": self.engine.run(self._embedder, {"token_ids": ids})["embeddings"]}
            if self._per_layer_embedder:
                output = self.engine.run(self._per_layer_embedder, {"token_ids": ids})
                row["per_layer_embeddings"] = output["embeddings"]
            self._rows[token] = row
            if len(self._rows) > REMEMBERED_ROWS:
                self._rows.popitem(last=False)
        return row
