"""Several places to leave: the text, and who left where, are those of the paper's algorithm on transformers' modules.

There each token takes a whole pass; what the layers behind its exit kept of it is then overwritten with what they make
of the state that it left with. No layer is skipped, no graph split: a fault in either could not hide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Pair
from test_exit_fill import FLOAT, PROMPT, k_v_of
from transformers import DynamicCache, Gemma4ForCausalLM

from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.drafting import load_drafter
from pocketdraft.export.families import make_target
from pocketdraft.export.hf_model import softcapped
from pocketdraft.export.models.exits import Exits
from pocketdraft.export.pipeline import build
from pocketdraft.export.plan import Plan
from pocketdraft.export.rungs import eager_pair
from pocketdraft.export.stored import load as load_weights
from pocketdraft.export.tiny import EXITS_DIR, TARGET_DIR
from pocketdraft.export.tiny.train import load
from pocketdraft.export.tiny.train_exits import exit_logits
from pocketdraft.runtime.calm import ExitRule, gap, probability
from pocketdraft.runtime.engine import Engine, open_engine
from pocketdraft.runtime.ladder import compare
from pocketdraft.runtime.leaving import LeavingTarget
from pocketdraft.runtime.proposal import NOTHING
from pocketdraft.runtime.replay import note, replay
from pocketdraft.runtime.validate import FLOAT_LIMIT

BUDGET = 60
GIVEN = np.random.default_rng(1).integers(6, 2000, BUDGET).tolist()
Said = tuple[list[int], list[int | None], np.ndarray]  # tokens, the number of the exit of each, logits [T, V]


def said(engine: Engine, rule: ExitRule, given: list[int] | None = None) -> Said:
    """What follows PROMPT, or what is said to each token of `given` after it."""
    target, tokens, numbers, rows = LeavingTarget(engine, rule), [], [], []
    cache, last = target.new_cache(), PROMPT[-1]
    target.prefill(cache, PROMPT[:-1])
    for t in range(BUDGET):
        before = list(target.left)
        rows.append(target.verify(cache, last, NOTHING).logits[0])
        target.keep(cache, [0])
        numbers.append(next((n for n, left in enumerate(target.left) if left > before[n]), None))
        tokens.append(int(rows[-1].argmax()))
        last = given[t] if given else tokens[-1]
    return tokens, numbers, np.array(rows)


@torch.no_grad()
def wanted(
    model: Gemma4ForCausalLM, exits: Exits | None, cuts: tuple[int, ...], rule: ExitRule, given: list[int] | None = None
) -> Said:
    tokens, numbers, rows, cache = [], [], [], DynamicCache()
    model.model(torch.tensor([PROMPT[:-1]]), past_key_values=cache, use_cache=True)
    last = PROMPT[-1]
    for t in range(BUDGET):
        fed = torch.tensor([[last]])
        states = model.model(fed, past_key_values=cache, use_cache=True, output_hidden_states=True).hidden_states
        logits, left = softcapped(model.lm_head(states[-1]), model), None
        for number, cut in enumerate(cuts):
            own = exits.after(cut) if exits else None
            early = exit_logits(model, own, states[cut])
            sure = gap(early[0, 0].numpy()) if rule.measure == "gap" else probability(own.score(states[cut])[0, 0])
            if rule.exits(t, float(sure)):
                logits, left = early, number
                for layer, kept in enumerate(cache.layers[cut:], cut):
                    keys, values = k_v_of(model, layer, states[cut], len(PROMPT) - 1 + t)
                    kept.keys[0, :, -1], kept.values[0, :, -1] = keys[0], values[0]
                break
        numbers.append(left)
        rows.append(logits[0, 0].numpy())
        tokens.append(int(rows[-1].argmax()))
        last = given[t] if given else tokens[-1]
    return tokens, numbers, np.array(rows)


def embedded_exits(model: Gemma4ForCausalLM) -> Exits:
    exits, places = load_drafter(Checkpoint.open(EXITS_DIR), make_target(model.config))
    load_weights(places, exits)
    return exits


@dataclass(frozen=True)
class Case:
    """A target that may be left after `cuts`. No exit is within 8e-5 of the threshold: float backends stay closer."""

    shape: str
    cuts: tuple[int, ...]
    rule: ExitRule
    given: list[int] | None = None  # where its own text would be one token over and over

    def open(self, make_pair: Callable[[str], Pair]) -> tuple[Path, tuple[Path, ...]]:
        folder = make_pair(self.shape).target if self.shape == "dense" else TARGET_DIR
        return folder, (EXITS_DIR,) if self.shape == "embedded" else ()


# Layers between exits own K/V, and so do some that are skipped: of the dense target all, in rings that wrap around.
CASES = {
    "embedded, gap": Case("embedded", (2, 4), ExitRule("gap", 0.4, BUDGET)),
    "embedded, classifier": Case("embedded", (2, 3, 5), ExitRule("classifier", 0.7, BUDGET)),
    "untrained": Case("untrained", (1, 2), ExitRule("gap", 0.9, BUDGET, None), GIVEN),
    "dense": Case("dense", (2, 3, 5), ExitRule("gap", 0.005, BUDGET, None), GIVEN),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_who_leaves_where_and_what_is_said_are_those_of_transformers_modules(make_pair, case):
    folder, drafters = case.open(make_pair)
    model = load(Gemma4ForCausalLM, folder)
    tokens, numbers, logits = wanted(
        model, embedded_exits(model) if drafters else None, case.cuts, case.rule, case.given
    )
    engine = eager_pair(*map(Checkpoint.open, (folder, *drafters)), context=160, early_exit=case.cuts)
    ours = said(engine, case.rule, case.given)
    assert ours[:2] == (tokens, numbers)
    np.testing.assert_allclose(ours[2], logits, atol=1e-4)
    assert {*numbers} == {None, *range(len(case.cuts))}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *(("embedded, classifier", backend) for backend in ("litert", "onnx", "executorch")),
        *(("dense", backend) for backend in ("litert", "onnx")),
    ],
)
def test_a_bundle_says_what_torch_does(make_pair, tmp_path, name, backend):
    case = CASES[name]
    folder, drafters = case.open(make_pair)
    eager = eager_pair(*map(Checkpoint.open, (folder, *drafters)), context=160, early_exit=case.cuts)
    widths = {"context": 160, "prefill": (64,), "verify": (5,)}
    build([Plan(folder, drafters, tmp_path / "out", FLOAT, backend, **widths, early_exit=case.cuts)])
    engine = open_engine(tmp_path / "out", 1)
    ours, theirs = (said(one, case.rule, case.given) for one in (engine, eager))
    assert ours[:2] == theirs[:2]
    np.testing.assert_allclose(ours[2], theirs[2], atol=1e-3)
    calls = note(eager, PROMPT)
    compared = compare(
        replay(eager, calls), replay(engine, calls), {graph.name: FLOAT_LIMIT for graph in engine.manifest.graphs}
    )
    assert all(row.passed for row in compared), compared
    assert {row.graph for row in compared} >= {
        graph.name for graph in engine.manifest.graphs if graph.role.startswith(("exit_", "further_"))
    }
    engine.close()
