"""CALM on a bundle's graphs: a token that is sure after the target's first layers leaves there.

Unlike drafting this changes the text: it is done only where it is asked for, by a rule that was calibrated on texts
(see `calm.py`), and what was certified stands in the manifest. The confidence is the gap between the exit's two best
tokens, or what its classifier says, which costs no head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from .cache import Cache
from .calm import Calibration, ExitRule, Measure, calibrate, check_levels, divergence, gap, probability
from .drafter_specs import EarlyExitSpec
from .engine import Engine
from .errors import PocketdraftError
from .manifest import Manifest, change
from .proposal import NOTHING, Proposal
from .session import open_session
from .target import Floats, Prefilled, Target, Verified

THRESHOLDS = (0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)


class LeavingTarget(Target):
    """A target for one session that decodes plainly; `left` of the `asked` tokens have left early.

    Later tokens look back at a token that left, so the layers that it skips get its K/V all the same: made, as in the
    paper, of the state that it leaves with. The first layer skipped would have been given that very state; what the
    layers after it get is approximate, if they own K/V.
    """

    def __init__(self, engine: Engine, rule: ExitRule) -> None:
        """Raises PocketdraftError for a bundle without an early exit, or without what `rule` takes."""
        super().__init__(engine)
        manifest = engine.manifest
        layers = manifest.drafters.of(EarlyExitSpec).layers
        self._fill = next(iter(manifest.graphs_of("exit_fill")), None)
        owners = 1 + max(layer.layer for layer in manifest.kv)
        if layers < owners and self._fill is None:
            raise PocketdraftError(
                f"The exit lies after layer {layers}, the first {owners} keep K/V, and the bundle has no graph that "
                "fills in those of a token that leaves; export it again."
            )
        (draft,), (self._head,) = manifest.graphs_of("exit_draft"), manifest.graphs_of("exit_head")
        scored = any(tensor.name == "score" for tensor in draft.outputs)
        measures = ("gap", "classifier") if scored else ("gap",)
        if rule.measure not in measures:
            raise PocketdraftError(
                f"The measure of confidence is {rule.measure}, the bundle's exit has {' and '.join(measures)}; take "
                "one that it has, or export trained exits with --drafter."
            )
        self.rule = rule
        self.left = self.asked = self._start = 0

    def prefill(self, cache: Cache, tokens: Sequence[int]) -> list[Prefilled]:
        found = super().prefill(cache, tokens)
        self._start = cache.length  # where the text begins whose tokens the rule counts
        return found

    def verify(self, cache: Cache, last: int, proposal: Proposal) -> Verified:
        if len(proposal):
            raise PocketdraftError("Tokens may leave early or be drafted, not both; leave one of them out.")
        early = self.draft_early(cache, last, 0)
        state = early["exit_states"]
        # A classifier is asked before the head, which then runs for tokens that leave only.
        logits = self._logits(state) if self.rule.measure == "gap" else None
        confidence = probability(early["score"][0, 0]) if logits is None else gap(logits[0])
        self.asked += 1
        if not self.rule.exits(cache.length - self._start, float(confidence)):
            return super().verify(cache, last, NOTHING.begun([state]))
        self.left += 1
        if self._fill:
            place = self.positions(cache.length, 1)["input_pos"]
            self.engine.run(self._fill.name, {"exit_states": state, "input_pos": place}, cache.handle)
        return Verified(self._logits(state) if logits is None else logits, state[0], 1)

    def _logits(self, state: Floats) -> Floats:
        """The exit's, of a state [1, 1, D]: [1, V]."""
        logits: Floats = self.engine.run(self._head.name, {"exit_states": state})["logits"][0]
        return logits


def certify(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    budget: int,
    delta: float,
    epsilon: float,
    measure: Measure = "gap",
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[Calibration, float]:
    """The lowest threshold at which, with probability 1 - `epsilon`, texts differ by no more than `delta` on average
    (1 - ROUGE-L, in tokens), and the share of calibration tokens that leave early there.

    Thresholds are tried from the highest down, and no further than the first that fails. Raises PocketdraftError.
    """
    check_levels(delta, epsilon)
    rules = [ExitRule(measure, threshold, budget) for threshold in THRESHOLDS]
    targets = [LeavingTarget(engine, rule) for rule in rules]  # what cannot be is refused before any text is made
    full = [_text(Target(engine), prompt, budget) for prompt in prompts]
    losses: list[list[float]] = []
    found, shares = None, [0.0]
    for number, target in enumerate(targets, 1):
        progress(number, len(rules))
        texts = [_text(target, prompt, budget) for prompt in prompts]
        losses.append([divergence(one, other) for one, other in zip(texts, full, strict=True)])
        before, found = found, calibrate(rules[:number], np.array(losses), prompts, delta, epsilon)
        if found == before or found.rule.never:
            break
        shares.append(target.left / max(1, target.asked))
    assert found
    return found, shares[-1]


def write_calm(bundle: Path, calm: Calibration | None) -> Manifest:
    """Into the bundle's manifest. None takes it back."""
    return change(bundle, {"calm": calm})


def _text(target: Target, prompt: Sequence[int], budget: int) -> list[int]:
    session = open_session(target.engine, "none", 0, target)
    return [token for emitted in session.generate(prompt, budget) for token in emitted.tokens]
