"""When a quantized graph is what its quantized step says, and when LiteRT-LM is asked to speculate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scripted import scripted_manifest

from pocketdraft.runtime import litert_lm, validate
from pocketdraft.runtime.text import Tokenizer


class Outputs:
    """An engine whose logits are all the same number."""

    manifest = scripted_manifest()
    takes_trees = False

    def __init__(self, logits: float) -> None:
        self.logits = logits


@pytest.mark.parametrize(("graph", "passed"), [(-0.4, True), (2.9, True), (3.1, False), (float("nan"), False)])
def test_a_quantized_graph_lies_within_twice_the_cost_of_rounding(monkeypatch, graph, passed):
    """In a deep model, two roundings of the same numbers are further from each other than from the float."""

    def climb(manifest, engine, tokens, feed):
        return {"decode": {"logits": np.full((1, 1, 8), engine.logits, np.float32)}}, None

    monkeypatch.setattr(validate, "climb", climb)
    above = iter([("step", Outputs(0.0)), ("quantized step", Outputs(1.0))])
    found = validate._climb_all(Outputs(graph), above, [[1, 2, 3]])
    assert all(row.passed for row in found["step -> quantized step"])
    assert [row.passed for row in found["quantized step -> graph"]] == [passed]


@pytest.mark.parametrize("drafts", [True, False])
def test_litert_lm_speculates_only_where_the_bundle_has_its_kind_of_drafter(monkeypatch, drafts):
    """It does not open another file if it is to."""
    asked = []

    def run(file, texts, budget, speculate):
        asked.append(speculate)
        return litert_lm.Replies(("a",), (1.0,), (1,), None)

    monkeypatch.setattr(litert_lm, "installed", lambda: True)
    monkeypatch.setattr(litert_lm, "run", run)
    tokenizer = Tokenizer(Path(__file__).parents[1] / "export/tiny/target/tokenizer.json", None)
    manifest = scripted_manifest().model_copy(update={"backend": "litert"})
    if not drafts:
        manifest = manifest.model_copy(update={"drafters": type(manifest.drafters)()})
    check = validate.cross_check(Path(), manifest, ["a"], tokenizer, [tokenizer.encode("a")], 1)
    assert asked == ([False, True] if drafts else [False])
    assert check.outcome == "pass"
