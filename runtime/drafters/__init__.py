"""Drafters: one a file, found by the file's name. A drafter proposes and observes; it never owns the loop."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import Protocol

from ..accept import Verdict
from ..cache import Cache
from ..context import Context
from ..draft_length import EarlyStop
from ..errors import PocketdraftError
from ..proposal import Proposal
from ..sampler import GREEDY, Sampler
from ..target import Target, Verified


class Drafter(Protocol):
    def restart(self) -> None:
        """The context has grown by a prompt: what was observed before is stale."""

    def propose(self, context: Context, count: int) -> Proposal:
        """At most `count` nodes after the pending token; none is allowed, and means plain decoding.

        What was drawn at random must be proposed, with the `probs` that it was drawn from: a drafter may stop
        because of the drafts that it has, not throw one away.
        """

    def observe(self, verdict: Verdict, verified: Verified) -> None:
        """What the target made of the proposal. K/V of the kept rows is committed by now."""


def load(
    name: str, target: Target, cache: Cache, sampler: Sampler = GREEDY, early_stop: EarlyStop | None = None
) -> Drafter:
    """Raises PocketdraftError for a name without a file."""
    known = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        mend = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}."
        raise PocketdraftError(f"There is no drafter {name!r}; {mend}")
    module = importlib.import_module(f".{name}", __name__)
    drafter: Drafter = module.make(target, cache, sampler, early_stop)
    return drafter
