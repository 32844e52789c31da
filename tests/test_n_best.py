"""Samples that share a prompt's K/V, and real scorer processes: good ones, slow ones and broken ones."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import VOCABULARY, ScriptedEngine, scripted_manifest
from test_cli import running

from pocketdraft.runtime.draft_length import Confident
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.n_best import Candidate, CommandScorer, Score, candidates, samples
from pocketdraft.runtime.sampler import GREEDY, Sampler
from pocketdraft.runtime.sampling import Sampling
from pocketdraft.runtime.session import Session, open_session
from pocketdraft.runtime.target import Target

PROMPT = list(range(10))
HOT = Sampler(Sampling(3.0, seed=5))


class Uncopied(ScriptedEngine):
    """As ExecuTorch."""

    def fork(self, cache):
        return None


class Spelled:
    """An output whose text is the list of its tokens."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def feed(self, token: int) -> bool:
        self.tokens.append(token)
        return False

    def take(self) -> str:
        return ""

    def finish(self) -> str:
        return str(self.tokens)


def finished(session: Session) -> list[int]:
    while session.context.finish is None:
        session.round()
    return session.context.tokens[len(PROMPT) :]


def ran(engine: ScriptedEngine, kind: str) -> int:
    return sum(call.startswith(kind) for call in engine.calls)


@pytest.mark.parametrize("engine", [ScriptedEngine, Uncopied])
@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 5),
    rule=st.sampled_from(["exact", "rejection"]),
    seed=st.integers(0, 2**64 - 1),
    order=st.randoms(use_true_random=False),
    drafts=st.integers(0, 5) | st.builds(Confident, st.integers(0, 5), st.just(0.2)),
)
def test_each_sample_is_what_its_seed_gives_alone_in_whatever_order_their_rounds_run(
    engine, count, rule, seed, order, drafts
):
    sampler = Sampler(Sampling(3.0, seed=seed), rule)
    sessions = list(samples(Target(engine(scripted_manifest())), PROMPT, 12, sampler, count, "mtp", drafts))
    while left := [session for session in sessions if session.context.finish is None]:
        order.choice(left).round()
    for session in sessions:
        own = Confident(drafts.longest, drafts.cost) if isinstance(drafts, Confident) else drafts
        alone = open_session(ScriptedEngine(scripted_manifest()), "mtp", own, sampler=session.sampler)
        alone.begin(PROMPT, 12)
        assert finished(session) == finished(alone)
    assert sessions[0].sampler == sampler, "the first is not what comes without --n"
    assert len({session.sampler.sampling.seed for session in sessions}) == count


def test_the_prompt_is_run_once_for_all_samples():
    engine = ScriptedEngine(scripted_manifest())
    texts = [finished(session) for session in samples(Target(engine), PROMPT, 12, HOT, 5)]
    assert ran(engine, "prefill") == 1  # of 8 tokens: the ninth is decoded, the tenth is the first round's
    assert len({tuple(text) for text in texts}) == 5


def test_where_k_v_cannot_be_copied_the_prompt_is_run_for_each_sample():
    engine = Uncopied(scripted_manifest())
    assert len([finished(session) for session in samples(Target(engine), PROMPT, 12, HOT, 3)]) == 3
    assert ran(engine, "prefill") == 3


def test_samples_without_a_temperature_are_refused_before_any_graph_runs():
    engine = ScriptedEngine(scripted_manifest())
    with pytest.raises(PocketdraftError, match="--n is 2 at temperature 0, where all texts are the same"):
        list(samples(Target(engine), PROMPT, 12, GREEDY, 2))
    with pytest.raises(PocketdraftError, match="token 12"):
        list(samples(Target(engine), [VOCABULARY], 12, HOT, 2))
    assert engine.calls == []


def test_the_first_that_passes_is_the_last_that_is_made():
    engine = ScriptedEngine(scripted_manifest())
    asked = []

    def third(text: str) -> Score:
        asked.append(text)
        return Score(len(asked) == 3, "")

    found = list(candidates(samples(Target(engine), PROMPT, 12, HOT, 9), Spelled, third))
    assert [candidate.text for candidate in found] == asked
    assert [candidate.passed for candidate in found] == [False, False, True]


def test_without_a_scorer_all_are_made_and_none_passes():
    found = list(candidates(samples(Target(ScriptedEngine(scripted_manifest())), PROMPT, 3, HOT, 4), Spelled, None))
    assert [(one.finish, one.score, one.passed) for one in found] == [("budget", None, False)] * 4
    assert all(isinstance(one, Candidate) for one in found)


# Scorer processes.


def python(code: str, timeout_s: float = 20.0) -> CommandScorer:
    return CommandScorer.parse(shlex.join([sys.executable, "-c", code]), timeout_s)


def test_a_command_passes_a_text_by_its_exit_status():
    check = python("import sys; sys.exit(sys.stdin.buffer.read().decode() != 'grün\\n')")
    assert check("grün\n") == Score(True, "exit status 0")
    assert check("red\n") == Score(False, "exit status 1")


def test_a_command_killed_by_a_signal_does_not_pass():
    assert python("import os; os.kill(os.getpid(), 9)")("") == Score(False, "exit status -9")


@pytest.mark.parametrize("status", [0, 3])
def test_a_command_that_closes_its_standard_input_at_once_is_judged_by_its_status(status):
    """More than a pipe holds: writing to it fails half-way."""
    check = python(f"import os, sys; os.close(0); sys.exit({status})")
    assert check("x" * 10_000_000) == Score(status == 0, f"exit status {status}")


HANGING = "import subprocess, sys; print(subprocess.Popen(['sleep', '600']).pid, file=open({!r}, 'w'), flush=True); "


@pytest.mark.parametrize(
    ("text", "then"),
    [
        ("short", "sys.stdin.read(); subprocess.run(['sleep', '600'])"),
        ("long" * 1_000_000, "import time; time.sleep(600)"),
    ],
    ids=["reads", "does not read"],
)
def test_a_command_that_hangs_is_killed_with_its_children(tmp_path, then, text):
    told = tmp_path / "pid"
    started = time.monotonic()
    assert python(HANGING.format(str(told)) + then, 1.0)(text) == Score(False, "no answer within 1 s")
    assert time.monotonic() - started < 10
    child = told.read_text().strip()
    for _ in range(50):
        if not running(child):
            return
        time.sleep(0.1)
    raise AssertionError("the scorer's child still runs")


@pytest.mark.parametrize(
    ("command", "timeout_s", "words"),
    [
        ("no-such-program --fast", 1, r"--score is 'no-such-program --fast', and there is no such program"),
        ("", 1, "there is no such program; give a command"),
        ("python 'check.py", 1, "No closing quotation"),
        ("true", 0, "--score-timeout is 0; give more than 0 seconds"),
        ("true", float("nan"), "--score-timeout is nan"),
        ("true", float("inf"), "a day at most"),
    ],
)
def test_a_scorer_that_cannot_work_is_refused_before_any_text_is_made(command, timeout_s, words):
    with pytest.raises(PocketdraftError, match=words):
        CommandScorer.parse(command, timeout_s)


def test_a_program_that_is_there_and_cannot_be_started_is_one_sentence(tmp_path: Path):
    script = tmp_path / "check"
    script.write_text("no header\n")
    script.chmod(0o755)
    check = CommandScorer.parse(str(script), 5)
    with pytest.raises(PocketdraftError, match=r"check cannot be started \(Exec format error\); give another command"):
        check("text")


def test_what_a_command_prints_goes_where_it_was_sent(tmp_path: Path):
    code = "import sys; print('out'); print('err', file=sys.stderr)"
    with (tmp_path / "log").open("wb") as log:
        CommandScorer.parse(shlex.join([sys.executable, "-c", code]), 20, log.fileno())("")
    assert sorted((tmp_path / "log").read_text().split()) == ["err", "out"]
    done = subprocess.run(
        [sys.executable, "-c", "from pocketdraft.runtime.n_best import *; CommandScorer.parse('echo no', 5)('')"],
        capture_output=True,
        env=os.environ,
    )
    assert (done.stdout, done.stderr) == (b"", b"")
