"""Sliding layers in rings: the same logits as with one slot a position, whatever was written and taken back."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from conftest import Pair
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketdraft.export.backends import onnx
from pocketdraft.export.backends.eager import EagerEngine
from pocketdraft.export.backends.litert import LiteRTOperators
from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.kv_layout import KVLayout
from pocketdraft.export.pipeline import load_models
from pocketdraft.export.step import Plain
from pocketdraft.export.steps.mtp import mtp_step
from pocketdraft.export.steps.target import target_steps

CONTEXT, WINDOW, WIDTHS = 64, 8, (5, 2)


class Bundle:
    """The little that EagerEngine asks of a manifest."""

    def __init__(self, steps) -> None:
        self.graphs = tuple(step.spec for step in steps)


@pytest.fixture(scope="module")
def engines(make_pair):
    """With whole layers, and with rings of 16 slots for the same weights."""
    pair: Pair = make_pair("shared")
    models = load_models(Checkpoint.open(pair.target), Checkpoint.open(pair.drafter))
    geometry = dataclasses.replace(models.target.geometry, window=WINDOW)
    models.target.trunk.geometry = models.target.geometry = geometry
    models.drafter.trunk.geometry = dataclasses.replace(models.drafter.geometry, window=WINDOW)

    def engine(widest: int | None) -> EagerEngine:
        layout = KVLayout.of(geometry, CONTEXT, widest)
        steps = target_steps(models.target, layout, (7,), WIDTHS, Plain())
        steps.append(mtp_step(models.drafter, geometry, layout, "dense", "pending", Plain()))
        return EagerEngine(Bundle(steps), steps)

    whole, ring = engine(None), engine(7)
    shapes = {t.name: t.shape for t in ring.manifest.graphs[0].inputs if t.is_kv}
    assert shapes["kv_cache_k_0"][2] == 16
    assert shapes["kv_cache_k_2"][2] == CONTEXT  # a full layer
    return whole, ring


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["prefill_7", "verify", "verify_2", "decode"]), st.integers(1, 7), st.integers(0, 12)
        ),
        max_size=30,
    )
)
def test_rings_give_the_logits_of_whole_layers(engines, calls):
    """Some calls go back first, as far as `Target.rewind` lets them."""
    caches = [engine.new_cache() for engine in engines]
    random, start, written = np.random.default_rng(0), 0, 0
    for name, kept, back in calls:
        if back < start and (written <= 16 or start - back >= written - 7):
            start -= back
        graph = next(graph for graph in engines[0].manifest.graphs if graph.name == name)
        if start + graph.width > CONTEXT:
            break
        positions = np.arange(start, start + graph.width, dtype=np.int32)
        feed = {
            t.name: random.standard_normal(t.shape, np.float32) for t in graph.inputs if t.name.endswith("embeddings")
        }
        feed |= {"input_pos": positions, "mask": (np.arange(CONTEXT) <= positions[:, None])[None, None]}
        logits = [engine.run(name, feed, cache).get("logits") for engine, cache in zip(engines, caches, strict=True)]
        if logits[0] is not None:
            np.testing.assert_allclose(logits[1], logits[0], atol=2e-4)
        written = max(written, start + graph.width)
        start += min(kept, graph.width)  # the rest is refused, or was padding
        feed = {
            "activations": random.standard_normal((1, 1, 256), np.float32),
            "input_pos": np.array([start - 1], np.int32),
            "mask": (np.arange(CONTEXT) < start)[None, None, None],
        }
        drafts = [engine.run("mtp_drafter", feed, c)["logits"] for engine, c in zip(engines, caches, strict=True)]
        np.testing.assert_allclose(drafts[1], drafts[0], atol=2e-4)


@pytest.mark.parametrize("operators", [LiteRTOperators(), onnx.ScatteredRows()], ids=["litert", "onnx"])
@pytest.mark.parametrize("count", [1, 5, 16])
@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize("start", [0, 13, 16, 45])
def test_rows_wrap_around_the_ring(operators, count, axis, start):
    cache, rows = torch.randn(1, 2, 16, 16), torch.randn(1, 2, 16, 16).narrow(axis, 0, count)
    found = operators.write_rows(cache.clone(), rows, torch.tensor([start], dtype=torch.int32), axis, True)
    for index in range(count):
        slot = (start + index) % 16
        assert torch.equal(found.select(axis, slot), rows.select(axis, index))
        cache.select(axis, slot).copy_(rows.select(axis, index))
    assert torch.equal(found, cache)  # the others stay
