"""`run --n` and `chat` as processes, over the scripted target."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("speaking.py")
HOT = ("--temperature", "3", "--max-tokens", "8")


def call(command: str, *arguments: object, typed: str = "", interrupt_at: int = 0) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(SCRIPT), str(interrupt_at), command, "bundle", *map(str, arguments)]
    return subprocess.run(line, input=typed, capture_output=True, text=True, timeout=60)


def several(*arguments: object) -> subprocess.CompletedProcess[str]:
    return call("run", "--prompt", "abcde", "--n", 4, *HOT, *arguments)


def scorer(code: str) -> tuple[str, str]:
    return "--score", shlex.join([sys.executable, "-c", code])


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Of four samples."""
    return [one["text"] for one in json.loads(several("--json").stdout)["candidates"]]


def test_without_a_scorer_all_texts_are_printed(texts):
    assert len(set(texts)) == 4
    done = several()
    assert done.stdout == "".join(f"--- {i} of 4 ---\n{text}\n" for i, text in enumerate(texts, 1))
    assert done.returncode == 0


def test_the_text_that_passes_is_all_of_standard_output_and_no_further_one_is_scored(texts):
    done = several(*scorer(f"import sys; print('!'); sys.exit(sys.stdin.read() != {texts[1]!r})"))
    assert (done.returncode, done.stdout) == (0, texts[1] + "\n")
    assert done.stderr.splitlines() == ["!", "1 of 4: exit status 1", "!", "2 of 4: exit status 0"]


def test_where_none_passes_the_texts_are_listed_and_the_status_is_1(texts):
    done = several(*scorer("import sys; sys.exit(3)"))
    assert (done.returncode, done.stdout) == (1, "")
    listed = [f"--- {i} of 4: exit status 3 ---" for i in range(1, 5)]
    assert [line for line in done.stderr.splitlines() if line.startswith("---")] == listed
    assert all(text in done.stderr for text in texts)
    assert "None of 4 texts passed" in done.stderr.splitlines()[-1]


def test_json_says_which_was_chosen_and_what_each_was_told(texts):
    done = several(*scorer(f"import sys; sys.exit(sys.stdin.read() != {texts[1]!r})"), "--json")
    found = json.loads(done.stdout)
    assert found["chosen"] == 1
    assert [(one["text"], one["score"]) for one in found["candidates"]] == [
        (texts[0], "exit status 1"),
        (texts[1], "exit status 0"),
    ]


def test_each_text_ends_before_a_stop_string(texts):
    stop = max(texts, key=len)[2]
    found = json.loads(several("--json", "--stop", stop).stdout)["candidates"]
    assert [one["text"] for one in found] == [text.partition(stop)[0] for text in texts]
    assert {one["finish"] for one, text in zip(found, texts, strict=True) if stop in text} == {"stop"}


def test_a_scorer_that_hangs_passes_nothing():
    done = call("run", "--prompt", "ab", *HOT, *scorer("import time; time.sleep(600)"), "--score-timeout", 0.2)
    assert (done.returncode, done.stdout) == (1, "")
    assert "1 of 1: no answer within 0.2 s" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--n", 2), "--n is 2 at temperature 0"),
        (("--n", 0), "--n is 0; give at least 1"),
        (("--score", "no-such-program"), "there is no such program"),
    ],
)
def test_what_cannot_work_is_one_sentence(arguments, words):
    done = call("run", "--prompt", "ab", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (sentence,) = done.stderr.splitlines()
    assert words in sentence


def test_a_chat_answers_each_line_and_ends_with_the_input():
    one, two = (call("chat", "--max-tokens", 9, typed=typed) for typed in ("ab\n", "ab\n\ncde\n"))
    assert one.returncode == two.returncode == 0
    assert two.stdout.startswith(one.stdout)
    assert len(two.stdout.splitlines()) == 2, two.stdout


def test_ctrl_c_stops_an_answer_and_the_chat_goes_on():
    whole = call("chat", "--max-tokens", 30, typed="ab\n")
    done = call("chat", "--max-tokens", 30, typed="ab\ncde\n", interrupt_at=30)
    assert done.returncode == 0, done.stderr
    stopped, second = done.stdout.splitlines()
    assert stopped.endswith(" [stopped]")
    assert whole.stdout.startswith(stopped.removesuffix(" [stopped]"))
    assert 0 < len(stopped.removesuffix(" [stopped]")) < len(whole.stdout.strip())
    assert second


def test_a_question_that_does_not_fit_is_told_and_the_chat_goes_on():
    done = call("chat", "--max-tokens", 9, typed="e" * 200 + "\nab\n")
    assert done.returncode == 0
    assert "shorten it" in done.stderr
    assert done.stdout == call("chat", "--max-tokens", 9, typed="ab\n").stdout
