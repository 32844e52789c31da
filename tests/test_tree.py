"""Draft trees: which one is best, how graphs are told of it, and the loop over it against plain decoding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import VOCABULARY, RingEngine, ScriptedEngine, next_token, plain, scripted_manifest

from pocketdraft.runtime.accept import Verdict
from pocketdraft.runtime.compaction import compact
from pocketdraft.runtime.context import Context
from pocketdraft.runtime.draft_length import Fixed
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.proposal import NOTHING, Proposal
from pocketdraft.runtime.sampler import GREEDY, Sampler
from pocketdraft.runtime.sampling import Sampling
from pocketdraft.runtime.session import Session, open_session
from pocketdraft.runtime.target import Target, Verified
from pocketdraft.runtime.tree import DEEPEST, best_tree, inputs

PROMPT = [1, 2, 3]
Path = tuple[int, ...]


def paths(tree: Proposal) -> list[Path]:
    """By node, the tokens from the pending one to it."""
    found: list[Path] = []
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return found


def value(nodes: list[Path], marginals: np.ndarray) -> float:
    """The expected accepted length."""
    return sum(float(np.prod([marginals[depth, token] for depth, token in enumerate(path)])) for path in nodes)


def every_tree(marginals: np.ndarray, budget: int) -> Iterator[frozenset[Path]]:
    """All of them, grown node by node."""
    grown = {frozenset[Path]()}
    for _ in range(budget):
        grown = {
            tree | {(*parent, token)}
            for tree in grown
            for parent in ((), *tree)
            if len(parent) < len(marginals)
            for token in range(marginals.shape[1])
            if (*parent, token) not in tree
        }
        yield from grown


@settings(deadline=None, max_examples=60)
@given(
    weights=st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=3).filter(any), min_size=1, max_size=3),
    budget=st.integers(0, 4),
)
def test_the_best_tree_is_that_of_an_exhaustive_search(weights, budget):
    marginals = np.array([np.array(row) / sum(row) for row in weights])
    tree = best_tree(marginals, budget)
    assert len(tree) <= budget
    assert len(set(paths(tree))) == len(tree)
    best = max((value(list(nodes), marginals) for nodes in every_tree(marginals, budget)), default=0.0)
    assert value(paths(tree), marginals) == pytest.approx(best)


@given(st.integers(1, 30), st.integers(0, 2**32))
def test_the_best_tree_under_a_budget_is_a_part_of_that_under_a_larger_one(budget, seed):
    marginals = np.random.default_rng(seed).dirichlet(np.full(50, 0.1), 6)
    small, large = best_tree(marginals, budget), best_tree(marginals, budget + 1)
    assert large.tokens[:budget] == small.tokens
    assert large.parents[:budget] == small.parents


def test_of_equally_likely_tokens_the_lower_comes_first():
    tree = best_tree(np.array([[0.25, 0.25, 0.25, 0.25]]), 3)
    assert (tree.tokens, tree.parents) == ((0, 1, 2), (-1, -1, -1))
    assert best_tree(np.array([[0.3, 0.1, 0.3, 0.3]]), 2).tokens == (0, 2)


def test_what_cannot_happen_is_not_proposed():
    assert best_tree(np.array([[0.0, 1.0], [0.5, 0.5]]), 9).tokens == (1, 0, 1)
    assert best_tree(np.array([[0.5, 0.5]]), 0) == NOTHING


def test_a_certain_drafter_s_tree_is_a_chain():
    assert best_tree(np.eye(5)[[3, 1, 4, 1]], 4) == Proposal.chain([3, 1, 4, 1])


trees = st.lists(st.integers(0, 20), max_size=8).map(
    lambda backs: Proposal(tuple(range(len(backs))), tuple(back % (node + 1) - 1 for node, back in enumerate(backs)))
)


@given(trees, st.integers(0, 6), st.integers(0, 3))
def test_a_row_sees_what_is_committed_its_path_and_itself_and_nobody_sees_padding(tree, start, padding):
    width = 1 + len(tree) + padding
    given_ = inputs(tree, start, width, 24)
    mask, positions = given_["mask"], given_["input_pos"]
    assert (mask.shape, mask.dtype, positions.dtype) == ((1, 1, width, 24), bool, np.int32)
    lengths = [0, *(len(path) for path in paths(tree))]
    for row in range(width):
        path, node = [row], row - 1
        while 0 <= node < len(tree):
            node = tree.parents[node]
            path.append(node + 1)
        assert np.flatnonzero(mask[0, 0, row]).tolist() == [*range(start), *(start + one for one in sorted(path))]
        assert positions[row] == start + (lengths[row] if row <= len(tree) else 0)


@given(st.integers(1, 6), st.integers(0, 9))
def test_a_chain_as_a_tree_is_told_as_a_chain(count, start):
    target = Target(ScriptedEngine(scripted_manifest(24)))
    chain, tree = target.positions(start, count + 1), inputs(Proposal.chain(range(count)), start, count + 1, 24)
    assert all((chain[name] == tree[name]).all() for name in ("input_pos", "mask"))


def test_a_tree_deeper_than_any_window_is_refused_and_such_a_chain_is_not():
    length = DEEPEST + 1
    deep = Proposal((*range(length), 7), (*range(-1, length - 1), -1))
    with pytest.raises(PocketdraftError, match=f"{length} deep, {DEEPEST} is the most"):
        inputs(deep, 0, length + 2, 64)
    inputs(Proposal.chain(range(length)), 0, length + 1, 64)


def test_no_sliding_window_is_shorter_than_the_deepest_tree():
    from pocketdraft.export import sizes
    from pocketdraft.export.tiny import configs

    windows = [
        configs.target_config().sliding_window,
        *(sizes.configs(name)[0].sliding_window for name in sizes.names()),
    ]
    assert min(windows) > DEEPEST


@pytest.mark.parametrize("dtype", [np.float32, np.int8])
@pytest.mark.parametrize("size", [40, 16])
def test_rows_move_together_also_around_a_ring_and_all_others_stay(dtype, size):
    keys = np.random.default_rng(0).integers(-99, 99, (1, 2, size, 3)).astype(dtype)
    tensors = {"kv_cache_k_0": keys.copy(), "kv_cache_v_0": keys.swapaxes(2, 3).copy()}
    compact(tensors, [15, 16, 19], 14)
    expected = keys.copy()
    for slot, source in ((14, 15), (15, 16), (16, 19)):
        expected[:, :, slot % size] = keys[:, :, source % size]
    assert (tensors["kv_cache_k_0"] == expected).all()
    assert (tensors["kv_cache_v_0"] == expected.swapaxes(2, 3)).all()


class Forest:
    """Proposes any trees: `shape` says by node where it hangs and whether it is the token that is coming there."""

    def __init__(self, shape: list[tuple[int, bool]], coming: Callable[[list[int]], int]) -> None:
        self.shape, self.coming = shape, coming

    def restart(self, prefilled) -> None: ...

    def propose(self, context: Context, count: int) -> Proposal:
        turn = sum(context.tokens) % len(self.shape)
        tokens: list[int] = []
        parents: list[int] = []
        for node, (back, right) in enumerate((self.shape[turn:] + self.shape[:turn])[: max(0, count)]):
            parents.append(back % (node + 1) - 1)
            so_far = Proposal(tuple(tokens), tuple(parents[:-1]))
            path = paths(so_far)[parents[-1]] if parents[-1] >= 0 else ()
            token = self.coming([*context.tokens, *path])
            tokens.append(token if right else (token + 1 + node) % VOCABULARY)
        return Proposal(tuple(tokens), tuple(parents))

    def observe(self, verdict: Verdict, verified: Verified) -> None: ...


shapes = st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=9)


def coming(sampler: Sampler) -> Callable[[list[int]], int]:
    return lambda tokens: sampler.choose(np.eye(VOCABULARY, dtype=np.float32)[next_token(tuple(tokens))], tokens)


@settings(deadline=None)
@given(
    shape=shapes,
    budget=st.integers(1, 30),
    count=st.integers(0, 9),
    stop=st.frozensets(st.integers(0, VOCABULARY - 1), max_size=2),
    capacity=st.integers(8, 48),
    verify=st.sampled_from([(2,), (5,), (2, 3, 5), (3, 9), (10,)]),
    temperature=st.sampled_from([0.0, 0.0, 1.0, 3.0]),
)
def test_any_tree_gives_what_plain_decoding_gives(shape, budget, count, stop, capacity, verify, temperature):
    sampler = Sampler(Sampling(temperature, seed=3))
    expected: list[int] = []
    while len(expected) < budget and len(PROMPT) + len(expected) <= capacity and not stop & set(expected):
        expected.append(coming(sampler)([*PROMPT, *expected]))
    target = Target(ScriptedEngine(scripted_manifest(capacity, verify, stop=tuple(stop))))
    session = Session(target, target.new_cache(), Forest(shape, coming(sampler)), Fixed(count), sampler)
    written: list[int] = []
    for round_ in session.generate(PROMPT, budget):
        written += round_.tokens
        tokens = PROMPT + written
        length = len(tokens) - (len(round_.tokens) - round_.drafted)
        assert session.cache.length == length
        assert session.cache.handle[:length] == tokens[:length]
        assert session.cache.handle.positions[:length] == list(range(length))
    assert written == expected
    session.stats.check()
    assert session.stats.emitted == len(expected)


@settings(deadline=None)
@given(shape=shapes, window=st.integers(9, 12))
def test_trees_in_a_ring_give_what_plain_decoding_gives(shape, window):
    def engine() -> RingEngine:
        return RingEngine(scripted_manifest(80, (10,)), window=window, slots=window + 10)

    target = Target(engine())
    forest = Forest(shape, lambda tokens: next_token(tuple(tokens[-window:])))
    session = Session(target, target.new_cache(), forest, Fixed(9))
    alone = open_session(engine(), "none")
    found, expected = ([t for one in s.generate(PROMPT, 60) for t in one.tokens] for s in (session, alone))
    assert found == expected


def still(engine: ScriptedEngine, cache, sources, start) -> None:
    """Moves nothing."""


def one_short(engine: ScriptedEngine, cache, sources, start) -> None:
    ScriptedEngine.compact(engine, cache, sources[:-1], start) if sources[1:] else None


def one_late(engine: ScriptedEngine, cache, sources, start) -> None:
    ScriptedEngine.compact(engine, cache, sources, start + 1)


@pytest.mark.parametrize("broken", [still, one_short, one_late])
def test_a_compaction_that_is_wrong_is_seen(broken):
    engine = type("Broken", (ScriptedEngine,), {"compact": broken})(scripted_manifest())
    target = Target(engine)
    forest = Forest([(0, False), (0, True), (2, False), (2, True)], coming(GREEDY))
    session = Session(target, target.new_cache(), forest, Fixed(4))
    with pytest.raises(AssertionError):
        assert [t for one in session.generate(PROMPT, 40) for t in one.tokens] == plain(PROMPT, 40)


def test_an_engine_that_cannot_move_rows_refuses_a_tree():
    target = Target(ScriptedEngine(scripted_manifest(), takes_trees=False))
    with pytest.raises(PocketdraftError, match="tree of 2, this engine cannot move K/V rows; propose a chain"):
        target.verify(target.new_cache(), 1, Proposal((1, 2), (-1, -1)))


def test_counts_of_a_tree_are_by_depth_and_not_by_node():
    """Its pending token has two children, and the first of them a child."""
    tree = Proposal((5, 6, 7), (-1, 0, -1))
    context = Context(stop=())
    context.begin(PROMPT, 100)
    session = open_session(ScriptedEngine(scripted_manifest()), "none")
    stats = session.stats
    # All refused; one accepted, its child refused; two accepted; the leaf accepted, with nothing left to refuse.
    for accepted, rows in (((), (0,)), ((5,), (0, 1)), ((5, 6), (0, 1, 2)), ((7,), (0, 3))):
        verdict = Verdict(accepted, 9, rows)
        stats.record(tree, verdict, context.commit(verdict, 99))
        stats.check()
    assert (stats.rounds, stats.proposed, stats.accepted, stats.emitted) == (4, 12, 4, 8)
    assert (stats.corrected, stats.bonus) == (2, 2)
    assert stats.acceptance_by_position() == [3 / 4, 1 / 4]
    assert stats.conditional_acceptance_by_position() == [3 / 4, 1 / 2]
    both = dataclasses.replace(stats, outcomes=stats.outcomes.copy(), trees=stats.trees.copy())
    both.add(stats)
    both.check()
    assert both.conditional_acceptance_by_position() == [3 / 4, 1 / 2]
