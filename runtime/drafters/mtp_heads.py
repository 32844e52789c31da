"""Native MTP heads (DeepSeek-V3, Qwen3.5): decoder layers more, trained with the target, with K/V of their own.

At each position the head reads the target's hidden state there beside the embedding of the token after it, and says
the one after that. A single head that drafts on reads its own last state beside its own draft: a state that it never
saw in training, on K/V that are not the target's, which is why such a head is best for few drafts.

Of several, head k reads head k - 1's states of the same positions beside the tokens k positions further on, and makes
draft k + 1 (DeepSeek-V3, arXiv 2412.19437, section 2.2). The tokens that its last k rows lack are drafts. Where others
came instead, those rows are read again by the next round, as are the states that they are made of; where the drafts
stand, nothing is.

Where a sequence went back, what head k keeps of the last k + 1 positions left is of the tokens that came next before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile

import numpy as np

from ..accept import Verdict
from ..cache import Cache
from ..chain import Chain
from ..context import Context
from ..draft_length import EarlyStop
from ..drafter_specs import MTPHeadsSpec
from ..followed import calls
from ..proposal import NOTHING, Proposal
from ..sampler import GREEDY, Sampler
from ..target import Floats, Prefilled, Target, Verified

KIND = "mtp_heads"
DRAWS = True  # its drafts, where the sampler is not greedy


class Waiting:
    """States [D] of the positions from `start` on that wait for the tokens after them: what a head is to read."""

    def __init__(self) -> None:
        self.start = 0
        self.rows: list[Floats] = []

    def put(self, start: int, rows: Iterable[Floats]) -> None:
        """In the place of those from `start` on. Those before that would leave a gap are dropped."""
        before = self.rows[: max(0, start - self.start)]
        if self.start + len(before) != start:
            before = []
        self.start, self.rows = start - len(before), [*before, *rows]

    def drop(self, end: int) -> None:
        """Those before `end`: they were read."""
        self.rows = self.rows[max(0, end - self.start) :]
        self.start = max(self.start, end)


class MTPHeadsDrafter:
    def __init__(
        self, target: Target, cache: Cache, sampler: Sampler = GREEDY, early_stop: EarlyStop | None = None
    ) -> None:
        manifest = target.engine.manifest
        heads = range(manifest.drafters.of(MTPHeadsSpec).heads)
        self._target, self._cache, self._sampler, self._early_stop = target, cache, sampler, early_stop
        self._graphs = [[graph for graph in manifest.graphs_of("mtp_heads") if graph.head == head] for head in heads]
        self._lm_head = manifest.graphs_of("head")[0]
        self._waiting = [Waiting() for _ in heads]  # for each head
        self._end, self._drafts = 0, list[int]()  # of the last round: how many positions were read, what was drafted

    def restart(self, prefilled: Sequence[Prefilled]) -> None:
        self._settle(())
        for chunk in prefilled:
            assert chunk.hidden is not None
            self._waiting[0].put(chunk.start, chunk.hidden)

    def propose(self, context: Context, count: int) -> Proposal:
        after = self._end + 1
        self._settle(context.tokens[after : after + len(self._drafts)])
        first, end, heads = self._waiting[0], self._cache.length, len(self._graphs)
        del first.rows[max(0, end - first.start) :]
        if count < 1 or not first.rows:
            return NOTHING
        self._cache.follow(KIND, range(first.start, end))
        most = count if heads == 1 else min(count, heads)
        chain = Chain(context, self._sampler, self._early_stop)
        states = self._catch_up(0, context, ())
        while chain.draft(self._logits(states[-1])) and len(chain.tokens) < most:
            if heads == 1:
                states = self._read(0, end + len(chain.tokens) - 1, states[-1:], chain.tokens[-1:])
            else:
                states = self._catch_up(len(chain.tokens), context, chain.tokens)
        self._end, self._drafts = end, chain.tokens
        return chain.proposal()

    def observe(self, verdict: Verdict, verified: Verified) -> None:
        rows = list(verdict.rows)
        self._waiting[0].put(self._cache.length - len(rows), verified.hidden[rows])

    def _settle(self, came: Sequence[int]) -> None:
        """What was read with drafts that stand waits no more. `came` are the tokens after the positions read."""
        pairs = zip(self._drafts, came, strict=False)
        stand = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        for head, waiting in enumerate(self._waiting[: len(self._drafts)]):
            waiting.drop(self._end - max(0, head - stand))
        self._drafts = []

    def _catch_up(self, head: int, context: Context, drafts: Sequence[int]) -> Floats:
        """A head's states [T, D] at all the positions that wait for it, for the next head too: the last one drafts."""
        waiting = self._waiting[head]
        after = [*context.tokens[waiting.start + 1 :], *drafts][head:]
        states = self._read(head, waiting.start, waiting.rows, after)
        if head + 1 < len(self._waiting):
            self._waiting[head + 1].put(waiting.start, states)
        return states

    def _read(self, head: int, start: int, hidden: Floats | list[Floats], after: Sequence[int]) -> Floats:
        """A head's states [T, D] at the positions from `start` on, of which `hidden` [T, D] are the states that it is
        fed and `after` the tokens beside them."""
        embedded = np.concatenate([self._target.embed(token)[0] for token in after[: len(hidden)]])
        rows = [embedded, np.array(hidden, np.float32)]
        unknown, states = self._cache.followed(KIND).start, []
        for graph, first, real, (tokens, before) in calls(self._graphs[head], start, rows, self._cache.capacity):
            place = self._target.positions(first, graph.width)
            mask = place["mask"].copy()
            mask[..., :unknown] = False
            inputs = {"embeddings": tokens, "activations": before, "input_pos": place["input_pos"], "mask": mask}
            output = self._target.engine.run(graph.name, inputs, self._cache.handle)["projected_activations"]
            states.append(output[0, :real])
        return states[0] if len(states) == 1 else np.concatenate(states)

    def _logits(self, state: Floats) -> Floats:
        logits: Floats = self._target.engine.run(self._lm_head.name, {"activations": state[None, None]})["logits"][0, 0]
        return logits


def make(target: Target, cache: Cache, sampler: Sampler, early_stop: EarlyStop | None) -> MTPHeadsDrafter:
    """Raises PocketdraftError for a bundle without native MTP heads."""
    return MTPHeadsDrafter(target, cache, sampler, early_stop)
