"""What one sequence takes over from others: from those above all whose prompts are alike.

A round takes what `COST` says, no clock. An easy text's drafts are all accepted, and pay; a hard one's are all refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from rounds import record
from scripted import ScriptedEngine, plain, scripted_manifest

from pocketdraft.runtime.batch import Batch, Request, row_bytes
from pocketdraft.runtime.cost import RoundCost, Times
from pocketdraft.runtime.draft_length import TRY_ROUNDS, Confident, Fixed
from pocketdraft.runtime.experience import EACH, REMEMBERED, Experience, counted
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.stats import Stats
from pocketdraft.runtime.target import Target

COST = RoundCost(((1, 1.0), (2, 1.3), (3, 1.5), (5, 1.9)), 0.2)
LETTERS, TABLES, POEMS = range(100, 140), range(200, 240), range(300, 340)  # tokens of prompts' kinds
Chance = Callable[[np.random.Generator], tuple[float, float]]  # a draft's confidence, and its chance


def easy(random: np.random.Generator) -> tuple[float, float]:
    return 0.97, 1.0


def hard(random: np.random.Generator) -> tuple[float, float]:
    return 0.4, 0.0


def prompt(kind: Sequence[int], number: int) -> list[int]:
    """Half of it is the kind's, half its own, up to number 30. No two tokens fall into one bucket."""
    own = 400 + 20 * min(number, 30)
    return [*kind[:20], *range(own, own + 20)]


def started(experience: Experience, tokens: Sequence[int]) -> Confident:
    policy = Confident(cost=COST).starting_from(experience)
    policy.begin(tokens)
    return policy


def write(policy: Confident, drafts: Chance, rounds: int, stats: Stats | None = None) -> list[int]:
    """The drafts of each round; `stats` may have earlier ones."""
    stats, random, made = stats or Stats(), np.random.default_rng(0), []
    for _ in range(rounds):
        confidences: list[float] = []
        right: list[bool] = []
        for _ in range(min(policy.next(stats), COST.longest)):
            confidence, chance = drafts(random)
            confidences.append(confidence)
            right.append(bool(random.random() < chance))
            if policy.enough(confidences):
                break
        accepted = right.index(False) if False in right else len(right)
        record(stats, confidences, accepted)
        made.append(len(right))
    return made


def first_drafts(experience: Experience, tokens: Sequence[int], rounds: int = 8) -> list[int]:
    """Of a hard text: what it drafts before it has learnt much itself."""
    return write(started(experience, tokens), hard, rounds)


def test_a_prompt_starts_with_what_its_kind_taught_though_others_came_between():
    experience = Experience(Times([]))
    write(started(experience, prompt(TABLES, 0)), easy, 40)
    for number in range(1, 6):
        write(started(experience, prompt(LETTERS, number)), hard, 60)
    assert write(started(experience, prompt(TABLES, 9)), easy, 8) == [4] * 8
    assert first_drafts(experience, prompt(LETTERS, 10)) == [0] * 8


@pytest.mark.parametrize(("taught", "drafted"), [(easy, True), (hard, False)])
def test_a_kind_unlike_all_others_starts_from_all_of_them(taught, drafted):
    experience = Experience(Times([]))
    for number in range(30):
        experience.idle = 10_000  # each is tried
        write(started(experience, prompt(LETTERS if number % 2 else TABLES, number)), taught, 20)
    experience.idle = 1  # no try is due
    assert any(first_drafts(experience, prompt(POEMS, 99), rounds=1)) == drafted


def tried_for(drafts: Chance, then: Chance) -> list[int]:
    """Drafts of a text of a new kind, after many hard ones: one try's worth of `drafts` first, the rest is `then`."""
    experience, stats = Experience(Times([])), Stats()
    for number in range(30):
        experience.idle = 10_000  # each is tried
        write(started(experience, prompt(LETTERS, number)), hard, 20)
    experience.idle = 10_000
    policy = started(experience, prompt(POEMS, 99))
    return write(policy, drafts, TRY_ROUNDS, stats) + write(policy, then, 4 * TRY_ROUNDS, stats)


def test_a_try_makes_one_draft_and_two_in_turn_and_does_not_outweigh_what_all_others_taught():
    drafts = tried_for(lambda random: (0.97, 0.8), easy)
    assert drafts == [1, 2] * (TRY_ROUNDS // 2) + [0] * (4 * TRY_ROUNDS)


def test_a_try_goes_on_for_as_long_as_none_is_refused():
    assert tried_for(easy, hard) == [1, 2] * TRY_ROUNDS + [0] * (3 * TRY_ROUNDS)
    assert tried_for(easy, easy)[-TRY_ROUNDS:] == [4] * TRY_ROUNDS


def test_a_few_refused_drafts_at_the_start_are_no_verdict():
    policy, stats = started(Experience(Times([])), ()), Stats()
    write(policy, hard, 1, stats)
    assert all(write(policy, easy, 3 * TRY_ROUNDS, stats))


def test_an_unlucky_try_is_not_held_against_the_next_one():
    experience, stats = Experience(Times([])), Stats()
    policy = started(experience, ())
    write(policy, hard, 600, stats)
    experience.idle = 10_000
    drafts = write(policy, easy, 2 * TRY_ROUNDS, stats)
    assert all(drafts)


def test_a_kind_that_is_no_longer_what_it_was_is_found_out_whatever_it_taught():
    experience = Experience(Times([]))
    for number in range(20):
        write(started(experience, prompt(TABLES, number)), easy, 200)
    drafts = write(started(experience, prompt(TABLES, 99)), lambda random: (0.97, 0.0), 200)
    assert not any(drafts[140:])


def test_a_kind_unlike_all_others_is_tried_sooner():
    def waits(kind: Sequence[int]) -> int:
        experience = Experience(Times([]))
        for number in range(16):
            experience.idle = 10_000  # each is tried
            write(started(experience, prompt(LETTERS, number)), hard, 20)
        experience.idle = 1
        drafts = write(started(experience, prompt(kind, 99)), hard, 3_000)
        return next(index for index, count in enumerate(drafts) if count)

    assert 0 < waits(POEMS) < waits(LETTERS) / 3


def test_no_prompt_is_as_much_like_one_as_like_another():
    experience = Experience(Times([]))
    stats = [Stats(), Stats()]
    write(started(experience, prompt(TABLES, 0)), easy, 5, stats[0])
    write(started(experience, prompt(LETTERS, 1)), hard, 5, stats[1])
    judged = experience.of(counted(()), started(experience, ())._own)
    assert judged.sum() == sum(one.judged.total() for one in stats)


def test_a_text_that_is_dropped_midway_has_taught_all_its_drafts():
    """Those too that came after it last made a schedule."""
    experience, stats = Experience(Times([])), Stats()
    write(started(experience, prompt(TABLES, 0)), easy, 7, stats)
    judged = experience.of(counted(prompt(TABLES, 1)), started(experience, ())._own)
    assert judged.sum() == stats.judged.total() > 16


def test_one_long_text_does_not_speak_for_all_of_its_kind():
    experience = Experience(Times([]))
    for number in range(3):
        write(started(experience, prompt(TABLES, number)), lambda random: (0.97, 0.0), 40)
    write(started(experience, prompt(TABLES, 3)), easy, 1_000)
    experience.idle = 1  # no try is due
    judged = experience.of(counted(prompt(TABLES, 9)), started(experience, ())._own)
    assert judged[9, 1] == EACH < judged.sum()


def test_its_own_drafts_are_not_another_s():
    """A conversation goes on: what it has seen itself is not counted twice."""
    experience, stats = Experience(Times([])), Stats()
    policy = started(experience, prompt(TABLES, 0))
    write(policy, easy, 10, stats)
    write(started(experience, prompt(LETTERS, 1)), hard, 100)
    policy.begin(prompt(LETTERS, 2))
    assert write(policy, easy, 10, stats) == [4] * 10
    assert len(experience.sequences) == 2
    assert policy._before[9].sum() == 0


def test_no_more_sequences_are_remembered_than_so_many():
    experience = Experience(Times([]))
    write(started(experience, prompt(TABLES, 0)), easy, 40)
    for number in range(1, 2 * REMEMBERED):
        experience.idle = 10_000  # each is tried
        write(started(experience, prompt(LETTERS, number)), hard, 20)
    assert len(experience.sequences) == REMEMBERED
    assert first_drafts(experience, prompt(TABLES, 99), rounds=1) == [0], "that one is forgotten"


def test_texts_that_come_in_turn_learn_from_each_other():
    """As rows of a batch: the second begins while the first is under way."""
    experience, stats = Experience(Times([])), [Stats(), Stats()]
    first = started(experience, prompt(LETTERS, 0))
    write(first, hard, 20, stats[0])
    second = started(experience, prompt(LETTERS, 1))
    assert write(second, hard, 8, stats[1]) == [0] * 8
    assert not any(write(first, hard, 8, stats[0]))


def test_a_price_of_better_days_does_not_end_drafting():
    """After a text whose drafts were all accepted, time is dear. Drafts that are right four times of five gain less
    than it was worth there, and still more than decoding does."""
    experience = Experience(Times([]))
    write(started(experience, prompt(TABLES, 0)), easy, 16)
    drafts = write(started(experience, prompt(POEMS, 1)), lambda random: (0.8, 0.8), 400)
    assert drafts.count(0) < 40


def test_a_session_tells_the_whole_context_that_its_rounds_go_on_from():
    told = []

    class Told(Fixed):
        def begin(self, tokens):
            told.append(list(tokens))

    session = open_session(ScriptedEngine(scripted_manifest()), "mtp", 2)
    session.draft_length = Told(2)
    first = [token for emitted in session.generate([1, 2, 3], 5) for token in emitted.tokens]
    list(session.generate([4, 5], 3))
    assert told == [[1, 2, 3], [1, 2, 3, *first, 4, 5]]


def test_whatever_other_prompts_taught_the_text_is_plain_decoding_s():
    target = Target(ScriptedEngine(scripted_manifest(200)))
    batch = Batch(target, 2 * row_bytes(target.engine.manifest))
    prompts = [[1, 2, 3], [1, 2, 4], [7, 8, 9], [1, 2, 3, 3], [7, 8, 8], [1, 2, 3]]
    rows = [batch.join(Request(tokens, 90, drafts=Confident(4))) for tokens in prompts]
    for _ in batch.run():
        pass
    assert [row.tokens for row in rows] == [plain(tokens, 90) for tokens in prompts]
    assert len(target.experience.sequences) > 1
