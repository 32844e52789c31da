"""Confident early exit (CALM, Schuster et al., arXiv 2207.07061): each token leaves at the first exit that is sure.

Unlike drafting this changes the text. How much is bounded by calibration: of candidate thresholds, Learn-then-Test
(Angelopoulos et al., arXiv 2110.01052) keeps the lowest at which the text's risk is certified. Here are the measures
of confidence, the rule that a decoder asks, and the test; nothing here runs a graph. V is the vocabulary, D the hidden
size.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .errors import PocketdraftError

Floats = npt.NDArray[np.floating[Any]]
Measure = Literal["gap", "cosine", "classifier"]
Consistency = Literal["textual", "risk"]
NEVER = 1.0  # the threshold of a rule that never exits
TAU = 4.0  # the paper's choice
RISKS: dict[Consistency, str] = {"textual": "textual risk", "risk": "excess risk"}


# --- how sure an exit is, 0 to 1


def gap(logits: Floats) -> Floats:
    """Between the probabilities of an exit's two best tokens. `logits` [..., V], after the softcap -> float64 [...]."""
    best = logits.argmax(-1, keepdims=True)
    shares = np.exp(logits - np.take_along_axis(logits, best, -1))
    total = shares.sum(-1, dtype=np.float64)
    np.put_along_axis(shares, best, 0.0, -1)  # the second best is then the best: a sixth of a partition's time
    found: Floats = (1.0 - shares.max(-1)) / total
    return found


def cosine(state: Floats, before: Floats) -> Floats:
    """Between the hidden states [..., D] of two layers that follow each other: they turn no more once all is settled.

    The later one is the exit's. float64 [...], -1 to 1; 0 if one of them is zero.
    """
    state, before = state.astype(np.float64), before.astype(np.float64)
    lengths = np.linalg.norm(state, axis=-1) * np.linalg.norm(before, axis=-1)
    found: Floats = np.clip((state * before).sum(-1) / np.where(lengths, lengths, 1.0), -1.0, 1.0)
    return found


def probability(score: Floats) -> Floats:
    """Of a classifier's score (a logit) [...], that this exit's token is the last layer's: float64 [...]."""
    return 0.5 + 0.5 * np.tanh(0.5 * np.asarray(score, np.float64))


# --- when to leave


@dataclass(frozen=True)
class ExitRule:
    """Leave at the first exit that is surer than the threshold.

    The threshold falls through the text, as an early token's error reaches all later ones: at token t it is
    0.9 `threshold` + 0.1 exp(-`tau` t / `length`) within 0 and 1 as in the paper, or `threshold` itself where
    `tau` is None. A threshold of 1 is NEVER, whatever the token. `length` is the longest text in tokens.
    """

    measure: Measure
    threshold: float
    length: int
    tau: float | None = TAU

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold <= 1.0:
            raise PocketdraftError(f"The exit threshold is {self.threshold}; give one from 0 to 1 (1 never exits).")
        if self.length < 1:
            raise PocketdraftError(
                f"The exit rule's length is {self.length}; give the longest text's tokens, 1 or more."
            )
        if self.tau is not None and not 0.0 <= self.tau < math.inf:
            raise PocketdraftError(f"The exit rule's tau is {self.tau}; give 0 or more, or None for no decay.")

    @property
    def never(self) -> bool:
        return self.threshold >= NEVER

    def at(self, t: int) -> float:
        """The threshold for the text's token t, from 0; the prompt is not counted."""
        if self.never or self.tau is None:
            return self.threshold
        return min(1.0, max(0.0, 0.9 * self.threshold + 0.1 * math.exp(-self.tau * t / self.length)))

    def exits(self, t: int, confidence: float) -> bool:
        """False for NaN: an exit whose confidence means nothing is not taken."""
        return confidence > self.at(t)


# --- how much a text was changed, 0 to 1


def divergence(text: Sequence[int], other: Sequence[int]) -> float:
    """1 - ROUGE-L (F1 of the longest common subsequence) of two texts in tokens: the paper's textual consistency.

    It is symmetric, 0 only for equal texts, and the same as their insertions and deletions over their tokens. A token
    left out or put in costs that token, while what follows still counts as agreement, which position-wise matching
    would not see.
    """
    if not text and not other:
        return 0.0
    ours, theirs = np.asarray(text, dtype=np.int64), np.asarray(other, dtype=np.int64)
    longest = np.zeros(len(theirs) + 1, dtype=np.int64)  # of a prefix of `text` and each prefix of `other`
    for token in ours:
        longest[1:] = np.maximum(longest[1:], longest[:-1] + (theirs == token))
        np.maximum.accumulate(longest, out=longest)
    return 1.0 - 2.0 * float(longest[-1]) / (len(ours) + len(theirs))


def excess_risk(early: Sequence[int], full: Sequence[int], reference: Sequence[int]) -> float:
    """How much farther from the reference the early-exit text is than the full one: the paper's risk consistency."""
    return max(0.0, divergence(early, reference) - divergence(full, reference))


# --- Learn-then-Test


@dataclass(frozen=True)
class Calibration:
    """With probability 1 - `epsilon` over the calibration texts, `rule` keeps the expected risk of a text <= `delta`.

    That holds for texts drawn as those were. `risk` is their mean risk at the rule's threshold, and `p_value` what
    the test gave there; a rule that never exits has risk 0, and the p-value of the first candidate, which failed.
    """

    rule: ExitRule
    consistency: Consistency
    delta: float
    epsilon: float
    texts: int
    texts_sha256: str
    risk: float
    p_value: float

    @property
    def sentence(self) -> str:
        how = f"{RISKS[self.consistency]} <= {self.delta:g} with probability {1 - self.epsilon:g}, {self.texts} texts"
        if self.rule.never:
            return f"No threshold of {self.rule.measure} was certified ({how}): no token exits early."
        return f"{self.rule.measure} > {self.rule.threshold:g} was certified ({how}; measured {self.risk:.3f})."


def calibrate(
    rules: Sequence[ExitRule],
    losses: Floats,
    texts: Sequence[Sequence[int]],
    delta: float,
    epsilon: float = 0.05,
    consistency: Consistency = "textual",
) -> Calibration:
    """The lowest threshold that is certified, by fixed-sequence testing: from the highest down to the first failure.

    `losses` [candidates, texts] are risks, 0 to 1, of the `rules` on each calibration text, `texts` its tokens. The
    rules differ in their thresholds alone, the highest first. Stopping at the first p-value above `epsilon` is what
    lets each be tested at the whole level. Raises PocketdraftError for anything else.
    """
    _check(rules, losses, len(texts), delta, epsilon)
    chosen, risk, p_value = replace(rules[0], threshold=NEVER), 0.0, 1.0
    for rule, row in zip(rules, losses, strict=True):
        found = hoeffding_bentkus(float(row.mean()), row.size, delta)
        if found > epsilon:
            p_value = found if chosen.never else p_value
            break
        chosen, risk, p_value = rule, float(row.mean()), found
    return Calibration(chosen, consistency, delta, epsilon, len(texts), digest(texts), risk, p_value)


def hoeffding_bentkus(risk: float, count: int, delta: float) -> float:
    """The p-value of "the expected risk is above `delta`", given the mean of `count` losses from 0 to 1.

    The smaller of Hoeffding's exp(-n KL(risk, delta)) and Bentkus' e P(Bin(n, delta) <= ceil(n risk)), at most 1:
    Learn-then-Test's choice for bounded losses (arXiv 2110.01052).
    """
    low = min(risk, delta)
    kl = (low * math.log(low / delta) if low else 0.0) + (1 - low) * math.log((1 - low) / (1 - delta))
    bentkus = math.e * _binomial_cdf(math.ceil(count * risk), count, delta)
    return min(1.0, math.exp(-count * kl), bentkus)


def digest(texts: Sequence[Sequence[int]]) -> str:
    """sha256 of texts in tokens: in decimal, spaces between tokens, a line a text."""
    return hashlib.sha256("".join(f"{' '.join(map(str, text))}\n" for text in texts).encode()).hexdigest()


def _binomial_cdf(successes: int, trials: int, chance: float) -> float:
    """P(Bin(trials, chance) <= successes), 0 < chance < 1."""
    if successes >= trials:
        return 1.0
    logs = [
        math.lgamma(trials + 1)
        - math.lgamma(k + 1)
        - math.lgamma(trials - k + 1)
        + k * math.log(chance)
        + (trials - k) * math.log1p(-chance)
        for k in range(successes + 1)
    ]
    return min(1.0, math.fsum(math.exp(value) for value in logs))


def check_levels(delta: float, epsilon: float) -> None:
    """Raises PocketdraftError for what is no share."""
    for name, level in (("delta", delta), ("epsilon", epsilon)):
        if not 0.0 < level < 1.0:
            raise PocketdraftError(f"The calibration's {name} is {level}; give one between 0 and 1.")


def _check(rules: Sequence[ExitRule], losses: Floats, texts: int, delta: float, epsilon: float) -> None:
    check_levels(delta, epsilon)
    if not rules or not texts or losses.shape != (len(rules), texts):
        raise PocketdraftError(
            f"The calibration has losses {list(losses.shape)} for {len(rules)} rules and {texts} texts; "
            "give one loss a rule and text, and at least one of each."
        )
    if not ((losses >= 0) & (losses <= 1)).all():  # NaN is neither
        raise PocketdraftError(
            f"The calibration's losses go from {losses.min()} to {losses.max()}; give risks from 0 to 1."
        )
    for rule, lower in pairwise(rules):
        if not rule.threshold > lower.threshold or replace(lower, threshold=rule.threshold) != rule:
            raise PocketdraftError(
                f"The calibration's rules are {rule} and then {lower}; give rules that differ in their thresholds "
                "alone, the highest first."
            )
