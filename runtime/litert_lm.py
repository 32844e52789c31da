"""Google's LiteRT-LM on the same `.litertlm`, in a process of its own: the cross-check that we did not write.

What it does differently, and the comparison allows for: it may overshoot the budget by up to a draft, it
ends a text at a NUL byte, and it leaves a split character at the end out or as U+FFFD.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import PocketdraftError
from .manifest import Device

RESULT = "pocketdraft-result "


@dataclass(frozen=True)
class Replies:
    """`texts` by prompt; `decode_s` seconds and `tokens` of decoding by prompt, as LiteRT-LM reports them.

    `success_rate` is LiteRT-LM's own word for accepted over proposed drafts, None without speculation.
    """

    texts: tuple[str, ...]
    decode_s: tuple[float, ...]
    tokens: tuple[int, ...]
    success_rate: float | None


def installed() -> bool:
    return importlib.util.find_spec("litert_lm") is not None


def run(
    file: Path, prompts: Sequence[str], budget: int, speculate: bool, threads: int = 1, device: Device = "cpu"
) -> Replies:
    """Greedy, one session a prompt. Raises PocketdraftError if LiteRT-LM cannot open or run the file.

    A GPU computes in float32 here, to be held against the CPU; LiteRT-LM's own choice may be float16.
    """
    job = {
        "file": str(file),
        "prompts": list(prompts),
        "budget": budget,
        "speculate": speculate,
        "threads": threads,
        "device": device,
    }
    child = subprocess.run(
        [sys.executable, "-m", __name__], input=json.dumps(job), capture_output=True, text=True, errors="replace"
    )
    line = next((line for line in child.stdout.splitlines() if line.startswith(RESULT)), None)
    if line is None:
        words = (
            [text for text in child.stderr.splitlines() if "rror" in text] or child.stderr.splitlines() or ["silence"]
        )
        raise PocketdraftError(f"LiteRT-LM cannot run {file} (exit status {child.returncode}): {words[-1].strip()}")
    rates = [float(rate) for rate in re.findall(r"Success rate: ([\d.eE+-]+)", child.stderr + child.stdout)]
    found = json.loads(line.removeprefix(RESULT))
    return Replies(
        texts=tuple(found["texts"]),
        decode_s=tuple(found["decode_s"]),
        tokens=tuple(found["tokens"]),
        success_rate=sum(rates) / len(rates) if rates else None,
    )


def same_text(ours: str, theirs: str) -> bool:
    """Whether one is the other's beginning, split characters and NUL aside, and neither is empty for nothing."""
    ours, theirs = (text.partition("\0")[0].rstrip("\ufffd") for text in (ours, theirs))
    return ours.startswith(theirs) or theirs.startswith(ours)


def _child() -> None:
    import litert_lm

    job = json.load(sys.stdin)
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.INFO)
    with tempfile.TemporaryDirectory() as cache:  # else its packed weights stay in the bundle's folder
        print(f"\n{RESULT}{json.dumps(_replies(litert_lm, job, cache))}", flush=True)


def _replies(litert_lm: Any, job: dict[str, Any], cache: str) -> dict[str, Any]:
    gpu = job["device"] == "gpu"
    engine = litert_lm.Engine(
        job["file"],
        cache_dir=cache,
        backend=litert_lm.Backend.GPU() if gpu else litert_lm.Backend.CPU(thread_count=job["threads"]),
        activation_data_type=litert_lm.ActivationDataType.FLOAT32 if gpu else None,
        enable_speculative_decoding=job["speculate"],
        enable_benchmark=True,
    )
    greedy = litert_lm.SamplerConfig(top_k=1, temperature=0.0)
    texts, seconds, tokens = [], [], []
    for prompt in job["prompts"]:
        session = engine.create_session(
            apply_prompt_template=False, max_output_tokens=job["budget"], sampler_config=greedy
        )
        session.run_prefill([prompt])
        started = time.perf_counter()
        texts.append(session.run_decode().texts[0])
        seconds.append(time.perf_counter() - started)
        tokens.append(session.get_benchmark_info().last_decode_token_count)
        session.close()
    engine.close()
    return {"texts": texts, "decode_s": seconds, "tokens": tokens}


if __name__ == "__main__":
    _child()
