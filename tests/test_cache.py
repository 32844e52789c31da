from __future__ import annotations

import pytest

from pocketdraft.runtime.cache import Cache


def test_the_last_slot_can_be_committed_and_not_one_more():
    cache = Cache(None, capacity=4, length=3)
    cache.advance(1)
    assert (cache.length, cache.room) == (4, 0)
    with pytest.raises(AssertionError, match="0 were free"):
        cache.advance(1)
    assert cache.length == 4


def test_truncate_takes_back_and_never_commits():
    cache = Cache(None, capacity=8, length=5)
    cache.truncate(6)
    assert cache.length == 5
    cache.truncate(2)
    assert cache.length == 2
