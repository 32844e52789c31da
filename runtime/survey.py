"""What a drafter would have drafted at every place of the target's own text, and what any draft length makes of it.

Greedy decoding and exact match give one text, whatever drafts. So where a draft starts, how many of its tokens are
right is a fact of that place, and not of the rounds before: it is surveyed once, by plain decoding that asks the
drafter at each token and proposes nothing. Any rule for the number of drafts is then played on paper, round for round
as the session would, with no acceptance rate assumed. (Shorter drafts start at other places than longer ones: rates
measured at one length do not hold at another.)

A tree is surveyed once too: found best first, the tree of n nodes is the first n of a larger one. Drafters that learn
from their own rounds, `mtp_tree` and `hybrid`, draft something else where those are others, and cannot be surveyed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .accept import Verdict
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
    """A draft that starts here, of `proposed` nodes. `path` are those that the text takes, of a chain its first ones;
    `confidences` are of all, where the drafter tells them."""

    proposed: int
    path: tuple[int, ...]
    confidences: tuple[float, ...] = ()

    def accepted(self, nodes: int) -> int:
        """If no more than the first `nodes` are proposed."""
        return bisect_left(self.path, nodes)


@dataclass(frozen=True)
class Surveyed:
    """One text. `places[i]` is where i of its tokens were out; `budget` is what it was allowed, `room` the cache's
    free slots at the start, `prompt` the tokens before."""

    places: tuple[Place, ...]
    budget: int
    room: int
    prompt: tuple[int, ...] = ()


class _Watched:
    """A drafter that is asked at each token, and whose drafts are kept from the target."""

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self.drafts: list[Proposal] = []

    def restart(self, prefilled: Sequence[Prefilled]) -> None:
        self._drafter.restart(prefilled)

    def propose(self, context: Context, count: int) -> Proposal:
        self.drafts.append(self._drafter.propose(context, count))
        return NOTHING

    def observe(self, verdict: Verdict, verified: Verified) -> None:
        self._drafter.observe(verdict, verified)


def survey(
    target: Target, drafter: str, longest: int, prompt: Sequence[int], budget: int, sampler: Sampler = GREEDY
) -> Surveyed:
    """Of one text, which takes `longest` drafts for each of its tokens, or as many as there is room for. Not for a
    sampler that rejects: with it the text depends on the drafts."""
    session: Session = open_session(target.engine, "none", longest, target, sampler)
    session.drafter = watched = _Watched(load(drafter, target, session.cache, sampler, Never()))
    room = session.cache.capacity - len(prompt) + 1
    tokens = [token for emitted in session.generate(prompt, budget) for token in emitted.tokens]
    places = tuple(_judge(proposal, tokens[at:]) for at, proposal in enumerate(watched.drafts))
    return Surveyed(places, budget, room, tuple(prompt))


def _judge(proposal: Proposal, text: Sequence[int]) -> Place:
    path: list[int] = []
    for node, (token, parent) in enumerate(zip(proposal.tokens, proposal.parents, strict=True)):
        if len(path) < len(text) and token == text[len(path)] and parent == (path[-1] if path else -1):
            path.append(node)
    return Place(len(proposal), tuple(path), proposal.confidences)


@dataclass
class Played:
    """Rounds on paper, with the time that a device would take for them. A tree's count as a chain of as many nodes."""

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
            accepted = place.accepted(made)
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
