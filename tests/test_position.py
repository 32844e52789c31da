"""Is the drafter fed the position that it was trained at? Acceptance tells, the output does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scripted import ScriptedEngine, scripted_manifest

from pocketdraft.runtime.drafter_specs import DrafterSpecs, MTPSpec
from pocketdraft.runtime.validate import position_check

PROMPTS = [[1, 2, 3], [4, 5], [6], [7, 8, 9, 10]]


class TrainedAt(ScriptedEngine):
    """A drafter that is right at one place only: `slot` after the last cached token."""

    slot = 0

    def _draft(self, inputs: Any, cache: Any) -> dict[str, Any]:
        last = np.flatnonzero(inputs["mask"][0, 0, 0]).max()
        outputs = super()._draft({**inputs, "input_pos": np.array([last])}, cache)
        if inputs["input_pos"][0] != last + self.slot:
            outputs["logits"] = np.roll(outputs["logits"], 5, -1)
        return outputs


@pytest.mark.parametrize(
    ("exported_for", "trained_at", "mend"),
    [
        ("pending", 0, ""),
        ("pending", -1, ": export again with --position last_cached"),
        ("last_cached", 0, ""),
        ("last_cached", 1, ": export again with --position pending"),
    ],
)
def test_the_other_position_is_advised_where_it_accepts_more(exported_for, trained_at, mend):
    spec = MTPSpec(head="dense", position=exported_for, kv_full=0, kv_sliding=0)
    engine = TrainedAt(scripted_manifest().model_copy(update={"drafters": DrafterSpecs(mtp=spec)}))
    engine.slot = trained_at
    check = position_check(engine, spec, PROMPTS, budget=24)
    assert check.outcome == "info"
    assert ["", *check.detail.split(": ")[1:]] == mend.split(": ")
