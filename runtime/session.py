"""The draft-verify loop, in the paper's order (Leviathan et al., arXiv 2211.17192, algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import takewhile

from .accept import accept
from .cache import Cache
from .context import Context, Emitted, Ends
from .cost import SequenceTimes
from .draft_length import Confident, DraftLength, Drafts, Fixed
from .drafters import Drafter, load
from .engine import Engine
from .errors import PocketdraftError
from .sampler import GREEDY, Sampler
from .stats import Stats
from .target import Target


class Session:
    """One sequence over an engine's graphs. Sessions of one target share its graphs and nothing else."""

    def __init__(
        self,
        target: Target,
        cache: Cache,
        drafter: Drafter,
        draft_length: DraftLength,
        sampler: Sampler = GREEDY,
        stop: Sequence[int] = (),
    ) -> None:
        self.target, self.cache, self.drafter, self.draft_length = target, cache, drafter, draft_length
        self.sampler = sampler
        self.context = Context((*target.engine.manifest.tokens.stop, *stop))
        self.stats = Stats()
        self._times: SequenceTimes  # since the last prompt

    def generate(self, prompt: Sequence[int], budget: int, ends: Ends | None = None) -> Iterator[Emitted]:
        """Appends `prompt` to the sequence and yields up to `budget` new tokens, a round at a time.

        The output ends with the first stop token, or where `ends` says so, which may look at its text. May be called
        again: the tokens so far are the context of the next turn.
        """
        self.begin(prompt, budget, ends)
        while self.context.finish is None:
            yield self.round()

    def begin(self, prompt: Sequence[int], budget: int, ends: Ends | None = None) -> None:
        """Appends `prompt` and runs it, but for its last token: from here on there are rounds, until `finish` is set.

        Raises PocketdraftError, before anything changes, for a prompt that `check` refuses.
        """
        self.check(prompt, budget)
        self.context.begin(prompt, budget, ends)
        self._times = SequenceTimes(self.target.experience.times)
        self.draft_length.begin(self.context.tokens)
        self.drafter.restart(self.target.prefill(self.cache, self.context.tokens[self.cache.length : -1]))

    def round(self) -> Emitted:
        """One draft and its verification: one token at least."""
        target, cache, context, drafter, stats = self.target, self.cache, self.context, self.drafter, self.stats
        lap = stats.stopwatch()
        count = min(self.draft_length.next(stats), target.longest_draft(cache), context.remaining - 1)
        lap("host")
        proposal = drafter.propose(context, count)
        draft_s = lap("draft")
        verified = target.verify(cache, context.last, proposal)
        verify_s = lap("verify")
        verdict = accept(verified.logits, proposal, context.tokens, self.sampler)
        sampling_s = lap("sampling")
        target.keep(cache, verdict.rows)
        drafter.observe(verdict, verified)
        emitted = context.commit(verdict, cache.room)
        cache.truncate(len(context.tokens))
        stats.record(proposal, verdict, emitted)
        host_s = sampling_s + lap("host")
        self._times.add(verified.width, verify_s, len(proposal.confidences), draft_s, host_s)
        return emitted

    def rewind(self, tokens: Sequence[int]) -> list[int]:
        """Goes back to what the sequence shares with `tokens`; the rest of them, one at least, is what to begin with.

        The K/V of the shared ones stay where the rings allow it, even after a round that was interrupted.
        """
        pairs = zip(self.context.tokens, tokens[:-1], strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self.target.rewind(self.cache, shared)
        del self.context.tokens[shared:]
        return list(tokens[shared:])

    def check(self, prompt: Sequence[int], budget: int) -> None:
        """Raises PocketdraftError for a prompt that is empty, holds unknown tokens or does not fit."""
        vocabulary, capacity = self.target.engine.manifest.vocab_size, self.cache.capacity
        if not prompt:
            raise PocketdraftError("The prompt is empty; give at least one token.")
        unknown = next((token for token in prompt if not 0 <= token < vocabulary), None)
        if unknown is not None:
            raise PocketdraftError(
                f"The prompt holds token {unknown}, the bundle's vocabulary has {vocabulary}; use its own tokenizer."
            )
        length = len(self.context.tokens) + len(prompt)
        if length > capacity:
            raise PocketdraftError(
                f"The prompt makes {length} tokens, the bundle's context holds {capacity}; "
                "shorten it or export with a larger --context."
            )
        if budget < 1:
            raise PocketdraftError(f"The budget is {budget} tokens; give at least 1.")


def open_session(
    engine: Engine,
    drafter: str = "mtp",
    drafts: Drafts = 4,
    target: Target | None = None,
    sampler: Sampler = GREEDY,
    cache: Cache | None = None,
    stop: Sequence[int] = (),
) -> Session:
    """A fresh sequence. `drafter` names a file of `runtime/drafters`; "none" is plain decoding.

    `drafts` is their number in a round, or a policy that stops drafting early. `cache` may hold
    the first tokens of the prompt that is to come. `stop` tokens come on top of the bundle's. Raises PocketdraftError
    where the text would depend on how long things take.
    """
    if isinstance(drafts, Confident) and drafts.cost is None and sampler.rejects:
        raise PocketdraftError(
            "The drafts are stopped by measured times, on which rejection's text would depend; "
            "give their number, or accept by exact match."
        )
    target = target or Target(engine)
    cache = cache or target.new_cache()
    if isinstance(drafts, Confident):
        drafts = replace(drafts) if drafts.cost is not None else drafts.starting_from(target.experience)
    early_stop = None if isinstance(drafts, int) else drafts
    draft_length = Fixed(drafts) if isinstance(drafts, int) else drafts
    return Session(target, cache, load(drafter, target, cache, sampler, early_stop), draft_length, sampler, stop)
