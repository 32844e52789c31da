"""A chain of drafts as it grows: what a drafter makes of its logits, token after token."""

from __future__ import annotations

from .context import Context
from .draft_length import EarlyStop
from .proposal import Proposal
from .sampler import Draft, Sampler
from .sampling import Logits


class Chain:
    """`tokens` are those of `drafts`; `confidences` how sure the drafter is of each, where `early_stop` asks."""

    def __init__(self, context: Context, sampler: Sampler, early_stop: EarlyStop | None) -> None:
        self._before, self._sampler, self._early_stop = context.tokens, sampler, early_stop
        self.drafts: list[Draft] = []
        self.tokens: list[int] = []
        self.confidences: list[float] = []

    def draft(self, logits: Logits) -> bool:
        """Drafts the next token from logits [V]. Whether another one is worth drafting."""
        made = self._sampler.draft(logits, self._before, self.tokens)
        self.drafts.append(made)
        self.tokens.append(made.token)
        if self._early_stop is None:
            return True
        self.confidences.append(made.confidence)
        return not self._early_stop.enough(self.confidences)

    def proposal(self) -> Proposal:
        return Proposal.chain(self.tokens, [draft.probs for draft in self.drafts], self.confidences)
