"""CALM on a bundle's graphs: a token that is sure after the target's first layers leaves there.

Unlike drafting this changes the text: it is done only where it is asked for, by a rule that was calibrated on texts
(see `calm.py`), and what was certified stands in the manifest. The confidence is the gap between the exit's two best
tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from .cache import Cache
from .calm import Calibration, ExitRule, calibrate, check_levels, divergence, gap
from .drafter_specs import EarlyExitSpec
from .engine import Engine
from .errors import PocketdraftError
from .manifest import Manifest, change
from .proposal import NOTHING, Proposal
from .session import open_session
from .target import Prefilled, Target, Verified

THRESHOLDS = (0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)


class LeavingTarget(Target):
    """A target for one session that decodes plainly; `left` of the `asked` tokens have left early.

    K/V of the layers that a token skips would have to be filled in from the state it leaves with; here none of them
    owns any, so there is nothing to fill, and nothing is approximated.
    """

    def __init__(self, engine: Engine, rule: ExitRule) -> None:
        """Raises PocketdraftError for a bundle without an early exit, or with one before a layer that owns K/V."""
        super().__init__(engine)
        manifest = engine.manifest
        layers = manifest.drafters.of(EarlyExitSpec).layers
        owners = 1 + max(layer.layer for layer in manifest.kv)
        if layers < owners:
            raise PocketdraftError(
                f"The exit lies after layer {layers}, the first {owners} keep K/V, which a token that leaves would "
                f"leave empty; export with --early-exit {owners}."
            )
        (self._head,) = manifest.graphs_of("exit_head")
        self.rule = rule
        self.left = self.asked = self._start = 0

    def prefill(self, cache: Cache, tokens: Sequence[int]) -> list[Prefilled]:
        found = super().prefill(cache, tokens)
        self._start = cache.length  # where the text begins whose tokens the rule counts
        return found

    def verify(self, cache: Cache, last: int, proposal: Proposal) -> Verified:
        if len(proposal):
            raise PocketdraftError("Tokens may leave early or be drafted, not both; leave one of them out.")
        state = self.draft_early(cache, last, 0)
        logits = self.engine.run(self._head.name, {"exit_states": state})["logits"][0]
        self.asked += 1
        if self.rule.exits(cache.length - self._start, float(gap(logits[0]))):
            self.left += 1
            return Verified(logits, state[0], 1)
        return super().verify(cache, last, NOTHING.begun([state]))


def certify(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    budget: int,
    delta: float,
    epsilon: float,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[Calibration, float]:
    """The lowest threshold at which, with probability 1 - `epsilon`, texts differ by no more than `delta` on average
    (1 - ROUGE-L, in tokens), and the share of calibration tokens that leave early there.

    Thresholds are tried from the highest down, and no further than the first that fails. Raises PocketdraftError.
    """
    check_levels(delta, epsilon)
    full = [_text(Target(engine), prompt, budget) for prompt in prompts]
    rules = [ExitRule("gap", threshold, budget) for threshold in THRESHOLDS]
    losses: list[list[float]] = []
    found, shares = None, [0.0]
    for number, rule in enumerate(rules, 1):
        progress(number, len(rules))
        target = LeavingTarget(engine, rule)
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
