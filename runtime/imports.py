"""Other programs' benchmark output, read as it is: LiteRT-LM's, vLLM's and llama.cpp's.

    LiteRT-LM    the text block "BenchmarkInfo" (`litert-lm benchmark`, `litert_lm_main --benchmark`)
    vLLM         the JSON of `vllm bench serve --save-result` and of `vllm bench throughput --output-json`
    llama.cpp    `llama-bench -o json|jsonl`, `llama-batched-bench --output-format jsonl`, the server's `timings`

vLLM counts the target's own token as accepted; here it is not counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .errors import PocketdraftError
from .results import Imported, Imports

LITERT_LM = "BenchmarkInfo:"
SPEED = r"{} Turn \d+:(?: Processed (\d+) tokens)?[^\n]*\n\s*{} Speed: ([\d.]+) tokens/sec"
FIRST_TOKEN = re.compile(r"Time to first token: ([\d.]+)\s*(ms|s)?")
SUCCESS = re.compile(r"Success rate: ([\d.]+)")
ACCEPTED = re.compile(r"draft acceptance rate = [\d.]+ \(\s*(\d+) accepted /\s*(\d+) generated\)")
Json = dict[str, Any]


def read_foreign(path: Path) -> Imports:
    """Raises PocketdraftError for a file that is none of these."""
    if not path.is_file():
        raise PocketdraftError(f"There is no file {path}; give what another program's benchmark wrote.")
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        rows = tuple(_litert_lm(text) if LITERT_LM in text else _from_json(text))
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise PocketdraftError(
            f"{path} has a benchmark's form, but not its figures ({error!r}); write it anew."
        ) from error
    if not rows:
        raise PocketdraftError(
            f"{path} is no benchmark output that is known; give LiteRT-LM's BenchmarkInfo, or JSON of vLLM's "
            "`bench serve` or of llama-bench."
        )
    return Imports(source=path.name, rows=rows)


def _litert_lm(text: str) -> Iterator[Imported]:
    """A block each; runs of several prompts have several turns, whose speeds are weighted by tokens."""
    for block in text.split(LITERT_LM)[1:]:
        first, success = FIRST_TOKEN.search(block), SUCCESS.search(block)
        seconds = float(first[1]) / (1e3 if first[2] == "ms" else 1) if first else None
        yield Imported(
            tool="LiteRT-LM",
            model="",
            what="BenchmarkInfo" + (f", success rate {float(success[1]):.1%}" if success else ""),
            tokens_per_s=_speed("Decode", block),
            prefill_tokens_per_s=_speed("Prefill", block),
            first_token_s=seconds,
        )


def _speed(kind: str, block: str) -> float | None:
    turns = [(int(count or 1), float(speed)) for count, speed in re.findall(SPEED.format(kind, kind), block)]
    seconds = sum(count / speed for count, speed in turns if speed)
    return sum(count for count, _ in turns) / seconds if seconds else None


def _from_json(text: str) -> Iterator[Imported]:
    accepted = ACCEPTED.findall(text)  # a server's log, with timings among its lines or without
    for record in _records(text):
        if "output_throughput" in record or "tokens_per_second" in record:
            yield _vllm(record)
        elif "avg_ts" in record:
            yield _llama_bench(record)
        elif "speed_tg" in record:
            yield Imported(
                tool="llama.cpp",
                model=str(record.get("model", "")),
                what=f"batched-bench, {record['pp']} + {record['tg']} tokens",
                batch=int(record.get("pl", 1)),
                tokens_per_s=float(record["speed_tg"]),
                prefill_tokens_per_s=float(record["speed_pp"]) if "speed_pp" in record else None,
            )
        elif "timings" in record:
            yield _llama_server(record)
    for right, all_drafts in accepted:
        yield Imported(tool="llama.cpp", model="", what=f"server's log, {right} of {all_drafts} drafts accepted")


def _records(text: str) -> Iterator[Json]:
    """One JSON value, or one a line among others."""
    try:
        values = [json.loads(text)]
    except ValueError:
        values = []
        for line in text.splitlines():
            if line.lstrip().startswith("{"):
                try:
                    values.append(json.loads(line))
                except ValueError:
                    continue
    for value in values:
        yield from (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, dict))


def _vllm(record: Json) -> Imported:
    length, rates = record.get("spec_decode_acceptance_length"), record.get("spec_decode_per_position_acceptance_rates")
    shares = [float(rate) for rate in rates or ()]
    per_cent = 100.0 if max(shares, default=0.0) > 1 else 1.0
    rounds, drafts = record.get("spec_decode_num_drafts"), record.get("spec_decode_draft_tokens")
    first = record.get("median_ttft_ms", record.get("mean_ttft_ms"))
    speed = record.get("output_throughput", record.get("tokens_per_second"))
    return Imported(
        tool="vLLM",
        model=str(record.get("model_id", "")),
        what=f"{record['completed']} requests" if "completed" in record else "bench throughput, prompts counted in",
        batch=int(record.get("max_concurrency") or 1),
        drafts=round(drafts / rounds) if rounds and drafts else None,
        tokens_per_s=float(speed) if speed is not None else None,
        first_token_s=first / 1e3 if first is not None else None,
        accepted_per_round=length - 1 if length is not None else None,
        acceptance=tuple(share / per_cent for share in shares),
    )


def _llama_bench(record: Json) -> Imported:
    prompt, generated = int(record.get("n_prompt", 0)), int(record.get("n_gen", 0))
    speed = float(record["avg_ts"])
    return Imported(
        tool="llama.cpp",
        model=str(record.get("model_type") or Path(str(record.get("model_filename", ""))).name),
        what=f"llama-bench, {prompt} + {generated} tokens",
        tokens_per_s=speed if generated else None,
        prefill_tokens_per_s=speed if prompt and not generated else None,
    )


def _llama_server(record: Json) -> Imported:
    timings = record["timings"]
    drafts = timings.get("draft_n")
    note = f", {timings.get('draft_n_accepted')} of {drafts} drafts accepted" if drafts else ""
    return Imported(
        tool="llama.cpp",
        model=Path(str(record.get("model", ""))).name,
        what=f"server, {timings.get('predicted_n', '?')} tokens{note}",
        tokens_per_s=float(timings["predicted_per_second"]),
        prefill_tokens_per_s=timings.get("prompt_per_second"),
        first_token_s=timings["prompt_ms"] / 1e3 if "prompt_ms" in timings else None,
    )
