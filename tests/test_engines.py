"""The contract of `runtime.engine.Engine`, held by every engine file on real graphs."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from pocketdraft.export.rungs import rungs
from pocketdraft.export.tiny import PROMPTS_FILE
from pocketdraft.runtime.cache import Cache
from pocketdraft.runtime.drafters import runnable
from pocketdraft.runtime.engine import open_engine
from pocketdraft.runtime.manifest import DELEGATION_NAME, Backend
from pocketdraft.runtime.prompts import read_prompts
from pocketdraft.runtime.proposal import NOTHING, Proposal
from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.target import Target
from pocketdraft.runtime.text import Tokenizer
from pocketdraft.runtime.validate import validate, verify_gap

TEXTS = [prompt.text[:40] for prompt in read_prompts(PROMPTS_FILE, per_domain=1)]
PROMPT = list(range(10, 40))
SLOW = pytest.mark.slow
BACKENDS = [pytest.param(name, marks=SLOW if name == "executorch" else ()) for name in get_args(Backend)]


@pytest.fixture(params=BACKENDS)
def bundle(request, make_bundle) -> Path:
    return Path(make_bundle("shared", "f32", request.param))


@pytest.fixture
def engine(bundle):
    engine = open_engine(bundle, 1)
    yield engine
    engine.close()


def generate(engine, drafter: str, prompt: list[int], budget: int = 24) -> list[int]:
    return [token for emitted in open_session(engine, drafter).generate(prompt, budget) for token in emitted.tokens]


def test_every_backend_has_an_engine_file_and_is_under_this_contract():
    package = Path(__file__).parents[1]
    for folder in (package / "runtime/engines", package / "export/backends"):
        files = {path.stem for path in folder.glob("*.py")} - {"__init__", "eager"}
        assert files == set(get_args(Backend))


def test_graphs_agree_with_transformers(bundle, engine, make_pair):
    pair = make_pair("shared")
    found = validate(bundle, engine, TEXTS, 24, rungs(engine.manifest, pair.target, [pair.drafter]), lambda what: None)
    assert list(found.ladder) == ["transformers -> step", "step -> graph"]
    assert max(row.max_error for rows in found.ladder.values() for row in rows) <= 1e-3
    assert found.passed, found.to_json()


@SLOW
@pytest.mark.parametrize("backend", ["executorch", "onnx"])
@pytest.mark.parametrize(("shape", "recipe"), [("shared", "w4"), ("dense", "mixed")])
def test_quantized_graphs_agree_with_the_quantized_steps(make_bundle, make_pair, backend, shape, recipe):
    """w8 is on the ladder of `test_every_bundle.py`."""
    pair, bundle = make_pair(shape), make_bundle(shape, recipe, backend)
    engine = open_engine(bundle, 1)
    found = validate(bundle, engine, TEXTS, 24, rungs(engine.manifest, pair.target, [pair.drafter]), lambda what: None)
    assert list(found.ladder) == ["transformers -> step", "step -> quantized step", "quantized step -> graph"]
    assert found.passed, found.to_json()
    identity = {check.name: check.outcome for check in found.checks if "vs plain" in check.name}
    assert identity == {f"{drafter} vs plain": "pass" for drafter in runnable(engine.manifest.drafters)}
    engine.close()


@pytest.mark.parametrize("drafter", ["mtp", "mtp_tree", "prompt_lookup"])
def test_drafted_tokens_are_plain_tokens(engine, drafter):
    repeated = [5, 6, 7, 8] * 6
    for prompt in (PROMPT, repeated):
        assert generate(engine, drafter, prompt) == generate(engine, "none", prompt)


def test_decoding_one_by_one_is_verifying_together(engine):
    assert verify_gap(Target(engine), PROMPT) < 1e-4


def test_what_was_refused_leaves_no_trace(engine):
    """Rollback is a smaller committed length: garbage beyond it must not show in any logit."""
    target = Target(engine)
    clean, dirty = (Cache(engine.new_cache(), target.context_length) for _ in range(2))
    for cache in (clean, dirty):
        target.prefill(cache, PROMPT[:-1])
    target.verify(dirty, PROMPT[-1], Proposal.chain([900, 901, 902, 903]))
    dirty.advance(1)
    target.verify(clean, PROMPT[-1], NOTHING)
    clean.advance(1)
    ours, theirs = (target.verify(cache, 77, NOTHING).logits for cache in (dirty, clean))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


TREE = Proposal((900, 901, 902, 903), (-1, -1, 1, 2))  # a leaf, and a chain of three beside it


@pytest.mark.parametrize("slots", [30, 47])  # of the 48 in a sliding layer's ring: the second tree goes round it
def test_a_tree_has_the_logits_of_its_paths_and_leaves_the_k_v_of_a_prefill(engine, slots):
    target, prompt = Target(engine), (PROMPT * 2)[: slots + 1]
    tree, clean = target.new_cache(), target.new_cache()
    target.prefill(tree, prompt[:-1])
    found = target.verify(tree, prompt[-1], TREE)
    target.prefill(clean, prompt[:-1])
    for path, rows in (([900], [0, 1]), ([901, 902, 903], [0, 2, 3, 4])):  # the longer one last: it is kept
        chain = target.verify(clean, prompt[-1], Proposal.chain(path))
        np.testing.assert_allclose(found.logits[rows], chain.logits, atol=3e-5)
        np.testing.assert_allclose(found.hidden[rows], chain.hidden, atol=3e-5)
    target.keep(tree, (0, 2, 3, 4))
    prefilled = target.new_cache()
    target.prefill(prefilled, [*prompt, 901, 902, 903])
    assert tree.length == prefilled.length
    ours, theirs = (target.verify(cache, 77, NOTHING).logits for cache in (tree, prefilled))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_drafter_reads_the_k_v_that_the_target_wrote(engine):
    """Another context must change the draft; the drafter has no other way to know it."""
    target, logits = Target(engine), []
    for prompt in (PROMPT, PROMPT[::-1]):
        cache = Cache(engine.new_cache(), target.context_length)
        target.prefill(cache, prompt)
        hidden = np.ones((1, 1, target.embed(5).shape[-1]), np.float32)
        inputs = {"activations": np.concatenate([target.embed(5), hidden], -1), **target.positions(cache.length - 1, 1)}
        before = engine.read_kv(cache.handle)
        logits.append(engine.run("mtp_drafter", inputs, cache.handle)["logits"])
        after = engine.read_kv(cache.handle)
        assert all((before[name] == after[name]).all() for name in before), "the drafter wrote K/V"
    assert np.abs(logits[0] - logits[1]).max() > 1e-2


def test_outputs_are_the_caller_s_to_keep(engine):
    target = Target(engine)
    cache = Cache(engine.new_cache(), target.context_length)
    first = target.verify(cache, 5, NOTHING)
    kept = first.logits.copy()
    target.verify(cache, 6, NOTHING)
    assert (first.logits == kept).all()


def test_two_sessions_at_once_do_not_see_each_other(engine):
    prompts = [PROMPT, PROMPT[::-1]]
    alone = [generate(engine, "mtp", prompt) for prompt in prompts]
    streams = [open_session(engine, "mtp").generate(prompt, 24) for prompt in prompts]
    together: list[list[int]] = [[], []]
    while streams[0] or streams[1]:
        for index, stream in enumerate(streams):
            emitted = next(stream, None) if stream else None
            if emitted is None:
                streams[index] = None
            else:
                together[index].extend(emitted.tokens)
    assert together == alone


def test_copies_of_a_prompt_s_k_v_go_on_like_the_prompt_itself_and_do_not_see_each_other(engine):
    """In turn and by rounds; where a backend cannot copy, the prompt is run again, and the same holds."""
    target, ends = Target(engine), [[40], [41, 42], [43] * 20]
    alone = [generate(engine, "mtp", PROMPT + end) for end in ends]
    prefix = target.new_cache()
    target.prefill(prefix, PROMPT)
    sessions = [open_session(engine, "mtp", target=target, cache=target.fork(prefix)) for _ in ends]
    for session, end in zip(sessions, ends, strict=True):
        session.begin(PROMPT + end, 24)
    while any(session.context.finish is None for session in sessions):
        for session in sessions:
            if session.context.finish is None:
                session.round()
    assert [session.context.tokens[len(PROMPT + end) :] for session, end in zip(sessions, ends, strict=True)] == alone
    assert prefix.length == len(PROMPT)
    assert generate(engine, "mtp", PROMPT + ends[0]) == alone[0]


def test_a_conversation_that_goes_on_has_the_logits_of_one_long_prefill(engine):
    """The first answer's last token, which ended it, is in the K/V too: LiteRT-LM#3439 leaves it out."""
    target = Target(engine)
    first = generate(engine, "mtp", PROMPT, 16)
    session = open_session(engine, "mtp", target=target, stop=(first[-1],))
    answer = [token for round_ in session.generate(PROMPT, 16) for token in round_.tokens]
    assert answer == first[: first.index(first[-1]) + 1]
    assert session.context.finish == "stop"
    conversation = [*PROMPT, *answer, 50, 51, 52, 53]
    session.begin(session.rewind(conversation), 4)
    whole = target.new_cache()
    target.prefill(whole, conversation[:-1])
    assert session.cache.length == whole.length
    ours, theirs = (target.verify(cache, 53, NOTHING).logits for cache in (session.cache, whole))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_new_session_does_not_see_one_that_has_gone(engine):
    fresh = generate(engine, "mtp", PROMPT)
    generate(engine, "mtp", PROMPT[::-1] * 2)
    gc.collect()
    assert generate(engine, "mtp", PROMPT) == fresh


def test_a_damaged_graph_is_one_sentence(bundle, tmp_path):
    """Right by its checksum, and still no graph: the interpreter's own words, not its traceback."""
    import hashlib
    import shutil

    copy = shutil.copytree(bundle, tmp_path / "copy")
    manifest = json.loads((copy / "bundle.json").read_text())
    name = next(n for n in ("model.litertlm", "model.pte", "target.onnx") if n in manifest["files"])
    data = bytearray((copy / name).read_bytes())
    start = manifest["parts"]["target"]["offset"]
    data[start : start + 4096] = bytes(4096)
    (copy / name).write_bytes(data)
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    (copy / "bundle.json").write_text(json.dumps(manifest))
    command = [Path(sys.executable).with_name("pocketdraft"), "run", copy, "--prompt", "import", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "cannot open" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc/self/statm")
def test_opened_and_closed_again_and_again_memory_does_not_grow(bundle):
    script = Path(__file__).with_name("reopen.py")
    done = subprocess.run([sys.executable, script, bundle], capture_output=True, text=True, check=True)
    early, late = json.loads(done.stdout.splitlines()[-1])
    assert late - early < 20e6, f"{(late - early) / 1e6:.0f} MB more after ten more times"


def test_onnx_graphs_are_old_enough_for_the_phone_and_share_their_weights(make_bundle):
    import onnx_ir

    bundle = make_bundle("shared", "f32", "onnx")
    for path in bundle.glob("*.onnx"):
        model = onnx_ir.load(path)
        assert model.ir_version <= 10
        assert model.graph.opset_imports[""] <= 20
        assert path.stat().st_size < 400_000, "weights inside the graph"
    assert (bundle / "target.bin").stat().st_size < 6.5e6, "weights twice: prefill's and the target's"


def test_onnx_writes_k_v_in_place_and_runs_a_norm_as_one_operator(make_bundle, tmp_path):
    """One ScatterElements from input to output, which ONNX Runtime runs in place; a transpose would copy the cache."""
    import onnx_ir
    import onnxruntime

    path = make_bundle("shared", "f32", "onnx") / "target.onnx"
    model = onnx_ir.load(path)
    given = {value.name: value for value in model.graph.inputs if value.name.startswith("kv_cache_")}
    made = {value.name.removeprefix("present."): value for value in model.graph.outputs if "kv_cache_" in value.name}
    assert made.keys() == given.keys()
    for name, value in made.items():
        writer = value.producer()
        assert (writer.op_type, writer.inputs[0].name) == ("ScatterElements", name)
        assert len(list(given[name].uses())) == 1, f"{name} is read before it is written"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    ran = {node.op_type for node in onnx_ir.load(options.optimized_model_filepath).graph}
    assert "SimplifiedLayerNormalization" in ran
    assert not ran & {"ReduceMean", "Sqrt", "Reciprocal"}


@SLOW
def test_onnx_weights_are_in_the_precision_of_the_recipe(make_bundle):
    import onnx_ir

    model = onnx_ir.load(make_bundle("shared", "w4", "onnx") / "target.onnx")
    bits = [node.attributes["bits"].as_int() for node in model.graph if node.op_type == "MatMulNBits"]
    assert (bits.count(4), bits.count(8)) == (6 * 4, 6 * 3 + 3 * 2 + 2)


@SLOW
@pytest.mark.parametrize("recipe", ["f32", "w4"])
def test_executorch_leaves_no_weights_outside_of_xnnpack_and_stores_them_once(make_bundle, recipe):
    bundle = make_bundle("shared", recipe, "executorch")
    outside = json.loads((bundle / DELEGATION_NAME).read_text())
    assert set(outside) == {"target", "prefill", "draft", "embed", "embed_per_layer", "read_kv", "move_kv"}
    names = {name for counts in outside.values() for name in counts}
    assert not any("linear" in name or "dequantize" in name or "qparams" in name for name in names)
    weights = sum(p.stat().st_size for p in make_bundle("shared", recipe, "onnx").glob("*.bin"))
    assert (bundle / "model.pte").stat().st_size < weights + 600_000


@SLOW
def test_the_three_backends_give_the_same_tokens_on_the_benchmark_s_prompts(make_trained_bundle):
    """Float32, the trained pair, 64 prompts; and drafted is plain on each of them."""
    found = {}
    for backend in get_args(Backend):
        bundle = make_trained_bundle("f32", backend)
        engine = open_engine(bundle, 1)
        tokenizer = Tokenizer(bundle / "tokenizer.json", engine.manifest.tokens.bos)
        prompts = [tokenizer.encode(prompt.text) for prompt in read_prompts(PROMPTS_FILE, 16)]
        for drafter in ("none", "mtp"):
            found[backend, drafter] = [generate(engine, drafter, prompt, 48) for prompt in prompts]
        engine.close()
    (first, *others) = found.values()
    assert len(first) == 64
    assert all(other == first for other in others)
