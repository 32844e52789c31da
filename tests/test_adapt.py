"""`pocketdraft adapt`: a drafter follows its fine-tuned target, and is never left worse than it was."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_adapter import write
from test_cli import COMMAND, names
from transformers import (
    Gemma4AssistantForCausalLM,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4VisionConfig,
)

from pocketdraft.export import adapt, course, muon
from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.distil import draft_tokens, teach, unroll
from pocketdraft.export.hf_compat import patch_for_training
from pocketdraft.export.hf_model import load_model
from pocketdraft.export.pair import check_pair
from pocketdraft.export.rungs import eager_pair
from pocketdraft.export.tiny import DRAFTER_DIR, PROMPTS_FILE, TARGET_DIR
from pocketdraft.export.written import Exam, Writer
from pocketdraft.runtime import adaptation
from pocketdraft.runtime.cache import Cache
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.proposal import Proposal
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.stats import Stats
from pocketdraft.runtime.target import Target
from pocketdraft.runtime.text import Tokenizer

FAR = float("inf")
TEXTS = [prompt.text[:60] for prompt in read_prompts(PROMPTS_FILE, per_domain=3)]
TUNED = ("layers.0.mlp.down_proj", "layers.1.self_attn.o_proj", "layers.2.mlp.down_proj", "layers.5.mlp.down_proj")


@pytest.fixture
def small(monkeypatch):
    """Texts and steps of a size for tests."""
    monkeypatch.setattr(adapt, "NEW_TOKENS", 40)
    monkeypatch.setattr(course, "ANCHORS", 30)
    monkeypatch.setattr(course, "MEASUREMENTS", 2)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f"{json.dumps({'text': text})}\n" for text in TEXTS))
    return path


@pytest.fixture
def fine_tuned(tmp_path: Path) -> Path:
    """A LoRA that changes what the embedded target says."""
    return write(tmp_path / "lora", TARGET_DIR, TUNED)


@pytest.fixture
def stale(tmp_path: Path) -> Path:
    """A drafter that no longer reads the target's hidden states well, as after a fine-tune."""
    folder = Path(shutil.copytree(DRAFTER_DIR, tmp_path / "stale"))
    weights = load_file(folder / "model.safetensors")
    noise = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    weights["pre_projection.weight"] += 1.5 * weights["pre_projection.weight"].float().std() * noise
    save_file(weights, folder / "model.safetensors")
    return folder


def tokens_of(texts: list[str], target: Path = TARGET_DIR) -> list[list[int]]:
    tokenizer = Tokenizer(target / "tokenizer.json", 2)
    return [tokenizer.encode(text) for text in texts]


def writer_of(target: Path = TARGET_DIR, context: int = 512, new_tokens: int = 128) -> Writer:
    checkpoint = Checkpoint.open(target)
    return Writer(load_model(checkpoint, torch.float32, "sdpa"), context, new_tokens, checkpoint.tokens().stop)


def run(tmp_path: Path, prompts: Path, lora=(), steps: int | None = 20, **options) -> dict:
    chosen = {"target": None, "drafter": None, "minutes": 5.0, "context": 512, "device": "cpu", "quiet": True}
    return adaptation.run(prompts=prompts, out=tmp_path / "out", lora=lora, steps=steps, **{**chosen, **options})


# --- what is measured


def loop(engine, prompts: list[list[int]], budget: int) -> tuple[Stats, list[list[int]]]:
    target, stats, texts = Target(engine), Stats(), []
    for prompt in prompts:
        session = open_session(engine, "mtp", 4, target)
        session.stats = stats
        texts.append([*prompt, *(token for emitted in session.generate(prompt, budget) for token in emitted.tokens)])
    return stats, texts


def test_acceptance_is_that_of_the_runtime_s_loop():
    """Round by round, on graphs in torch: what one pass over a text replays is what the loop does."""
    prompts = tokens_of(TEXTS)
    wanted, texts = loop(
        eager_pair(Checkpoint.open(TARGET_DIR), Checkpoint.open(DRAFTER_DIR), context=512), prompts, 64
    )
    exam = Exam.set_by(writer_of(new_tokens=64), prompts, FAR)
    found = exam.measure(load_model(Checkpoint.open(DRAFTER_DIR), torch.float32, "sdpa"), 4)
    found.check()
    assert [text.tokens.tolist() for text in exam.texts] == texts
    assert len({accepted for _, accepted in wanted.outcomes}) == 5
    assert found.outcomes == wanted.outcomes
    assert (found.emitted, found.cut) == (wanted.emitted, wanted.cut)


def test_acceptance_of_texts_that_a_stop_token_ends(tmp_path):
    """Rounds and tokens are the loop's, whatever else the checkpoint asks of transformers' generation.

    Only drafts after the stop token, of which nobody knows, are left out.
    """
    stop = (1, *tokens_of(["\n"])[0][1:], *tokens_of(["the"])[0][1:])
    shutil.copytree(TARGET_DIR, tmp_path / "target")
    (tmp_path / "target" / "generation_config.json").write_text(
        json.dumps({"eos_token_id": stop, "repetition_penalty": 1.5})
    )
    target = Checkpoint.open(tmp_path / "target")
    prompts = tokens_of(TEXTS)
    wanted, texts = loop(eager_pair(target, Checkpoint.open(DRAFTER_DIR), context=512), prompts, 64)
    exam = Exam.set_by(writer_of(tmp_path / "target", new_tokens=64), prompts, FAR)
    found = exam.measure(load_model(Checkpoint.open(DRAFTER_DIR), torch.float32, "sdpa"), 4)
    found.check()
    texts = [text for text, prompt in zip(texts, prompts, strict=True) if len(text) > len(prompt) + 1]
    assert [text.tokens.tolist() for text in exam.texts] == texts
    assert sum(text[-1] in stop for text in texts) > 3
    at_once = len(prompts) - len(texts)  # ended by a stop token at once: a round each, in which nothing is drafted
    assert (found.rounds, found.emitted) == (wanted.rounds - at_once, wanted.emitted - at_once)
    assert 0 < found.accepted <= wanted.accepted


@pytest.mark.parametrize("anchor", [20, 62, 63, 64, 90])
def test_drafts_at_any_anchor_are_those_of_the_graph(anchor):
    """Below, at and beyond the sliding window of 64 tokens."""
    (tokens,) = tokens_of([read_prompts(PROMPTS_FILE)[20].text * 3])
    engine = eager_pair(Checkpoint.open(TARGET_DIR), Checkpoint.open(DRAFTER_DIR), context=512)
    target, handle = Target(engine), engine.new_cache()
    cache = Cache(handle, 512)
    target.prefill(cache, tokens[:anchor])
    hidden = target.verify(cache, tokens[anchor], Proposal.chain([])).hidden
    cache.advance(1)
    activations = np.concatenate([target.embed(tokens[anchor + 1]), hidden[None]], -1)
    inputs = {"activations": activations, **target.positions(cache.length - 1, 1)}
    wanted = engine.run("mtp_drafter", inputs, handle)["projected_activations"]
    drafter = load_model(Checkpoint.open(DRAFTER_DIR), torch.float32, "sdpa")
    teacher = teach(writer_of().target, torch.tensor([tokens[:120]]))
    with torch.no_grad():
        (state,) = unroll(drafter, teacher, 1, torch.tensor([anchor]))
        found = drafter.post_projection(state).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("centroids", [True, False])
def test_drafts_are_those_of_transformers_head(centroids):
    drafter = load_model(Checkpoint.open(DRAFTER_DIR), torch.float32, "sdpa")
    states = torch.randn(1, 200, 64, generator=torch.Generator().manual_seed(0))
    wanted = drafter.masked_embedding(states, drafter.lm_head.weight) if centroids else drafter.lm_head(states)
    dense = drafter.lm_head(states).argmax(-1)
    if not centroids:
        drafter.masked_embedding = None
    found = draft_tokens(drafter, states)
    assert torch.equal(found, wanted.argmax(-1))
    assert torch.equal(found, dense) == (not centroids)


def test_texts_of_prompts_of_several_lengths_are_those_of_each_alone():
    writer, prompts = writer_of(new_tokens=24), [ids[: 5 + 3 * index] for index, ids in enumerate(tokens_of(TEXTS[:6]))]
    slices: list[bool] = []  # whose product with the head torch makes many times dearer
    writer.target.lm_head.register_forward_hook(lambda head, given, out: slices.append(not given[0].is_contiguous()))
    together = writer.write(prompts, 0.0, FAR)
    assert slices == [False] * 24
    alone = [writer.write([prompt], 0.0, FAR)[0] for prompt in prompts]
    assert [text.tokens.tolist() for text in together] == [text.tokens.tolist() for text in alone]
    assert [text.prompt for text in together] == [len(prompt) for prompt in prompts]


def test_a_text_does_not_outgrow_the_context():
    prompts = tokens_of(TEXTS[:2])
    texts = writer_of(context=len(prompts[0]) + 10).write(prompts, 1.0, FAR)
    assert max(len(text.tokens) for text in texts) == len(prompts[0]) + 10


def test_the_shim_for_many_queries_may_be_put_on_twice():
    patch_for_training()
    from transformers.models.gemma4 import modeling_gemma4

    once = modeling_gemma4.Gemma4TextModel._maybe_slice_kv_shared_inputs
    patch_for_training()
    twice = modeling_gemma4.Gemma4TextModel._maybe_slice_kv_shared_inputs
    assert once.__closure__ is twice.__closure__ is None


# --- what comes out


def test_an_adapted_drafter_accepts_more_and_is_a_whole_checkpoint(small, tmp_path, prompts, fine_tuned, stale):
    found = run(tmp_path, prompts, [fine_tuned], drafter=stale)
    assert found["after"]["per_round"] > found["before"]["per_round"] + 0.2
    assert found["kept_step"] > 0
    assert (found["steps"], found["prompts"], found["held_out"]) == (20, len(TEXTS), 2)
    said = json.loads((tmp_path / "out" / "adapt.json").read_text())
    assert {"out": str(tmp_path / "out"), **said} == json.loads(json.dumps(found))
    old, new = load_file(stale / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert {name: (w.dtype, w.shape) for name, w in new.items()} == {n: (w.dtype, w.shape) for n, w in old.items()}
    assert torch.equal(new["masked_embedding.token_ordering"], old["masked_embedding.token_ordering"])
    assert not torch.equal(new["masked_embedding.centroids.weight"], old["masked_embedding.centroids.weight"])
    assert not torch.equal(new["post_projection.weight"], old["post_projection.weight"])
    copied = {path.name: path.read_bytes() for path in DRAFTER_DIR.iterdir() if path.suffix != ".safetensors"}
    assert {name: (tmp_path / "out" / name).read_bytes() for name in copied} == copied
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o444 == 0o444
    check_pair(Checkpoint.open(TARGET_DIR), Checkpoint.open(tmp_path / "out"))
    # What it says of itself holds for the files, in the loop: on the prompts that were held out.
    held_out = tokens_of(TEXTS)[4::5]
    engine = eager_pair(Checkpoint.open(TARGET_DIR, [fine_tuned]), Checkpoint.open(tmp_path / "out"), context=512)
    assert round(loop(engine, held_out, 40)[0].accepted_per_round, 4) == found["after"]["per_round"]


def test_where_nothing_is_gained_the_old_weights_stay_and_it_says_so(small, tmp_path, prompts, capsys, monkeypatch):
    monkeypatch.setattr(course, "RATE", 50.0)
    found = run(tmp_path, prompts, steps=4)
    assert found["kept_step"] == 0
    assert found["after"] == found["before"]
    new = tmp_path / "out" / "model.safetensors"
    old = load_file(DRAFTER_DIR / "model.safetensors")
    assert all(torch.equal(weight, old[name]) for name, weight in load_file(new).items())
    adaptation.show(found)
    assert "none accepted more than the old weights" in capsys.readouterr().out


def test_an_earlier_step_is_kept_where_later_ones_are_worse(small, tmp_path, prompts, stale, monkeypatch):
    """The second half of the training spoils what the first has gained."""
    step = course.Optimizer.step

    def spoil(optimizer, index, done):
        step(optimizer, index, done)
        if index >= 8:
            with torch.no_grad():
                for weight in optimizer._model.parameters():
                    weight.mul_(-1.0)

    monkeypatch.setattr(course.Optimizer, "step", spoil)
    found = run(tmp_path, prompts, drafter=stale, steps=16)
    assert 0 < found["kept_step"] <= 8
    assert found["after"]["per_round"] > found["before"]["per_round"]


def test_a_rate_that_spoils_is_lowered(small, tmp_path, prompts, stale, monkeypatch):
    monkeypatch.setattr(course, "RATE", 200.0)
    monkeypatch.setattr(course, "MEASUREMENTS", 8)
    found = run(tmp_path, prompts, drafter=stale, steps=24)
    assert found["after"]["per_round"] > found["before"]["per_round"] + 0.1


def test_after_a_spoiled_step_it_goes_on_from_the_best(small, tmp_path, prompts, stale, monkeypatch):
    monkeypatch.setattr(course, "MEASUREMENTS", 8)
    monkeypatch.setattr(muon, "WARM_STEPS", 1)
    step, measured, accepted = course.Optimizer.step, course.Course._measured, []

    def spoil(optimizer, index, done):
        step(optimizer, index, done)
        if done == 0.5:
            with torch.no_grad():
                for weight in optimizer._model.parameters():
                    weight.zero_()  # nothing is learned from here: every gradient is zero

    def listen(self, index, copied):
        found = measured(self, index, copied)
        accepted.append(found.stats.accepted_per_round)
        return found

    monkeypatch.setattr(course.Optimizer, "step", spoil)
    monkeypatch.setattr(course.Course, "_measured", listen)
    run(tmp_path, prompts, drafter=stale, steps=16)
    assert accepted[5] < 0.1
    assert accepted[8] > 0.7 * accepted[4]


def test_nothing_is_learned_from_the_prompts_that_measure(tmp_path, prompts):
    """Not even from a second copy of one."""
    lines = prompts.read_text().splitlines()
    prompts.write_text("\n".join([*lines, *lines]))
    inputs = adapt.check(adapt.Task(TARGET_DIR, DRAFTER_DIR, prompts, tmp_path / "out"))
    assert inputs.held_out == tokens_of(TEXTS)[4::5]
    assert inputs.practice == [tokens for index, tokens in enumerate(tokens_of(TEXTS)) if index % 5 != 4]


def test_time_ends_the_work(small, tmp_path, prompts):
    started = time.monotonic()
    found = run(tmp_path, prompts, minutes=4 / 60, steps=None)
    assert found["steps"] > 0
    assert found["seconds"] < 8
    assert time.monotonic() - started < 15


def test_it_may_be_adapted_again_in_its_place(small, tmp_path, prompts):
    for drafter in (DRAFTER_DIR, tmp_path / "out"):
        run(tmp_path, prompts, drafter=drafter, steps=1)
    assert names(tmp_path) == ["out", "prompts.jsonl"]
    assert json.loads((tmp_path / "out" / "adapt.json").read_text())["drafter"] == "out"


def test_a_drafter_is_adapted_to_a_fused_target(small, make_pair, tmp_path, prompts):
    """`Gemma4ForConditionalGeneration`: the text model lies one level deeper, beside a vision tower."""
    pair = make_pair("shared")
    text = load_model(Checkpoint.open(pair.target), torch.float32, "sdpa")
    vision = Gemma4VisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2
    )
    fused = Gemma4ForConditionalGeneration(
        Gemma4Config(text_config=text.config, vision_config=vision, audio_config=None)
    )
    fused.model.language_model.load_state_dict(text.model.state_dict())
    fused.save_pretrained(tmp_path / "fused")
    shutil.copyfile(pair.target / "tokenizer.json", tmp_path / "fused" / "tokenizer.json")
    chosen = {"drafter": pair.drafter, "steps": 1}
    alone, beside = (run(tmp_path, prompts, target=target, **chosen) for target in (pair.target, tmp_path / "fused"))
    assert alone["before"] == beside["before"]
    assert beside["steps"] == 1


def test_a_dense_head_is_adapted_too(small, make_pair, tmp_path, prompts):
    pair = make_pair("dense")
    found = run(tmp_path, prompts, target=pair.target, drafter=pair.drafter, steps=2)
    assert found["steps"] == 2
    Gemma4AssistantForCausalLM.from_pretrained(tmp_path / "out")


# --- what is refused


def refusal(tmp_path: Path, prompts: Path, **options) -> str:
    before = names(tmp_path)
    with pytest.raises(PocketdraftError) as caught:
        run(tmp_path, prompts, **options)
    assert names(tmp_path) == before
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "prompts.jsonl holds no prompt"),
        ('{"text": "a"}\n', "prompts.jsonl holds one prompt only; give two at least"),
        ('{"text": "a"}\n{"text": "a"}\n', "prompts.jsonl holds one prompt only"),
        ('{"text": "a"}\n{"txt": "b"}\n', "prompts.jsonl line 2 is no prompt"),
        ('{"text": "a"}\n{"text": ""}\n', "The prompt is empty"),
        (
            '{"text": "a"}\n{"text": "%s"}\n' % ("word " * 500),
            "prompt 2 has 502 tokens, --context 512 has room for 496",
        ),
    ],
)
def test_prompts_that_cannot_be_used_are_named(tmp_path, prompts, content, says):
    prompts.write_text(content)
    assert says in refusal(tmp_path, prompts)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"minutes": 0.0}, "--minutes is 0"),
        ({"minutes": float("nan")}, "--minutes is nan"),
        ({"context": 4096}, "--context is 4096"),
        ({"lora": [Path("nowhere")]}, "nowhere is no adapter"),
        ({"prompts": Path("nowhere.jsonl")}, "no prompt file nowhere.jsonl"),
        ({"target": DRAFTER_DIR}, "the other way round"),
    ],
)
def test_an_option_that_cannot_be_is_named(tmp_path, prompts, options, says):
    assert says in refusal(tmp_path, **{"prompts": prompts, **options})


def test_a_drafter_of_another_target_is_refused(tmp_path, prompts, make_pair):
    assert "backbone hidden size 64, the target" in refusal(tmp_path, prompts, drafter=make_pair("dense").drafter)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused(tmp_path, prompts):
    assert "--device is cuda, torch sees no CUDA device" in refusal(tmp_path, prompts, device="cuda")


@pytest.mark.parametrize("mark", ["thesis.tex", "bundle.json"])
def test_what_is_no_adapted_drafter_is_not_overwritten(tmp_path, prompts, mark, monkeypatch):
    monkeypatch.setattr(adapt, "load_model", None)  # it is refused before any work
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / mark).write_text("mine")
    assert "out exists and is no drafter made by `pocketdraft adapt`" in refusal(tmp_path, prompts)
    assert (tmp_path / "out" / mark).read_text() == "mine"


def test_a_target_that_answers_with_a_stop_token_only_is_told(tmp_path, prompts):
    shutil.copytree(TARGET_DIR, tmp_path / "target")
    (tmp_path / "target" / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(2048))}))
    started = time.monotonic()
    assert "target wrote nothing after the prompts of" in refusal(tmp_path, prompts, target=tmp_path / "target")
    assert time.monotonic() - started < 30  # and not when the five minutes are over


# --- the command


def command(tmp_path: Path, prompts: Path, *more: str) -> list[str]:
    return [str(COMMAND), "adapt", "--prompts", str(prompts), "--out", str(tmp_path / "out"), *more]


@pytest.mark.slow
def test_json_is_one_document_and_nothing_else_is_printed(tmp_path, prompts):
    line = command(tmp_path, prompts, "--minutes", "0.1", "--steps", "1", "--json")
    done = subprocess.run(line, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["out"] == str(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["Writing text", "Training"])
def test_an_interrupted_adaptation_ends_at_once_and_leaves_nothing(tmp_path, prompts, stage):
    with subprocess.Popen(command(tmp_path, prompts, "--minutes", "0.3"), stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        assert child.stderr.readline() == "Loading torch ...\n"
        assert re.match(r"Loading the pair, about 0\.\d GB on cpu: target 0\.0 in float32", child.stderr.readline())
        while not child.stderr.readline().startswith(stage):
            assert child.poll() is None
        time.sleep(0.3)
        os.kill(child.pid, signal.SIGINT)
        rest = child.stderr.read()
        assert child.wait() == 130
    assert "Traceback" not in rest
    assert names(tmp_path) == ["prompts.jsonl"]
