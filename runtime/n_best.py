"""Several samples of one prompt, of which a scorer takes the first that is good enough."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from .context import Finish
from .draft_length import Drafts
from .errors import PocketdraftError
from .sampler import Sampler
from .session import Session, open_session
from .target import Target
from .text import OutputText

DAY_S = 86400.0


@dataclass(frozen=True)
class Score:
    """What a scorer says of a text: whether it will do, and why ("exit status 1")."""

    passed: bool
    said: str


Scorer = Callable[[str], Score]


@dataclass(frozen=True)
class Candidate:
    """A finished sample; `score` is None where there is no scorer."""

    text: str
    finish: Finish | None
    score: Score | None

    @property
    def passed(self) -> bool:
        return self.score is not None and self.score.passed


def samples(
    target: Target,
    prompt: Sequence[int],
    budget: int,
    sampler: Sampler,
    count: int,
    drafter: str = "mtp",
    drafts: Drafts = 4,
) -> Iterator[Session]:
    """Sequences with `prompt` begun, each with noise of its own: the first is what `sampler` gives alone.

    The prompt is run once, and its K/V are copied; ExecuTorch, which cannot, runs it again for each. Sequences that
    are not asked for cost nothing, and those that are may be run side by side. Raises PocketdraftError.
    """
    if count > 1 and sampler.sampling.temperature == 0:
        raise PocketdraftError(f"--n is {count} at temperature 0, where all texts are the same; give --temperature.")
    begun = open_session(target.engine, "none", 0, target, sampler)
    begun.begin(prompt, budget)
    for number in range(count):
        cache = target.fork(begun.cache) if number + 1 < count else begun.cache
        session = open_session(target.engine, drafter, drafts, target, sampler.sample(number), cache)
        session.begin(prompt, budget)
        yield session


def candidates(
    sequences: Iterable[Session], open_output: Callable[[], OutputText], scorer: Scorer | None
) -> Iterator[Candidate]:
    """Finishes one sample after the other, and ends with the first that passes. `open_output` makes a text for each."""
    for session in sequences:
        output = open_output()
        session.context.ends = output.feed
        while session.context.finish is None:
            session.round()
        text = output.take() + output.finish()
        candidate = Candidate(text, session.context.finish, scorer and scorer(text))
        yield candidate
        if candidate.passed:
            return


@dataclass(frozen=True)
class CommandScorer:
    """A command that gets a text on its standard input, and passes it by exit status 0.

    What takes longer than `timeout_s` seconds is killed, with all that it started. `output` is the descriptor of what
    the command prints.
    """

    words: tuple[str, ...]
    timeout_s: float
    output: int = subprocess.DEVNULL

    @staticmethod
    def parse(command: str, timeout_s: float, output: int = subprocess.DEVNULL) -> CommandScorer:
        """From a command line, which no shell sees. Raises PocketdraftError where it cannot work."""
        if not 0 < timeout_s <= DAY_S:
            raise PocketdraftError(f"--score-timeout is {timeout_s:g}; give more than 0 seconds, and a day at most.")
        try:
            words = tuple(shlex.split(command))
        except ValueError as error:
            raise PocketdraftError(f"--score is {command!r} ({error}); give a command: 'python check.py'.") from error
        if not words or not shutil.which(words[0]):
            raise PocketdraftError(
                f"--score is {command!r}, and there is no such program; give a command: 'python check.py'."
            )
        return CommandScorer(words, timeout_s, output)

    def __call__(self, text: str) -> Score:
        try:
            process = subprocess.Popen(
                self.words, stdin=subprocess.PIPE, stdout=self.output, stderr=self.output, start_new_session=True
            )
        except OSError as error:
            raise PocketdraftError(
                f"The scorer {shlex.join(self.words)} cannot be started ({error.strerror}); give another command."
            ) from error
        with process:
            try:
                process.communicate(text.encode(), self.timeout_s)
            except BaseException as error:  # Ctrl-C too, which its own session keeps from it
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                return Score(False, f"no answer within {self.timeout_s:g} s")
        return Score(process.returncode == 0, f"exit status {process.returncode}")
