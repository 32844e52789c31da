from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketdraft.runtime.accept import accept, greedy
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.proposal import NOTHING, Proposal
from pocketdraft.runtime.sampler import Sampler
from pocketdraft.runtime.sampling import Sampling


def rows(*choices: int) -> np.ndarray:
    """Logits whose argmax, row by row, is as given."""
    return np.eye(8, dtype=np.float32)[list(choices)]


def test_all_drafts_right_gives_a_bonus_token():
    verdict = greedy(rows(1, 2, 3), Proposal.chain([1, 2]))
    assert (verdict.accepted, verdict.next_token, verdict.rows) == ((1, 2), 3, (0, 1, 2))


def test_a_wrong_draft_is_replaced_and_the_rest_dropped_even_if_it_would_match():
    verdict = greedy(rows(1, 5, 3, 4), Proposal.chain([1, 2, 3]))
    assert (verdict.accepted, verdict.next_token, verdict.rows) == ((1,), 5, (0, 1))


def test_no_draft_is_plain_decoding():
    assert greedy(rows(4), NOTHING).next_token == 4


def test_equal_logits_take_the_lowest_token():
    assert greedy(np.zeros((1, 8), np.float32), NOTHING).next_token == 0


def test_a_branch_that_is_not_the_first_child_is_taken():
    tree = Proposal(tokens=(1, 2, 6, 3), parents=(-1, -1, 0, 1))
    verdict = greedy(rows(2, 7, 3, 7, 5), tree)
    assert (verdict.accepted, verdict.next_token, verdict.rows) == ((2, 3), 5, (0, 2, 4))


@given(st.lists(st.integers(0, 7), min_size=1, max_size=9), st.data())
def test_the_walk_accepts_exactly_the_common_prefix_of_a_chain(choices, data):
    drafts = data.draw(st.lists(st.integers(0, 7), min_size=len(choices) - 1, max_size=len(choices) - 1))
    common = next((i for i, (a, b) in enumerate(zip(drafts, choices, strict=False)) if a != b), len(drafts))
    verdict = greedy(rows(*choices), Proposal.chain(drafts))
    assert verdict.accepted == tuple(drafts[:common])
    assert verdict.next_token == choices[common]


SAMPLER = Sampler(Sampling(1.0, seed=3))


def tree_logits(path: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng([9, *path]).normal(size=8).astype(np.float32) * 2


@st.composite
def trees(draw) -> Proposal:
    """Siblings differ, as a drafter's would."""
    tokens: list[int] = []
    parents: list[int] = []
    for node in range(draw(st.integers(0, 12))):
        parent = draw(st.integers(-1, node - 1))
        siblings = {token for token, of in zip(tokens, parents, strict=True) if of == parent}
        tokens.append(draw(st.integers(0, 7).filter(lambda token, taken=siblings: token not in taken)))
        parents.append(parent)
        if len(siblings) == 7:
            break
    return Proposal(tuple(tokens), tuple(parents))


@given(trees())
def test_exact_match_on_any_tree_gives_the_tokens_of_plain_decoding(tree):
    paths: list[tuple[int, ...]] = [()]
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        paths.append((*paths[parent + 1], token))
    context = [5, 6]
    verdict = accept(np.stack([tree_logits(path) for path in paths]), tree, context, SAMPLER)
    found = (*verdict.accepted, verdict.next_token)
    for index in range(len(found)):
        assert found[index] == SAMPLER.choose(tree_logits(found[:index]), [*context, *found[:index]])
    assert paths[verdict.rows[-1]] == verdict.accepted
    assert found not in paths, "a longer walk was there"


def test_rejection_refuses_a_tree():
    tree = Proposal(tokens=(1, 2), parents=(-1, -1))
    with pytest.raises(PocketdraftError, match="is a tree, rejection takes a chain"):
        accept(np.zeros((3, 8), np.float32), tree, [5], Sampler(Sampling(1.0), "rejection"))


def test_rejection_accepts_a_draft_that_the_drafter_underrates_always():
    p, q = np.log([0.6, 0.4]), np.array([0.5, 0.5])
    for start in range(1, 50):
        verdict = accept(np.stack([p, p]), Proposal.chain([0], [q]), [1] * start, Sampler(Sampling(1.0), "rejection"))
        assert verdict.accepted == (0,)


def test_rejection_survives_probabilities_that_are_equal_but_for_rounding():
    """A refusal with nothing left over: p is then as good as the residual."""
    q = np.array([np.nextafter(1, 2), 0.0])
    sampler = Sampler(Sampling(1.0), "rejection")
    logits = np.array([[0.0, -np.inf]] * 2)
    assert accept(logits, Proposal.chain([0], [q * 1e300]), [1], sampler).next_token == 0
