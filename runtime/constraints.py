"""Output that matches a JSON schema, a regular expression or a grammar, through llguidance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .errors import PocketdraftError
from .manifest import TOKENIZER_NAME, Manifest
from .sampling import Logits

Kind = Literal["json-schema", "regex", "grammar"]
Allowed = npt.NDArray[np.bool_]
# Between the elements of JSON: nothing, a space, or a line's end and some indent. JSON allows any number of blanks,
# which a small model that has begun with them would go on to write until its budget is gone.
BLANKS = r"( |\n {0,24})?"
REMEMBERED = 64  # allowed tokens of so many last positions; a round looks back by its drafts only


class Grammars:
    """Compiles grammars for the tokens of one bundle. Takes a second for a vocabulary of 262,144."""

    def __init__(self, tokenizer: Path, vocab_size: int, stop: Sequence[int]) -> None:
        """`tokenizer` is a `tokenizer.json`. Any of the `stop` tokens ends an output that is complete."""
        try:
            from llguidance import LLTokenizer
        except ModuleNotFoundError as error:
            mend = "pip install 'pocketdraft[serve]'"
            raise PocketdraftError(f"A constraint needs {error.name}, which is not installed: {mend}.") from error
        if not stop:
            raise PocketdraftError(
                "The bundle has no stop token, a constrained output ends with one; export it from a checkpoint "
                "whose generation_config.json has eos_token_id."
            )
        try:
            self._tokenizer = LLTokenizer(tokenizer.read_text(encoding="utf-8"), vocab_size, list(stop))
        except ValueError as error:
            raise PocketdraftError(f"{tokenizer} cannot be constrained: {_sentence(str(error))}.") from error
        self._size, self._stop = vocab_size, tuple(stop)

    def compile(self, kind: Kind, source: str) -> Grammar:
        """`source` is a schema's JSON, a pattern of Rust's regex crate without anchors, or a Lark grammar (an EBNF).

        The whole output matches it. Raises PocketdraftError.
        """
        from llguidance import LLMatcher

        translate = {
            "json-schema": _json_grammar,
            "regex": LLMatcher.grammar_from_regex,
            "grammar": LLMatcher.grammar_from_lark,
        }
        matcher = LLMatcher(self._tokenizer, translate[kind](source), log_level=0)
        first = matcher.deep_copy()
        first.compute_bitmask()  # finds, without words, that no text matches
        if first.is_error():
            message = _sentence(first.get_error())
            why = "no text matches" if message in ("", "NoExtensionBias") else message
            raise PocketdraftError(f"The {kind} cannot be used: {why}.")
        return Grammar(matcher, self._size, self._stop)


def open_grammars(folder: Path, manifest: Manifest) -> Grammars:
    """For the tokens of a bundle."""
    return Grammars(folder / TOKENIZER_NAME, manifest.vocab_size, manifest.tokens.stop)


class Grammar:
    """A compiled grammar; outputs have a constraint each."""

    def __init__(self, matcher: Any, vocab_size: int, stop: tuple[int, ...]) -> None:
        self._matcher, self._size, self._stop = matcher, vocab_size, stop

    def after(self, start: int) -> Constraint:
        """For the output that begins at index `start` of the history: after a prompt of so many tokens."""
        return Constraint(self._matcher.deep_copy(), self._size, self._stop, start)


class Constraint:
    """A logits processor: what cannot go on to match is never drawn, and a stop token only where all has matched.

    A pure function of the history, as every processor: it keeps one matcher, and takes it back to where a history
    parts from the one before. What was allowed at the last positions is remembered, so that a target that walks the
    drafter's path computes nothing again, and a round takes one computation a position. After a stop token only stop
    tokens are allowed: drafts beyond the end are refused, and cut with everything else that follows it.
    """

    def __init__(self, matcher: Any, vocab_size: int, stop: tuple[int, ...], start: int) -> None:
        self._matcher, self._stop, self._start = matcher, stop, start
        self._ended: Allowed = np.isin(np.arange(vocab_size), stop)
        self._path: list[int] = []  # what the matcher has consumed
        self._known: dict[int, Allowed] = {}  # allowed tokens after so many of the path

    def __call__(self, logits: Logits, history: Sequence[int]) -> Logits:
        return np.where(self.allowed(history[self._start :]), logits, -np.inf)

    def allowed(self, output: Sequence[int]) -> Allowed:
        """bool [V]: which tokens may follow `output`, the history after the prompt."""
        path = list(output)
        if any(token in path for token in self._stop):
            return self._ended
        common = min(len(path), len(self._path))
        while path[:common] != self._path[:common]:
            common -= 1
        if common < len(path) or common not in self._known:
            self._go_to(path, common)
        return self._known[len(path)]

    def _go_to(self, path: list[int], common: int) -> None:
        self._matcher.rollback(len(self._path) - common)
        for position in [known for known in self._known if known > common]:
            del self._known[position]
        if not self._matcher.consume_tokens(path[common:]):
            raise PocketdraftError(f"The output does not match the grammar: {_sentence(self._matcher.get_error())}.")
        self._path = path
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise PocketdraftError(f"The grammar takes too much to follow: {_sentence(self._matcher.get_error())}.")
        self._known[len(path)] = np.unpackbits(bits, count=len(self._ended), bitorder="little").view(np.bool_)
        while len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]


class LogitBias:
    """A logits processor: adds to some tokens' logits. -inf bans a token."""

    def __init__(self, bias: Mapping[int, float], vocab_size: int) -> None:
        unknown = next((token for token in bias if not 0 <= token < vocab_size), None)
        if unknown is not None:
            raise PocketdraftError(f"The logit bias names token {unknown}, the vocabulary has {vocab_size}; leave it.")
        wrong = next((token for token, value in bias.items() if not value < np.inf), None)
        if wrong is not None:
            raise PocketdraftError(
                f"The logit bias of token {wrong} is {bias[wrong]}; give a number, or -inf for never."
            )
        self._tokens, self._values = np.array([*bias], np.intp), np.array([*bias.values()], np.float64)

    def __call__(self, logits: Logits, history: Sequence[int]) -> Logits:
        scores = logits.astype(np.float64)
        scores[self._tokens] += self._values
        return scores


def _json_grammar(source: str) -> str:
    from llguidance import LLMatcher

    try:
        schema = json.loads(source)
    except ValueError as error:
        raise PocketdraftError(f"The json-schema is no JSON: {error}; mend it.") from error
    if not isinstance(schema, dict):
        raise PocketdraftError(f"The json-schema is {source.strip()}; give an object, like {{}} for any JSON.")
    return LLMatcher.grammar_from_json_schema(source, {"whitespace_pattern": BLANKS})


def _sentence(message: str) -> str:
    """The first paragraph of a parser's message, without its dump of states."""
    words = message.split("<state>")[0].split()
    return " ".join(words).rstrip(".")
