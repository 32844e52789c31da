"""onnxruntime-genai's loop in a process of its own. Called by peers.py.

Reads a job as JSON from standard input; writes tokens, their seconds, outputs and accepted drafts a round. The first
token comes out of the prompt's prefill, so neither it nor its time counts.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai


def main() -> None:
    job = json.load(sys.stdin)
    folder, drafted = Path(job["folder"]), job["drafted"]
    names = ("mtp_decoder", "mtp_head") if drafted else ("decoder",)
    models = [onnxruntime_genai.Model(str(folder / name)) for name in names]
    seconds, outputs, accepted, rounds = 0.0, [], 0, 0
    for prompt in job["prompts"]:
        params = onnxruntime_genai.GeneratorParams(models[0])
        params.set_search_options(max_length=len(prompt) + job["budget"], do_sample=False)
        params.set_speculative_options(max_draft_tokens=job["drafts"])
        generator: Any = (onnxruntime_genai.MtpGenerator if drafted else onnxruntime_genai.Generator)(*models, params)
        generator.append_tokens(np.array(prompt, np.int32))
        started = time.perf_counter()
        while not generator.is_done():
            generator.generate_next_token()
        seconds += time.perf_counter() - started
        sequence = generator.get_sequence() if drafted else generator.get_sequence(0)
        outputs.append([int(token) for token in sequence[len(prompt) :]])
        if drafted:
            stats = generator.get_stats()
            accepted, rounds = accepted + stats["draft_tokens_accepted"], rounds + stats["rounds"]
    found = {
        "tokens": sum(map(len, outputs)) - len(outputs),
        "seconds": seconds,
        "outputs": outputs,
        "accepted": accepted / rounds if rounds else None,
    }
    print(f"\n{json.dumps(found)}")


if __name__ == "__main__":
    main()
