"""LoRA adapters: the merged weights are PEFT's, and what cannot be merged is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import WIDTHS, Pair
from safetensors.torch import load_file, save_file
from test_traps import disagreeing
from torch import Tensor, nn
from transformers import Gemma4ForCausalLM

from pocketdraft.export.adapter import Adapter, merged
from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.families import load_target
from pocketdraft.export.hf_model import load_model
from pocketdraft.export.models.decoder import Target
from pocketdraft.export.pipeline import sources_of
from pocketdraft.export.rungs import eager_pair, find_checkpoints
from pocketdraft.export.stored import load
from pocketdraft.runtime.errors import PocketdraftError

RANK, ALPHA = 4, 12
TEXT, FUSED = "base_model.model.model.", "base_model.model.model.language_model."
QUERY, UP, GATE = "layers.1.self_attn.q_proj", "layers.4.mlp.up_proj", "layers.0.per_layer_input_gate"
LINEAR = (QUERY, UP, GATE, "per_layer_model_projection")
TOKENS = torch.arange(40, 80)[None]


def shape_of(folder: Path, module: str) -> tuple[int, int]:
    rows, columns = load_file(folder / "model.safetensors")[f"model.{module}.weight"].shape
    return rows, columns


def write(
    folder: Path, base: Path, modules=LINEAR, prefix: str = TEXT, seed: int = 0, more=None, rank=RANK, **config
) -> Path:
    """An adapter as PEFT writes it: random halves for linear `modules`, and `more` tensors by key."""
    random = torch.Generator().manual_seed(seed)
    weights = dict(more or {})
    for module in modules:
        outputs, inputs = shape_of(base, module)
        weights[f"{prefix}{module}.lora_A.weight"] = 0.1 * torch.randn(rank, inputs, generator=random)
        weights[f"{prefix}{module}.lora_B.weight"] = 0.1 * torch.randn(outputs, rank, generator=random)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "base_model_name_or_path": "google/their-base"}
    targets = sorted({module.rpartition(".")[2] for module in modules})
    (folder / "adapter_config.json").write_text(json.dumps({**fields, "target_modules": targets, **config}))
    return folder


@pytest.fixture
def base(make_pair: Callable[[str], Pair]) -> Path:
    return make_pair("shared").target


def loaded(checkpoint: Checkpoint) -> Target:
    target, places = load_target(checkpoint)
    load(places, target)
    return target


def logits_of(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def hooked(base: Path, adapter: Path, scale: float) -> nn.Module:
    """transformers' model with every W x + scale B (A x) computed as written there, nothing merged."""
    model = load_model(Checkpoint.open(base), torch.float32, "sdpa")
    weights = load_file(adapter / "adapter_model.safetensors")
    for key, a in weights.items():
        if key.endswith(".lora_A.weight"):
            b = weights[key.replace("lora_A", "lora_B")]
            module = model.get_submodule(key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
            module.register_forward_hook(lambda _, inputs, output, a=a, b=b: output + scale * inputs[0] @ a.T @ b.T)
    return model


# --- what is merged


@pytest.mark.parametrize(("options", "scale"), [({}, ALPHA / RANK), ({"use_rslora": True}, ALPHA / RANK**0.5)])
def test_logits_are_those_of_a_model_that_computes_both_paths(base, tmp_path, options, scale):
    adapter = write(tmp_path, base, **options)
    wanted = logits_of(hooked(base, adapter, scale))
    plain = logits_of(load_model(Checkpoint.open(base), torch.float32, "sdpa"))
    found = logits_of(load_model(Checkpoint.open(base, [adapter]), torch.float32, "sdpa"))
    assert (wanted - plain).abs().max() > 0.1
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


PEFT_CASES = {
    "linear": {"target_modules": "all-linear"},
    "rslora": {"target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, r".*[45]\.mlp\.up_proj": 8},
        "alpha_pattern": {"up_proj": 3},
    },
    "embedding": {"target_modules": ["embed_tokens", "embed_tokens_per_layer", "q_proj"]},
    "tied embedding": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "saved norms": {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm", "norm"]},
    "saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "saved embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", PEFT_CASES)
def test_peft_gives_the_same_logits_and_weights(base, tmp_path, case):
    """Its forward is the reference: merge_and_unload() itself is wrong where a head is tied to an embedding."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    model = Gemma4ForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, **PEFT_CASES[case]))
    for weight in model.parameters():
        if weight.requires_grad:
            nn.init.normal_(weight, 0.5 * (weight.dim() == 1), 0.1)
    model.save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(base, [tmp_path])
    assert checkpoint.adapters[0].pairs
    wanted = logits_of(model.eval())
    torch.testing.assert_close(logits_of(load_model(checkpoint, torch.float32, "sdpa")), wanted, atol=1e-4, rtol=1e-4)
    if case in ("linear", "rslora", "patterns", "saved norms", "saved head"):
        theirs = model.merge_and_unload().state_dict()
        for name, stored in checkpoint.tensors.items():
            torch.testing.assert_close(stored.read(), theirs[name], atol=1e-6, rtol=1e-6)
    exported = loaded(checkpoint)
    assert exported.lm_head.weight.equal(exported.embed_tokens.weight) == (
        case not in ("embedding", "head", "saved head", "saved embedding")
    )


def test_two_adapters_add_up(base, tmp_path):
    first, second = write(tmp_path / "a", base, seed=1), write(tmp_path / "b", base, (QUERY,), seed=2, lora_alpha=2)
    name = f"model.{QUERY}.weight"
    weight = load_file(base / "model.safetensors")[name]
    for adapter, scale in ((first, 3), (second, 0.5)):
        halves = load_file(adapter / "adapter_model.safetensors")
        weight = weight + scale * halves[f"{TEXT}{QUERY}.lora_B.weight"] @ halves[f"{TEXT}{QUERY}.lora_A.weight"]
    found = Checkpoint.open(base, [first, second]).tensors[name].read()
    torch.testing.assert_close(found, weight, atol=1e-6, rtol=1e-6)


def test_a_module_saved_whole_by_the_second_adapter_drops_what_the_first_added(base, tmp_path):
    key = f"{TEXT}{QUERY}.weight"
    whole = torch.full(shape_of(base, QUERY), 0.25)
    adapters = [write(tmp_path / "a", base), write(tmp_path / "b", base, (), more={key: whole})]
    assert Checkpoint.open(base, adapters).tensors[f"model.{QUERY}.weight"].read().equal(whole)


def test_rows_may_be_asked_for_in_pieces(base, tmp_path):
    table = {
        f"{TEXT}embed_tokens.lora_embedding_A": torch.randn(RANK, 2048),
        f"{TEXT}embed_tokens.lora_embedding_B": torch.randn(128, RANK),
        f"{TEXT}norm.weight": torch.randn(128),
    }
    adapters = [Adapter.open(write(tmp_path, base, more=table))]
    stored = load_file(base / "model.safetensors")
    for name in ("embed_tokens", UP, "norm", "layers.2.input_layernorm"):
        weight = stored[f"model.{name}.weight"]
        pieces = [slice(start, start + 50) for start in range(0, len(weight), 50)]
        found = torch.cat([merged(adapters, f"model.{name}.weight", weight[rows], rows) for rows in pieces])
        torch.testing.assert_close(found, merged(adapters, f"model.{name}.weight", weight), atol=1e-6, rtol=1e-6)
        assert found.equal(weight) == (name == "layers.2.input_layernorm")


@pytest.mark.parametrize(("stored", "prefix"), [("model.", FUSED), ("model.language_model.", TEXT)])
def test_an_adapter_of_one_layout_fits_a_checkpoint_of_the_other(base, tmp_path, stored, prefix):
    """What was trained beside a vision tower changes it too; only the text model is exported."""
    tower = {f"{prefix}vision_tower.encoder.layers.0.self_attn.q_proj.linear.lora_A.weight": torch.zeros(4, 32)}
    tower = {key.replace("language_model.", ""): tensor for key, tensor in tower.items()}
    wanted = loaded(Checkpoint.open(base, [write(tmp_path / "plain", base)])).state_dict()
    shutil.copytree(base, tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    renamed = {name.replace("model.", stored, 1): tensor for name, tensor in weights.items()}
    save_file(renamed, tmp_path / "base" / "model.safetensors")
    adapter = write(tmp_path / "adapter", base, prefix=prefix, more=tower)
    found = loaded(Checkpoint.open(tmp_path / "base", [adapter])).state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_drafter_takes_an_adapter_too(make_pair, tmp_path):
    folder = make_pair("shared").drafter
    key = "base_model.model.pre_projection.lora_{}.weight"
    halves = {key.format("A"): torch.randn(RANK, 256), key.format("B"): torch.randn(64, RANK)}
    checkpoint = Checkpoint.open(folder, [write(tmp_path, folder, (), more=halves)])
    found = checkpoint.tensors["pre_projection.weight"].read()
    wanted = (
        load_file(folder / "model.safetensors")["pre_projection.weight"]
        + 3 * halves[key.format("B")] @ halves[key.format("A")]
    )
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_graphs_with_an_adapter_agree_with_transformers(make_pair, tmp_path):
    from pocketdraft.export.reference import TransformersEngine

    pair = make_pair("shared")
    target = Checkpoint.open(pair.target, [write(tmp_path, pair.target)])
    drafter = Checkpoint.open(pair.drafter)
    ours = eager_pair(target, drafter, context=WIDTHS["context"])
    assert disagreeing(TransformersEngine(ours.manifest, target, drafter), ours) == set()
    plain = TransformersEngine(ours.manifest, Checkpoint.open(pair.target), drafter)
    assert {"decode", "verify"} <= disagreeing(plain, ours)


# --- what a bundle says of it


def test_digest_and_name_tell_adapters_apart(base, tmp_path):
    one, other = write(tmp_path / "one", base, seed=1), write(tmp_path / "other", base, seed=2)
    scaled = write(tmp_path / "scaled", base, seed=1, lora_alpha=1)
    chosen = [[], [one], [other], [scaled], [one, other], [other, one]]
    assert len({Checkpoint.open(base, adapters).sha256() for adapters in chosen}) == len(chosen)
    assert Checkpoint.open(base, [one, other]).name == "target + one + other"


def test_validate_wants_the_adapters_of_the_bundle(make_pair, tmp_path):
    pair, adapter = make_pair("shared"), write(tmp_path / "mine", make_pair("shared").target)
    target, drafter = Checkpoint.open(pair.target, [adapter]), Checkpoint.open(pair.drafter)
    manifest, drafters = SimpleNamespace(source=sources_of(target, drafter)), (pair.drafter,)
    assert find_checkpoints(manifest, pair.target, drafters, [adapter]) == (pair.target, drafters)
    assert find_checkpoints(manifest, None, ()) is None
    with pytest.raises(PocketdraftError, match=r"is not what the bundle was made of .* made of target \+ mine and"):
        find_checkpoints(manifest, pair.target, drafters)
    with pytest.raises(PocketdraftError, match="is not what the bundle was made of"):
        find_checkpoints(manifest, None, (), [adapter])


# --- what is refused


def refusal(base: Path, adapter: Path) -> str:
    with pytest.raises(PocketdraftError) as caught:
        Checkpoint.open(base, [adapter])
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"peft_type": "LOHA"}, "peft_type LOHA"),
        ({"use_dora": True}, "use_dora true, which is more than W + BA"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out true"),
        ({"bias": "lora_only"}, "bias 'lora_only'"),
        ({"lora_bias": True}, "lora_bias true"),
        ({"target_parameters": ["experts.gate_up_proj"]}, 'target_parameters ["experts.gate_up_proj"]'),
        ({"trainable_token_indices": [1]}, "trainable_token_indices [1]"),
        ({"alora_invocation_tokens": [7]}, "alora_invocation_tokens [7]"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights pissa_niter_4, which changed the base"),
        ({"r": 0}, "adapter_config.json is no adapter's configuration"),
        ({"rank_pattern": {"(": 4}}, "adapter_config.json is no adapter's configuration"),
        ({"rank_pattern": {"up_proj": 8}}, f"{UP}.lora_A.weight has shape [4, 128]"),
    ],
)
def test_an_adapter_that_is_no_plain_lora_is_named(base, tmp_path, config, says):
    assert says in refusal(base, write(tmp_path, base, **config))


def without_half(weights: dict[str, Tensor]) -> None:
    del weights[f"{TEXT}{UP}.lora_B.weight"]


def of_no_weight(weights: dict[str, Tensor]) -> None:
    for half in "AB":
        weights[f"{TEXT}layers.9.mlp.up_proj.lora_{half}.weight"] = torch.zeros(4, 4)


def saved_but_unknown(weights: dict[str, Tensor]) -> None:
    weights["base_model.model.score.weight"] = torch.zeros(2, 128)


def of_a_wider_base(weights: dict[str, Tensor]) -> None:
    weights[f"{TEXT}{UP}.lora_B.weight"] = torch.zeros(256, 4)


def not_finite(weights: dict[str, Tensor]) -> None:
    weights[f"{TEXT}{QUERY}.lora_A.weight"][1, 5] = float("nan")


def saved_infinite(weights: dict[str, Tensor]) -> None:
    weights[f"{TEXT}norm.weight"] = torch.full((128,), float("inf"))


def dora(weights: dict[str, Tensor]) -> None:
    weights[f"{TEXT}{UP}.lora_magnitude_vector"] = torch.ones(256)


def of_a_norm(weights: dict[str, Tensor]) -> None:
    for half in "AB":
        weights[f"{TEXT}norm.lora_{half}.weight"] = torch.zeros(4, 4)


def nothing_of_ours(weights: dict[str, Tensor]) -> None:
    weights.clear()
    weights["base_model.model.model.vision_tower.q_proj.lora_A.weight"] = torch.zeros(4, 4)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (without_half, f"{UP}.lora_A.weight without its other half"),
        (of_no_weight, "layers.9.mlp.up_proj.lora_A.weight matches no weight of"),
        (saved_but_unknown, "base_model.model.score.weight matches no weight of"),
        (of_a_wider_base, "lora_B.weight has shape [256, 4]"),
        (not_finite, f"{QUERY}.lora_A.weight holds NaN or infinity"),
        (saved_infinite, "norm.weight holds NaN or infinity"),
        (dora, f"{UP}.lora_magnitude_vector, which is no half of a LoRA"),
        (of_a_norm, "norm.lora_A.weight is of norm.weight, which is no matrix"),
        (nothing_of_ours, "changes nothing of the text model"),
    ],
)
def test_an_adapter_weight_that_does_not_fit_is_named(base, tmp_path, spoil, says):
    adapter = write(tmp_path, base)
    weights = load_file(adapter / "adapter_model.safetensors")
    spoil(weights)
    save_file(weights, adapter / "adapter_model.safetensors")
    assert says in refusal(base, adapter)


def test_an_adapter_of_another_base_names_both_shapes_and_the_base(make_pair, tmp_path):
    adapter = write(tmp_path, make_pair("shared").target, (QUERY,))
    message = refusal(make_pair("dense").target, adapter)
    assert "has shape [4, 128]" in message
    assert "ask for [4, 64]; give the checkpoint that it was trained on, google/their-base." in message


def damaged(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def no_weights(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")


def no_config(adapter: Path) -> None:
    (adapter / "adapter_config.json").unlink()


def no_json(adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text("{")


def no_object(adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text("[]")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (damaged, "adapter_model.safetensors is damaged"),
        (no_weights, "has no adapter_model.safetensors"),
        (no_config, "is no adapter: it has no adapter_config.json"),
        (no_json, "adapter_config.json is no adapter's configuration"),
        (no_object, "adapter_config.json is no adapter's configuration"),
    ],
)
def test_a_folder_that_is_no_adapter_is_named(base, tmp_path, spoil, says):
    adapter = write(tmp_path, base)
    spoil(adapter)
    assert says in refusal(base, adapter)
