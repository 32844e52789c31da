from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pocketdraft.runtime.accept import greedy
from pocketdraft.runtime.proposal import NOTHING, Proposal


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
