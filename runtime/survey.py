"""What a drafter would have drafted at every place of the target's own text, and what any draft length makes of it.

Greedy decoding and exact match give one text, whatever drafts. So where a draft starts, how many of its tokens are
right is a fact of that place, and not of the rounds before: it is surveyed once, by plain decoding that asks the
drafter at each token and proposes nothing. Any rule for the number of drafts is then played on paper, round for round
as the session would, with no acceptance rate assumed. (Shorter drafts start at other places than longer ones: rates
measured at one length do not hold at another.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from .accept import Verdict
from .clock import now
from .context import Context, Emitted
from .cost import RoundCost
from .draft_length import DraftLength, EarlyStop, Never
from .drafters import Drafter, load
from .proposal import NOTHING, Proposal
from .sampler import GREEDY, Sampler
from .session import Session, open_session
from .stats import Stats
from .target import Prefilled, Target, Verified


@dataclass(frozen=True)
class Place:
    """A draft that starts here: of `proposed` tokens the first `right` are the text's. `confidences` are of all."""

    proposed: int
    right: int
    confidences: tuple[float, ...] = ()


@dataclass(frozen=True)
class Surveyed:
    """One text. `places[i]` is where i of its tokens were out; `budget` is what it was allowed, `room` the cache's
    free slots at the start. `propose_s` is what the drafter took at a place."""

    places: tuple[Place, ...]
    budget: int
    room: int
    propose_s: float = 0.0


class _Watched:
    """A drafter that is asked at each token, and whose drafts are kept from the target."""

    def __init__(self, drafter: Drafter, longest: int) -> None:
        self._drafter, self._longest = drafter, longest
        self.drafts: list[Proposal] = []
        self.seconds = 0.0

    def restart(self, prefilled: Sequence[Prefilled]) -> None:
        self._drafter.restart(prefilled)

    def propose(self, context: Context, count: int) -> Proposal:
        started = now()
        self.drafts.append(self._drafter.propose(context, self._longest))
        self.seconds += now() - started
        return NOTHING

    def observe(self, verdict: Verdict, verified: Verified) -> None:
        self._drafter.observe(verdict, verified)


def survey(
    target: Target, drafter: str, longest: int, prompt: Sequence[int], budget: int, sampler: Sampler = GREEDY
) -> Surveyed:
    """Of one text, which takes `longest` drafts for each of its tokens. Not for a sampler that rejects: with it the
    text depends on the drafts."""
    session: Session = open_session(target.engine, "none", 0, target, sampler)
    session.drafter = watched = _Watched(load(drafter, target, session.cache, sampler, Never()), longest)
    room = session.cache.capacity - len(prompt) + 1
    tokens = [token for emitted in session.generate(prompt, budget) for token in emitted.tokens]
    places = tuple(_judge(proposal, tokens[at:]) for at, proposal in enumerate(watched.drafts))
    return Surveyed(places, budget, room, watched.seconds / len(places))


def _judge(proposal: Proposal, text: Sequence[int]) -> Place:
    pairs = zip(proposal.tokens, text, strict=False)
    right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return Place(len(proposal), right, proposal.confidences)


@dataclass
class Played:
    """Rounds on paper, with the time that a device would take for them."""

    stats: Stats = field(default_factory=Stats)
    seconds: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        return self.stats.emitted / self.seconds


def play(
    texts: Iterable[Surveyed], length: DraftLength, cost: RoundCost, early_stop: EarlyStop | None = None
) -> Played:
    """The rounds of all texts, one after the other, with the same policy, which may learn from one to the next.

    What would be accepted after a text's end is not known, and counts as refused."""
    played = Played()
    for text in texts:
        at = 0
        while at < len(text.places):
            place, room = text.places[at], min(text.budget, text.room) - at
            asked = min(length.next(played.stats), text.budget - at - 1, _longest(cost, text.room - at), place.proposed)
            made = next((n for n in range(1, asked) if early_stop and early_stop.enough(place.confidences[:n])), asked)
            accepted = min(place.right, made)
            emitted = min(accepted + 1, len(text.places) - at, room + 1)
            proposal = Proposal.chain((0,) * made, confidences=place.confidences[:made] if early_stop else ())
            verdict = Verdict((0,) * accepted, 0, tuple(range(accepted + 1)))
            played.stats.record(proposal, verdict, Emitted((0,) * emitted, min(accepted, emitted), None))
            played.seconds += cost.seconds(made)
            at += emitted
    return played


def _longest(cost: RoundCost, room: int) -> int:
    """As `Target.longest_draft`."""
    return max((width for width, _ in cost.verify_s if width <= room), default=0) - 1
