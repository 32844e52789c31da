"""Prompt lookup where that is worth more than MTP's drafts, else MTP: by expected gain, round by round.

A bundle without an MTP drafter may have native heads in its place. Looked-up drafts cost nothing but their rows of the
verify. What they are worth follows from how often they were right after a match of that length, MTP's from how often
they were. The rate of a round is what it should give over what this target's rounds take (`cost.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from ..accept import Verdict
from ..cache import Cache
from ..context import Context
from ..cost import RoundCost, expected_tokens
from ..draft_length import EarlyStop, Never
from ..errors import PocketdraftError
from ..proposal import Proposal
from ..sampler import GREEDY, Sampler
from ..target import Prefilled, Target, Verified
from .mtp import MTPDrafter
from .mtp_heads import MTPHeadsDrafter
from .prompt_lookup import look_up

KINDS = ("mtp", "mtp_heads")  # one of them
LEARNS = True  # from its own rounds
MTP = 0  # beside the lengths of a match
# How often a draft is right, supposed for so many drafts, until there are real ones.
SUPPOSED, SUPPOSED_DRAFTS = {MTP: 0.7, 1: 0.3, 2: 0.5, 3: 0.7}, 4.0
SUPPOSED_COST = 0.2  # of a draft over a verify, until both were timed


class HybridDrafter:
    def __init__(
        self, target: Target, cache: Cache, sampler: Sampler = GREEDY, early_stop: EarlyStop | None = None
    ) -> None:
        specs = target.engine.manifest.drafters
        drafter = MTPHeadsDrafter if specs.mtp_heads and not specs.mtp else MTPDrafter
        # Only drafts whose confidence is asked for are timed.
        self._mtp, self._target = drafter(target, cache, sampler, early_stop or Never()), target
        self._right = {source: share * SUPPOSED_DRAFTS for source, share in SUPPOSED.items()}
        self._judged = dict.fromkeys(SUPPOSED, SUPPOSED_DRAFTS)
        self._proposed, self._source = 0, MTP

    def restart(self, prefilled: Sequence[Prefilled]) -> None:
        self._mtp.restart(prefilled)

    def propose(self, context: Context, count: int) -> Proposal:
        found, matched = look_up(context.tokens, count)
        if found and self._rate(matched, len(found)) > self._rate(MTP, count):
            proposal, self._source = Proposal.chain(found), matched
        else:
            proposal, self._source = self._mtp.propose(context, count), MTP
        self._proposed = len(proposal)
        return proposal

    def observe(self, verdict: Verdict, verified: Verified) -> None:
        self._mtp.observe(verdict, verified)  # it must know the target's state after any round
        accepted = len(verdict.accepted)
        self._right[self._source] += accepted
        self._judged[self._source] += min(accepted + 1, self._proposed)

    def _rate(self, source: int, drafts: int) -> float:
        """Tokens over time of a round with so many drafts of this source."""
        cost = self._target.experience.times.cost() or RoundCost.flat(SUPPOSED_COST)
        drafts = min(drafts, cost.longest)
        seconds = cost.seconds(drafts, drafts if source == MTP else 0)
        return expected_tokens([self._right[source] / self._judged[source]], drafts) / seconds


def make(target: Target, cache: Cache, sampler: Sampler, early_stop: EarlyStop | None) -> HybridDrafter:
    """Raises PocketdraftError for a sampler that accepts by rejection: its text would depend on measured times."""
    if sampler.rejects:
        raise PocketdraftError(
            "The drafter hybrid chooses by measured times, on which rejection's text would depend; accept by exact "
            "match, or draft with mtp or mtp_heads."
        )
    return HybridDrafter(target, cache, sampler, early_stop)
