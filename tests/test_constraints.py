"""Constrained output: what a grammar allows and no more, the same whatever drafts, at the cost of one mask a step."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import VOCABULARY, ScriptedEngine, scripted_manifest
from spelled import PIECES, STOP, SpelledEngine, embedded_tokenizer, save_pieces, vocabulary_of

from pocketdraft.runtime.accept import Verdict
from pocketdraft.runtime.cache import Cache
from pocketdraft.runtime.constraints import Constraint, Grammar, Grammars, LogitBias, open_grammars
from pocketdraft.runtime.context import Context
from pocketdraft.runtime.draft_length import Fixed
from pocketdraft.runtime.drafters.mtp import MTPDrafter
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.proposal import Proposal
from pocketdraft.runtime.sampler import GREEDY, Sampler
from pocketdraft.runtime.sampling import Sampling
from pocketdraft.runtime.session import Session, open_session
from pocketdraft.runtime.target import Target, Verified
from pocketdraft.runtime.text import Tokenizer

PROMPT = [0, 1, 3, 0]
PATTERNS = ("a*", "(ab|b)+a", r'\{"a":1(,1)*\}', "b{3}", "(a|ab)(b|1)?")
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "size": {"type": "integer", "minimum": 0, "maximum": 999},
        "kind": {"enum": ["file", "folder", None]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "size", "kind", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def pieces(tmp_path_factory) -> Grammars:
    return Grammars(save_pieces(tmp_path_factory.mktemp("pieces")), VOCABULARY, [STOP])


@pytest.fixture(scope="module")
def embedded() -> Grammars:
    path = embedded_tokenizer()
    return Grammars(path, vocabulary_of(path), [1])


def spelled(tokens: Sequence[int]) -> str:
    return "".join("" if token == STOP else PIECES[token] for token in tokens)


def allowed_by_definition(pattern: str, text: str, longest: int = 12) -> set[int]:
    """Tokens after which some text still matches: a search over all short continuations."""

    def completable(text: str) -> bool:
        frontier = {text}
        while frontier:
            if any(re.fullmatch(pattern, one) for one in frontier):
                return True
            frontier = {one + letter for one in frontier for letter in 'ab1{}":,' if len(one) < longest}
            frontier = {one for one in frontier if _prefix_of_some(pattern, one)}
        return False

    found = {token for token, piece in enumerate(PIECES) if completable(text + piece)}
    return found | ({STOP} if re.fullmatch(pattern, text) else set())


def _prefix_of_some(pattern: str, text: str) -> bool:
    samples = {
        "a*": ["a" * 12],
        "b{3}": ["bbb"],
        "(a|ab)(b|1)?": ["ab", "a1", "abb", "ab1"],
    }[pattern]
    return any(sample.startswith(text) for sample in samples)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [("a*", ()), ("a*", (0,)), ("b{3}", ()), ("b{3}", (1, 1)), *(("(a|ab)(b|1)?", path) for path in [(), (0,), (2,)])],
)
def test_exactly_the_tokens_are_allowed_that_some_match_goes_on_with(pieces, pattern, path):
    allowed = pieces.compile("regex", pattern).after(0).allowed(path)
    assert set(np.flatnonzero(allowed)) == allowed_by_definition(pattern, spelled(path))


@settings(deadline=None)
@given(
    walks=st.lists(
        st.tuples(st.lists(st.integers(0, 10), max_size=6), st.lists(st.integers(0, 6), max_size=6)), max_size=8
    ),
    pattern=st.sampled_from(PATTERNS),
)
def test_a_constraint_is_a_pure_function_of_the_history(walks, pattern):
    """Asked at places of paths that part anywhere, in any order, it answers as a new one does."""
    grammar, nothing = grammar_of(pattern), np.zeros(VOCABULARY)
    kept = grammar.after(len(PROMPT))
    for choices, places in walks:
        path: list[int] = []
        for choice in choices:
            ids = np.flatnonzero(grammar.after(0).allowed(path))
            path.append(int(ids[choice % len(ids)]))
        for place in places:
            wanted = grammar.after(2)(nothing, [7, 7, *path[:place]])
            np.testing.assert_array_equal(kept(nothing, [*PROMPT, *path[:place]]), wanted)


_compiled: dict[str, Grammar] = {}


def grammar_of(pattern: str) -> Grammar:
    """Compiled once for all examples of a test."""
    if pattern not in _compiled:
        import tempfile
        from pathlib import Path

        with tempfile.TemporaryDirectory() as folder:
            _compiled[pattern] = Grammars(save_pieces(Path(folder)), VOCABULARY, [STOP]).compile("regex", pattern)
    return _compiled[pattern]


class Careless:
    """Drafts tokens of a fixed series, whatever the grammar allows, beyond its end too."""

    def __init__(self, series: list[int]) -> None:
        self.series = series

    def restart(self, prefilled) -> None: ...

    def propose(self, context: Context, count: int) -> Proposal:
        return Proposal.chain([self.series[i % len(self.series)] for i in range(max(count, 0))])

    def observe(self, verdict: Verdict, verified: Verified) -> None: ...


def output(session: Session, budget: int = 40) -> list[int]:
    return [token for round_ in session.generate(PROMPT, budget) for token in round_.tokens]


def plain(engine: ScriptedEngine, sampler: Sampler, budget: int) -> tuple[list[int], str | None]:
    session = open_session(engine, "none", 0, sampler=sampler)
    return output(session, budget), session.context.finish


@settings(deadline=None)
@given(
    pattern=st.sampled_from(PATTERNS),
    drafter=st.one_of(
        st.sampled_from(["mtp", "prompt_lookup"]), st.lists(st.integers(0, STOP), min_size=1, max_size=6)
    ),
    drafts=st.integers(0, 6),
    temperature=st.sampled_from([0.0, 0.5, 3.0]),
    seed=st.integers(0, 99),
    penalty=st.sampled_from([1.0, 1.5]),
    bias=st.sampled_from([{}, {0: 2.0, 7: -float("inf")}]),
    budget=st.integers(1, 30),
)
def test_any_drafter_gives_the_text_of_constrained_plain_decoding(
    pattern, drafter, drafts, temperature, seed, penalty, bias, budget
):
    if 7 in bias and "1" in pattern.replace("|1", ""):
        bias = {}  # the grammar has no other way on

    def sampler() -> Sampler:
        sampling = Sampling(temperature, repetition_penalty=penalty, seed=seed)
        return Sampler(sampling, "exact", (LogitBias(bias, VOCABULARY), grammar_of(pattern).after(len(PROMPT))))

    engine = ScriptedEngine(scripted_manifest(stop=(STOP,)))
    session = open_session(engine, drafter if isinstance(drafter, str) else "none", drafts, sampler=sampler())
    if not isinstance(drafter, str):
        session.drafter = Careless(drafter)
    found = output(session, budget)
    assert (found, session.context.finish) == plain(engine, sampler(), budget)
    assert session.context.finish == ("stop" if found[-1] == STOP else "budget")
    if session.context.finish == "stop":
        assert re.fullmatch(pattern, spelled(found))
    session.stats.check()


@settings(deadline=None)
@given(
    pattern=st.sampled_from(PATTERNS),
    drafter=st.one_of(st.just("mtp"), st.lists(st.integers(0, STOP), min_size=1, max_size=6)),
    seed=st.integers(0, 999),
)
def test_rejection_too_gives_what_matches(pattern, drafter, seed):
    sampler = Sampler(Sampling(3.0, seed=seed), "rejection", (grammar_of(pattern).after(len(PROMPT)),))
    engine = ScriptedEngine(scripted_manifest(stop=(STOP,)))
    session = open_session(engine, "mtp" if drafter == "mtp" else "none", 4, sampler=sampler)
    if drafter != "mtp":
        session.drafter = Careless(drafter)
    found = output(session)
    assert session.context.finish == "budget" or re.fullmatch(pattern, spelled(found))


def test_the_constraint_starts_after_the_prompt(pieces):
    """The prompt, which matches nothing, and a constrained turn before are no part of it."""
    grammar = pieces.compile("regex", "b{3}")
    session = open_session(ScriptedEngine(scripted_manifest(stop=(STOP,))), "mtp", 4)
    for _ in range(2):
        start = len(session.context.tokens) + len(PROMPT)
        session.sampler = Sampler(Sampling(), processors=(grammar.after(start),))
        session.drafter = MTPDrafter(session.target, session.cache, session.sampler)
        assert spelled(output(session)) == "bbb"


def test_a_grammar_that_is_complete_ends_with_any_of_the_stop_tokens(tmp_path):
    grammars = Grammars(save_pieces(tmp_path), VOCABULARY, [STOP, 3])
    constraint = grammars.compile("regex", "ab").after(0)
    assert set(np.flatnonzero(constraint.allowed([2]))) == {3, STOP}
    for after in ([2, 3], [2, STOP, STOP], [2, STOP, 0, 0]):
        assert set(np.flatnonzero(constraint.allowed(after))) == {3, STOP}


class Counting(Constraint):
    def _go_to(self, path, common):
        self.computed.append(tuple(path))
        super()._go_to(path, common)


def test_a_step_costs_one_mask(embedded):
    """Target and drafter look at the same positions, and no refused draft makes the target look twice."""
    engine = SpelledEngine(vocabulary_of(embedded_tokenizer()), 1)
    constraint = embedded.compile("json-schema", json.dumps(SCHEMA)).after(len(PROMPT))
    constraint.__class__, constraint.computed = Counting, []
    session = open_session(engine, "mtp", 4, sampler=Sampler(Sampling(1.0), "exact", (constraint,)))
    output(session, 100)
    stats = session.stats
    assert stats.accepted_per_round > 0.5
    assert len(constraint.computed) <= stats.proposed + stats.rounds


def accepted(grammar: Grammar, drafting: Sampler | None, rule: str, temperature: float) -> float:
    """Drafts a round over a few texts; `drafting` is the drafter's sampler, None for the target's own."""
    engine = SpelledEngine(vocabulary_of(embedded_tokenizer()), 1)
    target, drafted, rounds = Target(engine), 0, 0
    for seed in range(8):
        sampler = Sampler(Sampling(temperature, seed=seed), rule, (grammar.after(len(PROMPT)),))
        cache = Cache(engine.new_cache(), target.context_length)
        drafter = MTPDrafter(target, cache, drafting or sampler)
        session = Session(target, cache, drafter, Fixed(4), sampler)
        output(session, 60)
        drafted, rounds = drafted + session.stats.accepted, rounds + session.stats.rounds
    return drafted / rounds


@pytest.mark.parametrize(("rule", "temperature"), [("exact", 0.0), ("exact", 1.0), ("rejection", 1.0)])
def test_a_drafter_that_is_masked_is_accepted_far_more_often(embedded, rule, temperature):
    grammar, careless = embedded.compile("json-schema", json.dumps(SCHEMA)), Sampler(Sampling(temperature), rule)
    masked, unmasked = (accepted(grammar, drafting, rule, temperature) for drafting in (None, careless))
    assert masked > 2 * unmasked + 0.5


@pytest.mark.parametrize("rule", ["exact", "rejection"])
def test_fifty_texts_at_temperature_1_are_valid(embedded, rule):
    """Logits are noise here: what is valid is so by the constraint alone."""
    engine, tokenizer = SpelledEngine(vocabulary_of(embedded_tokenizer()), 1), Tokenizer(embedded_tokenizer(), None)
    grammar, target = embedded.compile("json-schema", json.dumps(SCHEMA)), Target(engine)
    texts = set()
    for seed in range(50):
        sampler = Sampler(Sampling(1.0, seed=seed), rule, (grammar.after(len(PROMPT)),))
        session = open_session(engine, "mtp", 4, target, sampler)
        text = tokenizer.decode(output(session, 300))
        assert session.context.finish == "stop"
        jsonschema.validate(json.loads(text), SCHEMA)
        texts.add(text)
    assert len(texts) == 50


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["exact", "rejection"])
def test_a_thousand_texts_of_the_embedded_pair_are_valid(make_trained_bundle, rule):
    """And by exact match, as greedily, they are those of constrained plain decoding."""
    from pocketdraft.runtime.engine import open_engine

    bundle = make_trained_bundle("mixed", "litert")
    engine = open_engine(bundle, 1)
    tokenizer, target = Tokenizer(bundle / "tokenizer.json", engine.manifest.tokens.bos), Target(engine)
    grammar = open_grammars(bundle, engine.manifest).compile("json-schema", json.dumps(SCHEMA))
    prompt, drafted = tokenizer.encode('{"type": "structure", "members": '), 0
    for seed in range(1000):
        sampling = Sampling(1.0 if seed else 0.0, seed=seed)
        sampler = Sampler(sampling, rule, (grammar.after(len(prompt)),))
        session = open_session(engine, "mtp", 4, target, sampler)
        tokens = [token for round_ in session.generate(prompt, 300) for token in round_.tokens]
        assert session.context.finish == "stop"
        jsonschema.validate(json.loads(tokenizer.decode(tokens)), SCHEMA)
        drafted += session.stats.accepted
        if not sampler.rejects:
            alone = open_session(engine, "none", 0, target, sampler)
            assert tokens == [token for round_ in alone.generate(prompt, 300) for token in round_.tokens]
    assert drafted > 1000


# --- bugs put in


class Stale(Constraint):
    """Does not take its matcher back to where a history parts from the one before."""

    def allowed(self, output):
        path = list(output)
        if STOP in path:
            return self._ended
        if len(path) not in self._known:
            self._go_to(path, min(len(path), len(self._path)))
        return self._known[len(path)]


def test_a_stale_state_would_be_found():
    def run() -> None:
        engine = ScriptedEngine(scripted_manifest(stop=(STOP,)))
        for seed in range(200):
            constraint = grammar_of("(ab|b)+a").after(len(PROMPT))
            wanted = plain(engine, Sampler(Sampling(3.0, seed=seed), "exact", (constraint,)), 30)
            stale = grammar_of("(ab|b)+a").after(len(PROMPT))
            stale.__class__ = Stale
            session = open_session(engine, "mtp", 4, sampler=Sampler(Sampling(3.0, seed=seed), "exact", (stale,)))
            assert (output(session, 30), session.context.finish) == wanted

    with pytest.raises((AssertionError, PocketdraftError)):
        run()


# --- what is refused


@pytest.mark.parametrize(
    ("kind", "source", "says"),
    [
        ("json-schema", "{", "The json-schema is no JSON"),
        ("json-schema", "3", "The json-schema is 3; give an object"),
        ("json-schema", '{"type": "strnig"}', "The json-schema cannot be used: Invalid type: strnig"),
        ("json-schema", '{"minContains": 3}', "The json-schema cannot be used: Unimplemented keys: ..minContains"),
        ("regex", "(a", "The regex cannot be used: .*unclosed group"),
        ("regex", r"[^\s\S]", "The regex cannot be used: no text matches."),
        ("grammar", "start: foo", 'The grammar cannot be used: .*unknown name: "foo"'),
        ("grammar", "", "The grammar cannot be used"),
    ],
)
def test_a_constraint_that_is_none_is_one_sentence(pieces, kind, source, says):
    with pytest.raises(PocketdraftError, match=says) as refused:
        pieces.compile(kind, source)
    assert "\n" not in str(refused.value)


def test_a_bundle_without_a_stop_token_is_refused(tmp_path):
    with pytest.raises(PocketdraftError, match="The bundle has no stop token"):
        Grammars(save_pieces(tmp_path), VOCABULARY, [])


def test_a_lark_grammar_is_followed(pieces):
    grammar = pieces.compile("grammar", 'start: "{" pair "}"\npair: "\\"a\\"" ":" ("1" | "b")')
    sampler = Sampler(Sampling(), processors=(grammar.after(len(PROMPT)),))
    found = output(open_session(ScriptedEngine(scripted_manifest(stop=(STOP,))), "mtp", 4, sampler=sampler))
    assert spelled(found) in ('{"a":1}', '{"a":b}')


# --- logit bias


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_banned_token_is_never_written_and_a_favoured_one_always(temperature):
    engine = ScriptedEngine(scripted_manifest())
    banned = Sampler(Sampling(temperature), processors=(LogitBias({3: -np.inf, 4: -np.inf}, VOCABULARY),))
    assert not {3, 4} & set(output(open_session(engine, "mtp", 4, sampler=banned)))
    favoured = Sampler(Sampling(temperature), processors=(LogitBias({3: 100.0}, VOCABULARY),))
    assert set(output(open_session(engine, "mtp", 4, sampler=favoured))) == {3}


def test_a_bias_that_leaves_no_token_is_refused_greedily_too():
    everything = LogitBias(dict.fromkeys(range(VOCABULARY), -np.inf), VOCABULARY)
    for temperature in (0.0, 1.0):
        sampler = Sampler(Sampling(temperature), processors=(everything,))
        with pytest.raises(PocketdraftError, match="no token can be drawn"):
            output(open_session(ScriptedEngine(scripted_manifest()), "mtp", 4, sampler=sampler))


@pytest.mark.parametrize(
    ("bias", "says"),
    [({12: 1.0}, "token 12, the vocabulary has 12"), ({1: np.inf}, "of token 1 is inf; give a number")],
)
def test_a_bias_that_is_none_is_named(bias, says):
    with pytest.raises(PocketdraftError, match=says):
        LogitBias(bias, VOCABULARY)


def test_greedy_is_untouched_by_a_constraint_that_allows_everything(pieces):
    everything = pieces.compile("regex", r"[\s\S]*")
    engine = ScriptedEngine(scripted_manifest(stop=(STOP,)))
    sampler = Sampler(Sampling(), processors=(everything.after(len(PROMPT)),))
    assert output(open_session(engine, "mtp", 4, sampler=sampler)) == plain(engine, GREEDY, 40)[0]
