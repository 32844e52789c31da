"""CALM on a bundle's graphs: a token that an exit of the target is sure of leaves there.

Unlike drafting this changes the text: it is done only where it is asked for, by a rule that was calibrated on texts
(see `calm.py`), and what was certified stands in the manifest. The confidence is the gap between the exit's two best
tokens, or what its classifier says, which costs no head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from .cache import Cache
from .calm import (
    Calibration,
    Consistency,
    ExitRule,
    Measure,
    calibrate,
    check_levels,
    divergence,
    excess_risk,
    gap,
    probability,
)
from .drafter_specs import EarlyExitSpec
from .engine import Engine
from .errors import PocketdraftError
from .graphs import GraphSpec
from .manifest import Manifest, change
from .proposal import NOTHING, Proposal
from .session import open_session
from .target import Floats, Prefilled, Target, Verified

THRESHOLDS = (0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)


@dataclass(frozen=True)
class _Exit:
    """A place to leave: the graph of the layers from the one before, its head's, and the one that fills in K/V."""

    reach: GraphSpec
    head: GraphSpec
    fill: GraphSpec | None


class LeavingTarget(Target):
    """A target for one session that decodes plainly; `left` of the `asked` tokens have left early, by exit.

    A token leaves at the first exit that is surer than the rule's threshold, and goes on from the state there if it is
    not. Later tokens look back at a token that left, so the layers that it skips get its K/V all the same: made, as in
    the paper, of the state that it leaves with. The first layer skipped would have been given that very state; what the
    layers after it get is approximate, if they own K/V.
    """

    def __init__(self, engine: Engine, rule: ExitRule, passed: int = 0) -> None:
        """The first `passed` exits are not asked.

        Raises PocketdraftError for a bundle without an early exit, or without what `rule` takes.
        """
        super().__init__(engine)
        manifest = engine.manifest
        spec = manifest.drafters.of(EarlyExitSpec)
        self.exits = (spec.layers, *spec.further)
        graphs = [
            [*manifest.graphs_of(first), *manifest.graphs_of(further)]
            for first, further in (
                ("exit_draft", "further_exit"),
                ("exit_head", "further_head"),
                ("exit_fill", "further_fill"),  # of the exits up to the last owner of K/V
            )
        ]
        self._places = [_Exit(*one) for one in zip_longest(*graphs)]
        self._late_verifies = manifest.graphs_of("further_rest") or self._late_verifies
        owners = 1 + max(layer.layer for layer in manifest.kv)
        for cut, place in zip(self.exits, self._places, strict=True):
            if cut < owners and place.fill is None:
                raise PocketdraftError(
                    f"The exit lies after layer {cut}, the first {owners} keep K/V, and the bundle has no graph that "
                    "fills in those of a token that leaves; export it again."
                )
        scored = any(tensor.name == "score" for tensor in self._places[0].reach.outputs)
        measures = ("gap", "classifier") if scored else ("gap",)
        if rule.measure not in measures:
            raise PocketdraftError(
                f"The measure of confidence is {rule.measure}, the bundle's exit has {' and '.join(measures)}; take "
                "one that it has, or export trained exits with --drafter."
            )
        self.rule, self._passed = rule, passed
        self.left = [0] * len(self.exits)
        self.asked = self._start = 0

    @property
    def shares(self) -> dict[int, float]:
        """Of the tokens asked, those that left, by the layers before their exit."""
        return {cut: left / max(1, self.asked) for cut, left in zip(self.exits, self.left, strict=True)}

    def prefill(self, cache: Cache, tokens: Sequence[int]) -> list[Prefilled]:
        found = super().prefill(cache, tokens)
        self._start = cache.length  # where the text begins whose tokens the rule counts
        return found

    def verify(self, cache: Cache, last: int, proposal: Proposal) -> Verified:
        if len(proposal):
            raise PocketdraftError("Tokens may leave early or be drafted, not both; leave one of them out.")
        self.asked += 1
        state: Floats | None = None
        for number, place in enumerate(self._places):
            early = self._reach(place, cache, last, state)
            state = early["exit_states"]
            if number < self._passed:
                continue
            # A classifier is asked before the head, which then runs for tokens that leave only.
            logits = self._logits(place, state) if self.rule.measure == "gap" else None
            confidence = probability(early["score"][0, 0]) if logits is None else gap(logits[0])
            if self.rule.exits(cache.length - self._start, float(confidence)):
                self.left[number] += 1
                if place.fill:
                    at = self.positions(cache.length, 1)["input_pos"]
                    self.engine.run(place.fill.name, {"exit_states": state, "input_pos": at}, cache.handle)
                return Verified(self._logits(place, state) if logits is None else logits, state[0], 1)
        assert state is not None
        return super().verify(cache, last, NOTHING.begun([state]))

    def _reach(self, place: _Exit, cache: Cache, last: int, state: Floats | None) -> dict[str, Floats]:
        """Runs the layers before an exit on from the `state` at the one before it: what `draft_early` gives."""
        if state is None:
            return self.draft_early(cache, last, 0)
        return self._run(place.reach, cache, [last], states=[state])

    def _logits(self, place: _Exit, state: Floats) -> Floats:
        """An exit's, of a state [1, 1, D]: [1, V]."""
        logits: Floats = self.engine.run(place.head.name, {"exit_states": state})["logits"][0]
        return logits


def certify(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    budget: int,
    delta: float,
    epsilon: float,
    measure: Measure = "gap",
    progress: Callable[[int, int], None] = lambda done, of: None,
    references: Sequence[Sequence[int]] | None = None,
) -> tuple[Calibration, dict[int, float]]:
    """The lowest threshold at which, with probability 1 - `epsilon`, texts differ by no more than `delta` on average
    (1 - ROUGE-L, in tokens), and the shares of calibration tokens that leave early there, by the layers before.

    With `references`, what each prompt should be continued with, texts are no more than `delta` farther from those than
    the full target's are (the paper's risk consistency); what is beyond `budget` tokens of them is not looked at.
    Thresholds are tried from the highest down, and no further than the first that fails. Raises PocketdraftError.
    """
    check_levels(delta, epsilon)
    rules = [ExitRule(measure, threshold, budget) for threshold in THRESHOLDS]
    targets = [LeavingTarget(engine, rule) for rule in rules]  # what cannot be is refused before any text is made
    full = [_text(Target(engine), prompt, budget) for prompt in prompts]
    losses: list[list[float]] = []
    found, shares = None, targets[0].shares
    wanted = None if references is None else [list(reference[:budget]) for reference in references]
    seen = prompts if wanted is None else [[*one, *other] for one, other in zip(prompts, wanted, strict=True)]
    consistency: Consistency = "textual" if wanted is None else "risk"
    for number, target in enumerate(targets, 1):
        progress(number, len(rules))
        texts = [_text(target, prompt, budget) for prompt in prompts]
        if wanted is None:
            losses.append([divergence(*both) for both in zip(texts, full, strict=True)])
        else:
            losses.append([excess_risk(*three) for three in zip(texts, full, wanted, strict=True)])
        before, found = found, calibrate(rules[:number], np.array(losses), seen, delta, epsilon, consistency)
        if found == before or found.rule.never:
            break
        shares = target.shares
    assert found
    return found, shares


def write_calm(bundle: Path, calm: Calibration | None) -> Manifest:
    """Into the bundle's manifest. None takes it back."""
    return change(bundle, {"calm": calm})


def _text(target: Target, prompt: Sequence[int], budget: int) -> list[int]:
    session = open_session(target.engine, "none", 0, target)
    return [token for emitted in session.generate(prompt, budget) for token in emitted.tokens]
