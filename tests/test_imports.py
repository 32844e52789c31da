"""Other programs' output, in the forms that they write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.imports import read_foreign
from pocketdraft.runtime.results import read_results, write_results

BENCHMARK_INFO = """some log line
BenchmarkInfo:
  Init Phases (Total: 1):
    - Init Total: 512.05 ms
--------------------------------------------------
  Time to first token: 0.25 s
--------------------------------------------------
  Prefill Turns (Total 1 turns):
    Prefill Turn 1: Processed 16 tokens in 100ms duration.
      Prefill Speed: 160.00 tokens/sec.
--------------------------------------------------
  Decode Turns (Total 2 turns):
    Decode Turn 1: Processed 100 tokens in 10s duration.
      Decode Speed: 10.00 tokens/sec.
    Decode Turn 2: Processed 100 tokens in 5s duration.
      Decode Speed: 20.00 tokens/sec.
"""
SERVE = {
    "model_id": "google/gemma-4-E4B-it",
    "completed": 80,
    "max_concurrency": 4,
    "output_throughput": 321.5,
    "median_ttft_ms": 45.0,
    "spec_decode_acceptance_length": 3.4,
    "spec_decode_num_drafts": 1000,
    "spec_decode_draft_tokens": 3000,
    "spec_decode_per_position_acceptance_rates": [0.9, 0.8, 0.7],
}


@pytest.fixture
def read(tmp_path: Path):
    def of(text: str):
        path = tmp_path / "foreign"
        path.write_text(text)
        return read_foreign(path).rows

    return of


def test_litert_lm_s_turns_are_put_together_by_their_tokens(read):
    (row,) = read(BENCHMARK_INFO)
    assert (row.tool, row.first_token_s, row.prefill_tokens_per_s) == ("LiteRT-LM", 0.25, 160.0)
    assert row.tokens_per_s == pytest.approx(200 / 15)


def test_vllm_s_acceptance_counts_the_target_s_token_and_ours_does_not(read):
    (row,) = read(json.dumps(SERVE))
    assert (row.tool, row.model, row.batch, row.drafts) == ("vLLM", "google/gemma-4-E4B-it", 4, 3)
    assert (row.tokens_per_s, row.first_token_s) == (321.5, 0.045)
    assert row.accepted_per_round == pytest.approx(2.4) == pytest.approx(sum(row.acceptance))


def test_shares_in_per_cent_are_read_as_shares(read):
    (row,) = read(json.dumps(SERVE | {"spec_decode_per_position_acceptance_rates": [90.0, 80.0]}))
    assert row.acceptance == (0.9, 0.8)


def test_llama_bench_tells_prompts_from_generation(read):
    rows = [
        {"model_type": "gemma4 E2B Q4_0", "n_prompt": 512, "n_gen": 0, "avg_ts": 900.0},
        {"model_type": "gemma4 E2B Q4_0", "n_prompt": 0, "n_gen": 128, "avg_ts": 42.0},
    ]
    for text in (json.dumps(rows), "\n".join(["load_backend: CPU", *map(json.dumps, rows)])):
        prompt, generation = read(text)
        assert (prompt.prefill_tokens_per_s, prompt.tokens_per_s) == (900.0, None)
        assert (generation.prefill_tokens_per_s, generation.tokens_per_s) == (None, 42.0)


def test_llama_batched_bench_has_rows(read):
    (row,) = read('main: n_kv_max = 4096\n{"pp": 512, "tg": 128, "pl": 4, "speed_pp": 585.1, "speed_tg": 21.1}\n')
    assert (row.batch, row.tokens_per_s) == (4, 21.1)


def test_a_llama_server_s_timings_and_its_log(read):
    timings = {
        "predicted_n": 60,
        "predicted_per_second": 33.0,
        "prompt_ms": 20.0,
        "draft_n": 80,
        "draft_n_accepted": 50,
    }
    (row,) = read(json.dumps({"model": "/models/gemma.gguf", "timings": timings}))
    assert (row.model, row.tokens_per_s, row.first_token_s) == ("gemma.gguf", 33.0, 0.02)
    assert "50 of 80 drafts accepted" in row.what
    (row,) = read("slot 1: draft acceptance rate = 0.57576 (  171 accepted /   297 generated)\n")
    assert "171 of 297" in row.what


@pytest.mark.parametrize("text", ["", "hello", "{}", "[1, 2]", '{"output": 3}', "\x00\xff"])
def test_what_is_no_benchmark_is_refused(read, text):
    with pytest.raises(PocketdraftError, match="is no benchmark output that is known"):
        read(text)


def test_figures_that_are_none_are_refused_by_their_file(read):
    with pytest.raises(PocketdraftError, match="foreign has a benchmark's form, but not its figures"):
        read('{"timings": {"predicted_per_second": "fast"}}')


def test_imports_are_read_back(tmp_path):
    path = tmp_path / "serve.json"
    path.write_text(json.dumps(SERVE))
    found = read_foreign(path)
    write_results(found, tmp_path / "imported.json")
    assert read_results(tmp_path / "imported.json") == found
