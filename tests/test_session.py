"""The loop against plain decoding, over a scripted engine. Tests are named after the edge."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import VOCABULARY, ScriptedEngine, next_token, plain, scripted_manifest

from pocketdraft.runtime import target as target_module
from pocketdraft.runtime.accept import Verdict
from pocketdraft.runtime.cache import Cache
from pocketdraft.runtime.context import Context
from pocketdraft.runtime.cost import SOON_PLAIN
from pocketdraft.runtime.draft_length import Fixed
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.proposal import Proposal
from pocketdraft.runtime.session import Session, open_session
from pocketdraft.runtime.target import Target, Verified

DRAFTERS = ["mtp", "mtp_tree", "prompt_lookup", "none"]
token_lists = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=20)


def emitted(session: Session, prompt: list[int], budget: int) -> list[int]:
    return [token for round_ in session.generate(prompt, budget) for token in round_.tokens]


@given(
    prompt=token_lists,
    budget=st.integers(1, 40),
    drafter=st.sampled_from(DRAFTERS),
    drafts=st.integers(0, 9),
    stop=st.frozensets(st.integers(0, VOCABULARY - 1), max_size=2),
    capacity=st.integers(20, 48),
    wrong_half=st.booleans(),
    verify=st.sampled_from([(2,), (5,), (2, 3, 5), (3, 9)]),
)
def test_any_drafter_emits_what_plain_decoding_emits(
    prompt, budget, drafter, drafts, stop, capacity, wrong_half, verify
):
    manifest = scripted_manifest(capacity, verify, stop=tuple(stop))
    session = open_session(ScriptedEngine(manifest, wrong_half), drafter, drafts)
    expected = plain(prompt, budget, stop, capacity)
    assert emitted(session, prompt, budget) == expected
    assert session.context.tokens == prompt + expected
    assert len(session.context.tokens) - 1 <= session.cache.length <= len(session.context.tokens)
    session.stats.check()
    assert session.stats.emitted == len(expected)


@given(
    turns=st.lists(st.tuples(token_lists, st.integers(1, 8)), min_size=2, max_size=4),
    drafter=st.sampled_from(DRAFTERS),
    stop=st.frozensets(st.integers(0, VOCABULARY - 1), max_size=2),
)
def test_a_later_turn_continues_the_whole_context(turns, drafter, stop):
    session = open_session(ScriptedEngine(scripted_manifest(200, stop=tuple(stop))), drafter, 4)
    context: list[int] = []
    for prompt, budget in turns:
        context += prompt
        expected = plain(context, budget, stop)
        assert emitted(session, prompt, budget) == expected
        context += expected


class Parrot:
    """Proposes a fixed list: lets a test say which draft is right and which is not."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def restart(self, prefilled) -> None: ...

    def propose(self, context: Context, count: int) -> Proposal:
        return Proposal.chain(self.tokens[:count])

    def observe(self, verdict: Verdict, verified: Verified) -> None: ...


def parrot_session(tokens: list[int], stop: tuple[int, ...] = ()) -> Session:
    target = Target(ScriptedEngine(scripted_manifest(stop=stop)))
    return Session(target, Cache(target.engine.new_cache(), 64), Parrot(tokens), Fixed(4))


PROMPT = [1, 2, 3]
# Four tokens that differ, so that a stop token has one place only.
RIGHT = plain(PROMPT, 5)


def test_the_script_has_distinct_tokens_to_stop_at():
    assert RIGHT[1] not in (RIGHT[0], *RIGHT[2:])


def test_stop_token_inside_accepted_block_ends_output_there():
    session = parrot_session(RIGHT[:4], stop=(RIGHT[1],))
    rounds = list(session.generate(PROMPT, 20))
    assert [r.tokens for r in rounds] == [tuple(RIGHT[:2])]
    assert rounds[-1].finish == "stop"


def test_stop_token_inside_accepted_block_is_committed_and_what_follows_is_not():
    session = parrot_session(RIGHT[:4], stop=(RIGHT[1],))
    list(session.generate(PROMPT, 20))
    assert session.cache.length == len(PROMPT) + 2


def test_no_bonus_token_after_an_accepted_stop_token():
    session = parrot_session(RIGHT[:2], stop=(RIGHT[1],))
    assert emitted(session, PROMPT, 20) == RIGHT[:2]
    assert session.stats.cut == 1


def test_budget_in_the_middle_of_a_block_is_exact():
    for budget in range(1, 6):
        assert emitted(parrot_session(RIGHT[:4]), PROMPT, budget) == RIGHT[:budget]


def test_a_draft_is_never_longer_than_the_budget_can_use():
    session = parrot_session(RIGHT[:4])
    list(session.generate(PROMPT, 2))
    assert session.stats.proposed == 1


def test_verify_near_the_end_of_the_cache_shortens_the_draft():
    engine = ScriptedEngine(scripted_manifest(10, verify=(2, 5)), wrong_half=False)
    session = open_session(engine, "mtp", 4)
    assert emitted(session, PROMPT, 100) == plain(PROMPT, 100, capacity=10)
    assert session.cache.length == 10


def test_a_full_cache_finishes_with_context():
    session = open_session(ScriptedEngine(scripted_manifest(10)), "mtp", 4)
    assert list(session.generate(PROMPT, 100))[-1].finish == "context"


def test_a_prompt_that_fills_the_cache_gives_one_token():
    session = open_session(ScriptedEngine(scripted_manifest(10)), "mtp", 4)
    assert emitted(session, list(range(10)), 100) == plain(list(range(10)), 1)


def test_a_prompt_longer_than_the_context_is_refused_before_any_graph_runs():
    engine = ScriptedEngine(scripted_manifest(10))
    with pytest.raises(PocketdraftError, match=r"11 tokens.*holds 10"):
        list(open_session(engine).generate([1] * 11, 5))
    assert engine.calls == []


@pytest.mark.parametrize(
    ("prompt", "budget", "says"), [([], 5, "empty"), ([VOCABULARY], 5, "token 12"), ([1], 0, "budget")]
)
def test_impossible_requests_are_refused(prompt, budget, says):
    with pytest.raises(PocketdraftError, match=says):
        list(open_session(ScriptedEngine(scripted_manifest())).generate(prompt, budget))


def test_a_drafter_that_is_always_right_is_accepted_whole():
    session = open_session(ScriptedEngine(scripted_manifest(), wrong_half=False), "mtp", 4)
    emitted(session, PROMPT, 21)
    assert session.stats.accepted_per_round == 4.0
    assert session.stats.acceptance_by_position() == [1.0] * 4


def test_a_drafter_that_is_always_wrong_costs_only_time():
    wrong = [(token + 1) % VOCABULARY for token in RIGHT[:1]] * 4
    session = parrot_session(wrong)
    assert next(iter(session.generate(PROMPT, 4))).tokens == (RIGHT[0],)
    assert session.stats.accepted == 0


def test_the_first_round_is_plain_since_no_hidden_state_is_known():
    engine = ScriptedEngine(scripted_manifest())
    next(iter(open_session(engine, "mtp", 4).generate(PROMPT, 9)))
    assert "mtp_drafter" not in engine.calls
    assert engine.calls[-1] == "decode"


def test_sessions_of_one_target_do_not_see_each_other():
    engine = ScriptedEngine(scripted_manifest())
    target = Target(engine)
    sessions = [open_session(engine, "mtp", 4, target) for _ in range(2)]
    prompts = [[1, 2, 3], [4, 5]]
    streams = [s.generate(p, 12) for s, p in zip(sessions, prompts, strict=True)]
    outputs: list[list[int]] = [[], []]
    while any(len(output) < 12 for output in outputs):
        for output, stream in zip(outputs, streams, strict=True):
            output.extend(token for round_ in [next(stream, None)] if round_ for token in round_.tokens)
    assert outputs == [plain(prompt, 12) for prompt in prompts]


def test_next_token_depends_on_every_token_before():
    assert len({next_token((a, 2, 3)) for a in range(VOCABULARY)}) > 3


# What lies in the cache, round by round and turn by turn.


class Oracle:
    """Proposes what the target will say, but for the mistakes: any mixture from always right to always wrong."""

    def __init__(self, mistakes: list[bool]) -> None:
        self.mistakes = mistakes

    def restart(self, prefilled) -> None: ...

    def propose(self, context: Context, count: int) -> Proposal:
        tokens = plain(context.tokens, count)
        wrong = [self.mistakes[(len(context.tokens) + i) % len(self.mistakes)] for i in range(len(tokens))]
        return Proposal.chain([(token + spoil) % VOCABULARY for token, spoil in zip(tokens, wrong, strict=True)])

    def observe(self, verdict: Verdict, verified: Verified) -> None: ...


@settings(deadline=None)
@given(
    turns=st.lists(st.tuples(token_lists, st.integers(1, 12)), min_size=1, max_size=4),
    mistakes=st.lists(st.booleans(), min_size=1, max_size=7),
    drafts=st.integers(0, 6),
    stop=st.frozensets(st.integers(0, VOCABULARY - 1), max_size=2),
    capacity=st.integers(20, 60),
    per_layer=st.booleans(),
)
def test_after_each_round_the_cache_holds_the_context_but_for_the_pending_token(
    turns, mistakes, drafts, stop, capacity, per_layer
):
    target = Target(ScriptedEngine(scripted_manifest(capacity, stop=tuple(stop), per_layer=per_layer)))
    cache = Cache(target.engine.new_cache(), capacity)
    session = Session(target, cache, Oracle(mistakes), Fixed(drafts))
    tokens: list[int] = []
    for prompt, budget in turns:
        if len(tokens) + len(prompt) > capacity:
            with pytest.raises(PocketdraftError, match="shorten it"):
                next(session.generate(prompt, budget))
            assert session.context.tokens == tokens, "a refused prompt changed the context"
            continue
        tokens += prompt
        expected = plain(tokens, budget, stop, capacity)
        for round_ in session.generate(prompt, budget):
            tokens += round_.tokens
            # Drafts that were kept are in the cache; the target's own token is not, unless a stop cut it off.
            pending = len(round_.tokens) - round_.drafted
            assert session.context.tokens == tokens
            assert cache.length == len(tokens) - pending
            assert cache.handle[: cache.length] == tokens[: cache.length]
        assert tokens[len(tokens) - len(expected) :] == expected
        session.stats.check()


def test_a_stream_that_is_left_early_can_be_continued_by_another_turn():
    session = open_session(ScriptedEngine(scripted_manifest()), "mtp", 4)
    started = [
        token for _, round_ in zip(range(3), session.generate(PROMPT, 30), strict=False) for token in round_.tokens
    ]
    context = [*PROMPT, *started, 7]
    assert emitted(session, [7], 9) == plain(context, 9)


def test_prefill_takes_the_narrowest_graph_that_fits_both_prompt_and_cache():
    engine = ScriptedEngine(scripted_manifest(11, prefill=(4, 8)))
    assert emitted(open_session(engine, "none"), [1] * 11, 1) == plain([1] * 11, 1)
    ran = [call for call in engine.calls if "embedder" not in call]
    assert ran == ["prefill_8", "decode", "decode", "decode"]  # 2 of 3 free slots left: prefill_4 would not fit


def test_remembered_embeddings_are_those_of_the_engine_when_others_had_to_go(monkeypatch):
    monkeypatch.setattr(target_module, "REMEMBERED_ROWS", 2)
    engine = ScriptedEngine(scripted_manifest())
    assert emitted(open_session(engine, "mtp"), PROMPT, 30) == plain(PROMPT, 30)
    assert engine.calls.count("embedder") > VOCABULARY


def test_seconds_cover_the_rounds_and_not_what_the_caller_does_between_them():
    session = open_session(ScriptedEngine(scripted_manifest()), "mtp", 4)
    started, away = time.perf_counter(), 0.0
    for _ in session.generate(PROMPT, 10):
        left = time.perf_counter()
        time.sleep(0.005)
        away += time.perf_counter() - left
    within = time.perf_counter() - started - away
    assert all(seconds > 0 for seconds in session.stats.seconds.values())
    assert session.stats.total_s < within


class Deaf(Parrot):
    """Proposes all it has, however little was asked for."""

    def propose(self, context: Context, count: int) -> Proposal:
        return Proposal.chain(self.tokens)


@pytest.mark.parametrize("budget", [1, 2, 3, 4])
def test_a_drafter_that_ignores_the_count_cannot_overshoot_the_budget(budget):
    target = Target(ScriptedEngine(scripted_manifest()))
    session = Session(target, Cache(target.engine.new_cache(), 64), Deaf(RIGHT[:4]), Fixed(4))
    assert emitted(session, PROMPT, budget) == RIGHT[:budget]
    assert session.cache.length == len(session.context.tokens)
    session.stats.check()


def test_each_turn_of_a_conversation_is_timed_from_its_own_start():
    """A prompt in between has had the caches to itself."""
    session = open_session(ScriptedEngine(scripted_manifest(200)), "none")
    timed = []
    session.target.experience.times.add = lambda *_: timed.append(len(session.context.tokens))
    session.target.experience.times.hardly_knows = lambda width: False
    for _ in range(2):
        list(session.generate([1, 2, 3], 40))
    assert timed == [*range(5, 5 + SOON_PLAIN), *range(48, 48 + SOON_PLAIN)]
