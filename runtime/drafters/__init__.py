"""Drafters: one a file, found by the file's name. A drafter proposes and observes; it never owns the loop."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Sequence
from typing import Any, Protocol

from ..accept import Verdict
from ..cache import Cache
from ..context import Context
from ..draft_length import EarlyStop
from ..drafter_specs import DrafterSpecs
from ..errors import PocketdraftError
from ..proposal import Proposal
from ..sampler import GREEDY, Rule, Sampler
from ..target import Prefilled, Target, Verified


class Drafter(Protocol):
    def restart(self, prefilled: Sequence[Prefilled]) -> None:
        """The context has grown by a prompt, of which this much is new: what was observed before is stale."""

    def propose(self, context: Context, count: int) -> Proposal:
        """At most `count` nodes after the pending token; none is allowed, and means plain decoding.

        What was drawn at random must be proposed, with the `probs` that it was drawn from: a drafter may stop
        because of the drafts that it has, not throw one away.
        """

    def observe(self, verdict: Verdict, verified: Verified) -> None:
        """What the target made of the proposal. K/V of the kept rows is committed by now."""


def default_rule(name: str, timed: bool) -> Rule:
    """The rule that accepts more of a drafter's drafts: rejection of those that are drawn.

    Of others the two accept alike, and of drafts that are stopped by measured times (`timed`) rejection would make
    the text depend on those: exact match.
    """
    return "rejection" if _draws(name) and not timed else "exact"


def stoppable(name: str) -> bool:
    """Whether it tells how sure it is of each draft, as all do that can draw them: a policy may stop it early."""
    return _draws(name)


def runnable(specs: DrafterSpecs) -> list[str]:
    """All that a bundle with these drafters can draft with: a file says with `KIND` whose graphs it runs, if any, or
    with `KINDS` whose it can run."""
    return [name for name in _names() if name != "none" and _runs(_module(name), specs)]


def surveyable(specs: DrafterSpecs) -> list[str]:
    """Those of them whose drafts at a place do not depend on the rounds before, so that `survey` can say what any
    length of them gives. A file says with `LEARNS` that its own do."""
    return [name for name in runnable(specs) if not getattr(_module(name), "LEARNS", False)]


def load(
    name: str, target: Target, cache: Cache, sampler: Sampler = GREEDY, early_stop: EarlyStop | None = None
) -> Drafter:
    """Raises PocketdraftError for a name without a file."""
    drafter: Drafter = _module(name).make(target, cache, sampler, early_stop)
    return drafter


def _draws(name: str) -> bool:
    return getattr(_module(name), "DRAWS", False)


def _runs(drafter: Any, specs: DrafterSpecs) -> bool:
    kinds = getattr(drafter, "KINDS", (getattr(drafter, "KIND", None),))
    return kinds == (None,) or not set(kinds).isdisjoint(specs.kinds)


def _names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def _module(name: str) -> Any:
    known = _names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        mend = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}."
        raise PocketdraftError(f"There is no drafter {name!r}; {mend}")
    return importlib.import_module(f".{name}", __name__)
