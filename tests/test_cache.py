from __future__ import annotations

import pytest

from pocketdraft.runtime.cache import Cache


def test_keep_commits_the_pending_token_and_the_accepted_drafts():
    cache = Cache(None, capacity=8, length=3)
    cache.keep((0, 1, 2))
    assert (cache.length, cache.room) == (6, 2)


@pytest.mark.parametrize("rows", [(1,), (0, 2), (1, 0), (0, 0)])
def test_rows_that_are_no_prefix_are_refused_and_commit_nothing(rows):
    cache = Cache(None, capacity=8, length=3)
    with pytest.raises(AssertionError, match="no prefix"):
        cache.keep(rows)
    assert cache.length == 3


def test_the_last_slot_can_be_committed_and_not_one_more():
    cache = Cache(None, capacity=4, length=3)
    cache.keep((0,))
    with pytest.raises(AssertionError, match="0 were free"):
        cache.keep((0,))


def test_truncate_takes_back_and_never_commits():
    cache = Cache(None, capacity=8, length=5)
    cache.truncate(6)
    assert cache.length == 5
    cache.truncate(2)
    assert cache.length == 2
