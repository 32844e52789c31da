"""What a constraint costs by library: time to compile, time of a step (one token consumed, one mask), steps back.

    pip install llguidance==1.9.1 outlines-core==0.2.14 xgrammar==0.2.8
    python benchmarks/constraints.py [--rounds 20]

Each library follows the same text of a grammar, at the embedded vocabulary and at 262,144 tokens, which is Gemma's
number: the embedded ones, and more that are two to four of them joined. A step's time depends on the place in the
grammar, so the median, the 99th percentile and the largest are told. One thread. The last line is JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from pocketdraft.export.tiny import TARGET_DIR

STOP, BACK = 1, 4
LIMIT_S = 150
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "size": {"type": "integer", "minimum": 0, "maximum": 999999},
        "kind": {"enum": ["file", "folder", None]},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 8},
        "owner": {
            "type": "object",
            "properties": {"id": {"type": "integer"}, "mail": {"type": "string", "pattern": "^[a-z]+@[a-z]+[.]org$"}},
            "required": ["id", "mail"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "size", "kind", "tags", "owner"],
    "additionalProperties": False,
}
VALUE = {
    "name": "the structure of the error message",
    "size": 1234,
    "kind": "folder",
    "tags": ["import", "return", "value"],
    "owner": {"id": 17, "mail": "someone@example.org"},
}
LARK = 'start: sum\nsum: term (("+"|"-") term)*\nterm: atom (("*"|"/") atom)*\natom: /[0-9]+/ | "(" sum ")"'
EBNF = (
    'root ::= sum\nsum ::= term (("+" | "-") term)*\nterm ::= atom (("*" | "/") atom)*\natom ::= [0-9]+ | "(" sum ")"'
)
CASES = {
    "JSON schema": (json.dumps(SCHEMA), json.dumps(VALUE)),
    "any JSON": ('{"type": "object"}', json.dumps(VALUE)),
    "regex": (r"[A-Za-z]{1,20}( [a-z]{1,20}){0,12}\.", "The value of the argument is the name of a function."),
    "grammar": (LARK, "(12+34)*(5-(6/7))*890"),
}


class Matcher(Protocol):
    def consume(self, token: int) -> None: ...
    def mask(self) -> None: ...
    def back(self, count: int) -> None: ...


Compile = Callable[[str, str], Callable[[], Matcher]]  # case and source -> a new matcher


@dataclass
class LLGuidance:
    matcher: Any

    def consume(self, token: int) -> None:
        assert self.matcher.consume_token(token)

    def mask(self) -> None:
        self.matcher.compute_bitmask()

    def back(self, count: int) -> None:
        self.matcher.rollback(count)


def llguidance(path: Path, tokens: list[bytes]) -> Compile:
    from llguidance import LLMatcher, LLTokenizer

    vocabulary = LLTokenizer(path.read_text(), len(tokens), [STOP])
    translate = {"regex": LLMatcher.grammar_from_regex, "grammar": LLMatcher.grammar_from_lark}

    def compile(case: str, source: str) -> Callable[[], Matcher]:
        matcher = LLMatcher(vocabulary, translate.get(case, LLMatcher.grammar_from_json_schema)(source), log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        return lambda: LLGuidance(matcher.deep_copy())

    return compile


@dataclass
class XGrammar:
    matcher: Any
    bits: np.ndarray

    def consume(self, token: int) -> None:
        assert self.matcher.accept_token(token)

    def mask(self) -> None:
        self.matcher.fill_next_token_bitmask(self.bits)

    def back(self, count: int) -> None:
        self.matcher.rollback(count)


def xgrammar(path: Path, tokens: list[bytes]) -> Compile:
    from xgrammar import GrammarCompiler, GrammarMatcher, TokenizerInfo

    info = TokenizerInfo(tokens, stop_token_ids=[STOP])
    bits = np.zeros((1, -(-len(tokens) // 32)), np.int32)

    def compile(case: str, source: str) -> Callable[[], Matcher]:
        compiler = GrammarCompiler(info, max_threads=1, cache_enabled=False)
        if case == "grammar":
            compiled = compiler.compile_grammar(EBNF)
        else:
            compiled = (compiler.compile_regex if case == "regex" else compiler.compile_json_schema)(source)
        return lambda: XGrammar(GrammarMatcher(compiled), bits)

    return compile


@dataclass
class OutlinesCore:
    guide: Any
    bits: np.ndarray

    def consume(self, token: int) -> None:
        self.guide.advance(token, return_tokens=False)

    def mask(self) -> None:
        self.guide.write_mask_into(self.bits.ctypes.data, self.bits.size, 4)

    def back(self, count: int) -> None:
        self.guide.rollback_state(count)


def outlines_core(path: Path, tokens: list[bytes]) -> Compile:
    from outlines_core import Guide, Index, Vocabulary
    from outlines_core.json_schema import build_regex_from_schema

    ids: dict[bytes, list[int]] = {}
    for token, spelled in enumerate(tokens):
        if token != STOP and spelled:
            ids.setdefault(spelled, []).append(token)
    vocabulary = Vocabulary(STOP, ids)
    bits = np.zeros(-(-len(tokens) // 32), np.int32)

    def compile(case: str, source: str) -> Callable[[], Matcher]:
        if case == "grammar":
            raise NotImplementedError("takes regular languages only")
        index = Index(source if case == "regex" else build_regex_from_schema(source), vocabulary)
        return lambda: OutlinesCore(Guide(index, BACK), bits)

    return compile


LIBRARIES = {"llguidance": llguidance, "xgrammar": xgrammar, "outlines-core": outlines_core}


def enlarged(folder: Path, size: int) -> tuple[Path, list[bytes]]:
    """`tokenizer.json` with `size` tokens, and the bytes of each; none of special ones."""
    data = json.loads((TARGET_DIR / "tokenizer.json").read_text())
    vocabulary, random = data["model"]["vocab"], np.random.default_rng(0)
    special = {entry["content"] for entry in data["added_tokens"]}
    words = sorted(set(vocabulary) - special)
    while len(vocabulary) < size:
        joined = "".join(random.choice(words) for _ in range(random.integers(2, 5)))
        vocabulary.setdefault(joined, len(vocabulary))
    path = folder / f"tokenizer-{size}.json"
    path.write_text(json.dumps(data))
    letters = {letter: byte for byte, letter in enumerate(_byte_letters())}
    spelled = {token: b"" if one in special else bytes(letters[c] for c in one) for one, token in vocabulary.items()}
    return path, [spelled[token] for token in range(len(vocabulary))]


def _byte_letters() -> list[str]:
    """By which byte-level BPE writes each byte (GPT-2's table)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def measure(new: Callable[[], Matcher], text: list[int], rounds: int) -> dict[str, float]:
    """Microseconds. A round follows the text once; `back` is four tokens taken back and one mask."""
    steps, backs = [], []
    for _ in range(rounds):
        matcher = new()
        for place, token in enumerate(text):
            started = time.perf_counter()
            matcher.mask()
            matcher.consume(token)
            steps.append(time.perf_counter() - started)
            if place == len(text) // 2:
                started = time.perf_counter()
                matcher.back(BACK)
                matcher.mask()
                backs.append(time.perf_counter() - started)
                for again in text[place + 1 - BACK : place + 1]:
                    matcher.consume(again)
    micro = np.array(steps) * 1e6
    found = {"median": np.median(micro), "p99": np.percentile(micro, 99), "largest": micro.max()}
    return {name: round(float(value), 1) for name, value in (found | {"back": np.median(backs) * 1e6}).items()}


def one(library: str, size: int, rounds: int) -> Iterator[dict[str, Any]]:
    """All cases of a library, in a process of its own, so that one's memory and threads are not another's."""
    folder = Path("build")
    folder.mkdir(exist_ok=True)
    path, tokens = enlarged(folder, size)
    encode = Tokenizer.from_file(str(TARGET_DIR / "tokenizer.json")).encode
    started = time.perf_counter()
    compile = LIBRARIES[library](path, tokens)
    opened = {"library": library, "tokens": size, "open_s": round(time.perf_counter() - started, 3)}
    for case, (source, text) in CASES.items():
        started = time.perf_counter()
        try:
            new = compile(case, source)
            ids = encode(text, add_special_tokens=False).ids
            compiled = {"compile_s": round(time.perf_counter() - started, 4)}
            yield opened | {"case": case} | compiled | measure(new, ids, rounds)
        except Exception as error:
            yield opened | {"case": case, "refused": " ".join(str(error).split())[:120]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--one", nargs=2, metavar=("LIBRARY", "TOKENS"), help=argparse.SUPPRESS)
    said = parser.parse_args()
    if said.one:
        for row in one(said.one[0], int(said.one[1]), said.rounds):
            print(json.dumps(row), flush=True)
        return
    rows = []
    print("| library | tokens | open s | case | compile s | step µs: median | 99% | largest | back and mask µs |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for size in (2048, 262144):
        for library in LIBRARIES:
            command = [sys.executable, __file__, "--rounds", str(said.rounds), "--one", library, str(size)]
            try:
                done = subprocess.run(command, capture_output=True, timeout=LIMIT_S, check=True).stdout
            except subprocess.TimeoutExpired as late:
                done = late.stdout or b""
                print(f"| {library} | {size:,} | | the other cases: not compiled in {LIMIT_S} s |")
            for row in map(json.loads, done.splitlines()):
                names = ("compile_s", "median", "p99", "largest", "back")
                cells = [row["refused"]] if "refused" in row else [f"{row[name]:,}" for name in names]
                print(f"| {library} | {size:,} | {row['open_s']} | {row['case']} | {' | '.join(cells)} |")
                rows.append(row)
    torch = {name: _imports_torch(name) for name in LIBRARIES}
    print(json.dumps({"rows": rows, "imports_torch": torch}))


def _imports_torch(library: str) -> bool:
    name = importlib.import_module(library.replace("-", "_")).__name__
    code = f"import sys, {name}; print('torch' in sys.modules)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "True"


if __name__ == "__main__":
    main()
