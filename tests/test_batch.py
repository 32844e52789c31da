"""Rows of a batch against each request alone, over a scripted engine that notices any slot of another row."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import VOCABULARY, ScriptedEngine, plain, scripted_manifest

from pocketdraft.runtime.batch import Batch, Request, Row, row_bytes
from pocketdraft.runtime.draft_length import Confident
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.manifest import Part
from pocketdraft.runtime.sampler import GREEDY, Sampler
from pocketdraft.runtime.sampling import Sampling
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.target import Target

CAPACITY = 48


@dataclass(frozen=True)
class Asked:
    """A request with the policy of its draft length yet to be made, as each sequence needs its own."""

    prompt: list[int]
    budget: int
    sampler: Sampler
    drafter: str
    drafts: int
    sure: bool
    stop: tuple[int, ...]

    def request(self) -> Request:
        drafts = Confident(self.drafts, cost=0.2) if self.sure else self.drafts
        return Request(self.prompt, self.budget, self.sampler, self.drafter, drafts, self.stop)

    def alone(self) -> list[int]:
        asked = self.request()
        session = open_session(
            ScriptedEngine(manifest()), asked.drafter, asked.drafts, sampler=asked.sampler, stop=asked.stop
        )
        return [token for round_ in session.generate(asked.prompt, asked.budget) for token in round_.tokens]


def manifest(stop: tuple[int, ...] = (7,)):
    return scripted_manifest(CAPACITY, stop=stop)


def batch_of(rows: int, engine: ScriptedEngine | None = None) -> Batch:
    engine = engine or ScriptedEngine(manifest())
    return Batch(Target(engine), rows * row_bytes(engine.manifest))


samplers = st.one_of(
    st.just(GREEDY),
    st.builds(
        lambda temperature, seed, rule: Sampler(Sampling(temperature, seed=seed), rule),
        st.sampled_from([0.5, 3.0]),
        st.integers(0, 5),
        st.sampled_from(["exact", "rejection"]),
    ),
)
requests = st.builds(
    Asked,
    prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=CAPACITY),
    budget=st.integers(1, 30),
    sampler=samplers,
    drafter=st.sampled_from(["mtp", "prompt_lookup", "none"]),
    drafts=st.integers(0, 6),
    sure=st.booleans(),
    stop=st.sets(st.integers(0, VOCABULARY - 1), max_size=1).map(tuple),
)


@settings(deadline=None, max_examples=150)
@given(
    mix=st.lists(
        st.tuples(requests, st.integers(0, 12), st.one_of(st.none(), st.integers(1, 6))), min_size=1, max_size=7
    ),
    rows=st.integers(1, 4),
)
def test_a_row_gives_what_it_gives_alone_whoever_joins_or_leaves_and_whenever(mix, rows):
    """Each comes after so many rounds of the batch, and some hang up after a few of their own."""
    batch = batch_of(rows)
    coming = sorted(mix, key=lambda one: one[1])
    found: dict[Row, list[int]] = {}
    asked: dict[Row, tuple[Asked, int | None]] = {}
    turns: dict[Row, int] = {}
    step = 0
    while coming or len(batch):
        while coming and coming[0][1] <= step:
            one, _, patience = coming.pop(0)
            row = batch.join(one.request())
            found[row], asked[row], turns[row] = [], (one, patience), 0
        step += 1
        if not len(batch):
            continue
        row, emitted = batch.step()
        found[row] += emitted.tokens
        turns[row] += 1
        if emitted.finish is None:
            cache, context = row.session.cache, row.session.context
            pending = len(emitted.tokens) - emitted.drafted
            assert cache.length == len(asked[row][0].prompt) + len(found[row]) - pending
            assert cache.handle[: cache.length] == context.tokens[: cache.length]
            if turns[row] == asked[row][1]:
                batch.leave(row)
    for row, (one, patience) in asked.items():
        alone = one.alone()
        assert row.tokens == found[row]
        assert found[row] == alone[: len(found[row])]
        assert patience is not None or found[row] == alone
        row.session.stats.check()


def test_rows_run_in_turn_one_round_each():
    batch = batch_of(3, ScriptedEngine(manifest(stop=())))
    rows = [batch.join(Request([token], 4, drafter="none")) for token in range(3)]
    assert [row for row, _ in batch.run()] == rows * 4


def test_rows_beyond_the_memory_wait_and_take_the_k_v_of_those_that_leave():
    class Counting(ScriptedEngine):
        made = 0

        def new_cache(self):
            self.made += 1
            return super().new_cache()

    engine = Counting(manifest(stop=()))
    batch = batch_of(2, engine)
    rows = [batch.join(Request([token], 1 + token, drafter="none")) for token in (3, 1, 2, 5)]
    finished = [row for row, emitted in batch.run() if emitted.finish]
    assert engine.made == 2
    assert finished == [rows[1], rows[0], rows[2], rows[3]]
    assert [row.tokens for row in rows] == [plain([t], 1 + t) for t in (3, 1, 2, 5)]


def test_no_room_for_a_single_row_is_told_with_both_sizes():
    with pytest.raises(PocketdraftError, match=r"takes 384 bytes.*and 383 are allowed; allow more"):
        Batch(Target(ScriptedEngine(manifest())), 383)


def test_a_row_of_executorch_takes_its_program_too():
    own = scripted_manifest(CAPACITY).model_copy(
        update={"backend": "executorch", "parts": {"target": Part(file="model.pte", offset=0, size=1000)}}
    )
    assert row_bytes(own) == 384 + 1000


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request([], 5), "prompt is empty"),
        (Request([1] * (CAPACITY + 1), 5), "holds 48"),
        (Request([1], 5, drafter="promt_lookup"), "no drafter"),
        (Request([1], 5, Sampler(Sampling(1.0), "rejection"), drafts=Confident()), "measured times"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_as_it_joins(request_, words):
    batch = batch_of(1)
    with pytest.raises(PocketdraftError, match=words):
        batch.join(request_)
    assert len(batch) == 0


def test_a_row_that_breaks_leaves_and_its_neighbours_go_on():
    def broken(logits, history):
        if len(history) > 3:
            raise ZeroDivisionError
        return logits

    batch = batch_of(2)
    row = batch.join(Request([1, 2], 9))
    batch.join(Request([4], 9, Sampler(Sampling(), processors=(broken,)), "none"))
    with pytest.raises(ZeroDivisionError):
        list(batch.run())
    assert len(batch) == 1
    list(batch.run())
    assert row.tokens == plain([1, 2], 9, frozenset({7}))


def test_leaving_twice_or_after_the_end_does_nothing():
    batch = batch_of(1)
    row, waiting = batch.join(Request([1, 2], 9)), batch.join(Request([4], 2))
    batch.leave(waiting)
    list(batch.run())
    batch.leave(row)
    batch.leave(waiting)
    assert waiting.tokens == []
    assert row.session.cache.handle is None, "it could write into the K/V of the next row"
    assert len(batch) == 0
    assert batch.join(Request([4], 2)) is batch.step()[0]
