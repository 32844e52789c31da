"""Native MTP heads (DeepSeek-V3, Qwen3.5): a decoder layer more, trained with the target, with K/V of its own.

At each position the head reads the target's hidden state there beside the embedding of the token after it, and says
the one after that. Drafting on, it reads its own last state beside its own draft: a state that it never saw in
training, on K/V that are not the target's, which is why such a head is best for few drafts.

Where a sequence went back, what the head keeps of the last position left is of the token that came next before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

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


class MTPHeadsDrafter:
    def __init__(
        self, target: Target, cache: Cache, sampler: Sampler = GREEDY, early_stop: EarlyStop | None = None
    ) -> None:
        manifest = target.engine.manifest
        manifest.drafters.of(MTPHeadsSpec)
        self._target, self._cache, self._sampler, self._early_stop = target, cache, sampler, early_stop
        self._graphs = manifest.graphs_of("mtp_heads")
        self._head = manifest.graphs_of("head")[0]
        # The target's states from a position on that wait for the tokens after them.
        self._start, self._waiting = 0, np.zeros((0, 0), np.float32)

    def restart(self, prefilled: Sequence[Prefilled]) -> None:
        for chunk in prefilled:
            assert chunk.hidden is not None
            self._wait(chunk.start, chunk.hidden)

    def propose(self, context: Context, count: int) -> Proposal:
        unread = self._waiting[: max(0, self._cache.length - self._start)]
        if count < 1 or not len(unread):
            return NOTHING
        end = self._start + len(unread)
        self._cache.follow(KIND, range(self._start, end))
        state = self._read(self._start, unread, context.tokens[self._start + 1 :])
        self._start, self._waiting = end, unread[:0]
        chain = Chain(context, self._sampler, self._early_stop)
        while chain.draft(self._target.engine.run(self._head.name, {"activations": state})["logits"][0, 0]):
            if len(chain.tokens) == count:
                break
            state = self._read(end + len(chain.tokens) - 1, state[0], chain.tokens[-1:])
        return chain.proposal()

    def observe(self, verdict: Verdict, verified: Verified) -> None:
        rows = list(verdict.rows)
        self._wait(self._cache.length - len(rows), verified.hidden[rows])

    def _wait(self, start: int, hidden: Floats) -> None:
        """Until the token after the last of them is known. Those before that are not the context's are dropped."""
        before = self._waiting[: max(0, start - self._start)]
        if self._start + len(before) != start:
            before = before[:0]
        self._start = start - len(before)
        self._waiting = np.concatenate([before, hidden]) if len(before) else hidden

    def _read(self, start: int, hidden: npt.NDArray[np.float32], after: Sequence[int]) -> Floats:
        """The head's state [1, 1, D] at the last of the positions from `start` on, of which `hidden` [T, D] are the
        states and `after` the tokens that come next."""
        embedded = np.concatenate([self._target.embed(token)[0] for token in after[: len(hidden)]])
        unknown, state = self._cache.followed(KIND).start, hidden
        for graph, first, real, (tokens, states) in calls(
            self._graphs, start, [embedded, hidden.astype(np.float32)], self._cache.capacity
        ):
            place = self._target.positions(first, graph.width)
            mask = place["mask"].copy()
            mask[..., :unknown] = False
            inputs = {"embeddings": tokens, "activations": states, "input_pos": place["input_pos"], "mask": mask}
            output = self._target.engine.run(graph.name, inputs, self._cache.handle)["projected_activations"]
            state = output[:, real - 1 : real]
        return state


def make(target: Target, cache: Cache, sampler: Sampler, early_stop: EarlyStop | None) -> MTPHeadsDrafter:
    """Raises PocketdraftError for a bundle without native MTP heads."""
    return MTPHeadsDrafter(target, cache, sampler, early_stop)
