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
from pocketdraft.runtime.proposal import Proposal
from pocketdraft.runtime.tree import inputs

CONTEXT, WINDOW, WIDTHS = 64, 8, (5, 2)


class Bundle:
    """The little that EagerEngine asks of a manifest."""

    def __init__(self, steps) -> None:
        self.graphs = tuple(step.spec for step in steps)
        self.target_kv = [tensor for tensor in self.graphs[0].inputs if tensor.is_kv]


@pytest.fixture(scope="module")
def make_engine(make_pair):
    """An engine of these verify widths, with rings if the widest call is given."""
    pair: Pair = make_pair("shared")
    models = load_models(Checkpoint.open(pair.target), Checkpoint.open(pair.drafter))
    geometry = dataclasses.replace(models.target.geometry, window=WINDOW)
    models.target.trunk.geometry = models.target.geometry = geometry
    models.drafters["mtp"].trunk.geometry = dataclasses.replace(models.drafters["mtp"].geometry, window=WINDOW)

    def engine(widths: tuple[int, ...], widest: int | None) -> EagerEngine:
        layout = KVLayout.of(geometry, CONTEXT, widest)
        steps = target_steps(models.target, layout, (7,), widths, Plain())
        steps.append(mtp_step(models.drafters["mtp"], geometry, layout, "dense", "pending", Plain()))
        return EagerEngine(Bundle(steps), steps)

    return engine


@pytest.fixture(scope="module")
def engines(make_engine):
    """With whole layers, and with rings of 16 slots for the same weights."""
    whole, ring = make_engine(WIDTHS, None), make_engine(WIDTHS, 7)
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


def as_call(graph, tree: Proposal, start: int, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`rows` are those of the pending token and of the nodes; what pads them is noise."""
    noise = np.random.default_rng(0)
    padded = {t.name: noise.standard_normal(t.shape, np.float32) for t in graph.inputs if t.name.endswith("embeddings")}
    for name, array in padded.items():
        array[:, : len(tree) + 1] = rows[name][:, : len(tree) + 1]
    return padded | inputs(tree, start, graph.width, CONTEXT)


def path_of(tree: Proposal, node: int) -> list[int]:
    """Rows of a call from the pending token's to the node's."""
    rows = [node + 1]
    while node >= 0:
        node = tree.parents[node]
        rows.append(node + 1)
    return rows[::-1]


backs = st.lists(st.integers(0, 9), min_size=4, max_size=4)


@settings(max_examples=15, deadline=None)
@given(rounds=st.lists(st.tuples(backs, st.integers(-1, 3)), min_size=1, max_size=12), prefilled=st.integers(0, 3))
def test_a_tree_in_rings_has_the_logits_of_its_paths_in_whole_layers(engines, rounds, prefilled):
    """Each node's, in a call of its own; and what is kept is compacted, also around the end of a ring."""
    (whole, ring), random = engines, np.random.default_rng(1)
    caches, start = [engine.new_cache() for engine in engines], 0
    verify = next(graph for graph in ring.manifest.graphs if graph.name == "verify")
    prefill = next(graph for graph in ring.manifest.graphs if graph.name == "prefill_7")
    for _ in range(prefilled):
        rows = {t.name: random.standard_normal(t.shape, np.float32) for t in prefill.inputs if "embeddings" in t.name}
        for engine, cache in zip(engines, caches, strict=True):
            engine.run("prefill_7", as_call(prefill, Proposal.chain(range(6)), start, rows), cache)
        start += 7
    for parents, node in rounds:
        if start + verify.width > CONTEXT:
            break
        tree = Proposal((0,) * 4, tuple(back % (one + 1) - 1 for one, back in enumerate(parents)))
        rows = {t.name: random.standard_normal(t.shape, np.float32) for t in verify.inputs if "embeddings" in t.name}
        found = ring.run("verify", as_call(verify, tree, start, rows), caches[1])["logits"][0]
        for one in range(-1, 4):
            path = path_of(tree, one)
            chain = Proposal.chain(range(len(path) - 1))
            call = as_call(verify, chain, start, {name: array[:, path] for name, array in rows.items()})
            alone = whole.run("verify", call, whole.fork(caches[0]))["logits"][0]
            np.testing.assert_allclose(found[one + 1], alone[len(path) - 1], atol=2e-4)
        kept = path_of(tree, node)
        chain = Proposal.chain(range(len(kept) - 1))
        call = as_call(verify, chain, start, {name: array[:, kept] for name, array in rows.items()})
        whole.run("verify", call, caches[0])
        if kept[1:]:
            ring.compact(caches[1], [start + row for row in kept[1:]], start + 1)
        start += len(kept)


def test_a_tree_deeper_than_the_window_would_see_too_much(make_engine):
    """Why `tree.DEEPEST` is: the graph cuts the window by slots, and a node's slot comes after its position."""
    engine = make_engine((12,), None)
    graph = next(graph for graph in engine.manifest.graphs if graph.name == "verify")
    rows = {
        t.name: np.random.default_rng(1).standard_normal(t.shape, np.float32)
        for t in graph.inputs
        if "embeddings" in t.name
    }
    tree = Proposal((0,) * 11, (-1, -1, *range(1, 10)))  # a leaf, and a chain of ten beside it
    found = engine.run("verify", as_call(graph, tree, 20, rows), engine.new_cache())["logits"][0]
    path = path_of(tree, 10)
    call = as_call(graph, Proposal.chain(range(10)), 20, {name: array[:, path] for name, array in rows.items()})
    chain = engine.run("verify", call, engine.new_cache())["logits"][0]
    errors = np.abs(found[path] - chain[: len(path)]).max(-1)
    assert errors[: WINDOW + 1].max() < 2e-4
    assert errors[WINDOW + 1 :].min() > 1e-3


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
