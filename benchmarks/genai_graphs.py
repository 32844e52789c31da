"""The pair as onnxruntime-genai runs models: folders `decoder`, `mtp_decoder` and `mtp_head`.

Its model builder knows no per-layer embeddings and no KV sharing, so the graphs are this project's steps behind the
tensors that it feeds a decoder: token ids, positions, and K/V of a fixed length in one buffer as input and output.

Its MTP head sees tokens, hidden states and a cache of its own, which the prompt never enters, but no K/V of the target.
Gemma 4's drafter reads nothing else, so the K/V travels inside the hidden state: [h, position, K/V of the two layers].
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pocketdraft.export.backends.onnx import OPSET, quantize_steps
from pocketdraft.export.checkpoint import Checkpoint
from pocketdraft.export.kv_layout import KVLayout
from pocketdraft.export.pipeline import load_models
from pocketdraft.export.plan import Recipes
from pocketdraft.export.step import Plain, Step
from pocketdraft.export.steps.mtp import mtp_step
from pocketdraft.export.steps.target import embedder_steps, target_steps

CONFIG = "genai_config.json"
HIDDEN, HEAD_HIDDEN = "hidden_states", "hidden_states_out"


class Rows(Plain):
    """V is written as [1, G, S, d], so that its transposes cancel out."""

    def write_rows(self, cache: Tensor, rows: Tensor, start: Tensor, axis: int, ring: bool) -> Tensor:
        if axis == 2:
            return super().write_rows(cache, rows, start, 2, ring)
        return super().write_rows(cache.transpose(2, 3), rows.transpose(2, 3), start, 2, ring).transpose(2, 3)


def swap(name: str, tensor: Tensor) -> Tensor:
    """K as it is; V transposed, as it is in the steps and is not in onnxruntime-genai."""
    return tensor.transpose(2, 3) if "_v_" in name else tensor


class Decoder(nn.Module):
    """input_ids and position_ids [1, T], K and V [1, G, S, d] -> logits, K and V.

    With names of K/V to be `carried`, also hidden states [1, T, D + 1 + their elements], and logits in another form.
    """

    def __init__(self, target: Step, embedders: Sequence[Step], carried: Sequence[str]) -> None:
        super().__init__()
        names = {"embed": "embeddings", "embed_per_layer": "per_layer_embeddings"}
        self.target, self.carried = target.module, carried
        self.embedders = nn.ModuleDict({names[step.spec.role]: step.module for step in embedders})
        self.kv = [tensor.name for tensor in target.spec.inputs if tensor.is_kv]

    def forward(self, input_ids: Tensor, position_ids: Tensor, kv: list[Tensor]) -> tuple[Tensor, ...]:
        positions = position_ids[0].int()
        mask = torch.arange(kv[0].shape[2]) <= positions[:, None]
        embedded = {name: module(token_ids=input_ids.int())["embeddings"] for name, module in self.embedders.items()}
        cache = {name: swap(name, tensor) for name, tensor in zip(self.kv, kv, strict=True)}
        outputs = self.target(**embedded, input_pos=positions, mask=mask[None, None], **cache)
        present = [swap(name, outputs[name]) for name in self.kv]
        logits = outputs["logits"]
        if not self.carried:
            return logits, *present
        # MtpGenerator 0.18.0 fails on float32 logits without a GPU; as differences, float16 keeps the argmax.
        logits = (logits - logits.amax(-1, keepdim=True)).half()
        row = torch.cat([outputs[name].reshape(1, 1, -1) for name in self.carried], -1)
        rows = row.expand(1, input_ids.shape[1], -1)
        return logits, *present, torch.cat([outputs["activations"], positions.float()[None, :, None], rows], -1)


class Head(nn.Module):
    """input_ids [1, T] and hidden states [1, T, ...] -> logits and hidden states of the last one, T times."""

    def __init__(self, draft: Step, embedder: Step, hidden: int) -> None:
        super().__init__()
        self.draft, self.embedder, self.hidden = draft.module, embedder.module, hidden
        self.kv = {tensor.name: tensor.shape for tensor in draft.spec.inputs if tensor.is_kv}
        self.sizes = [math.prod(shape) for shape in self.kv.values()]

    def forward(self, input_ids: Tensor, hidden_states: Tensor) -> tuple[Tensor, ...]:
        last = hidden_states[:, -1:]
        state, position, *kv = last.split([self.hidden, 1, *self.sizes], -1)
        position = position.reshape(1).int()
        cache = {name: part.reshape(shape) for part, (name, shape) in zip(kv, self.kv.items(), strict=True)}
        context = next(iter(self.kv.values()))[2]
        outputs = self.draft(
            activations=torch.cat([self.embedder(token_ids=input_ids[:, -1:].int())["embeddings"], state], -1),
            input_pos=position,
            mask=(torch.arange(context) <= position)[None, None, None],
            **cache,
        )
        follows = torch.cat([outputs["projected_activations"], last[..., self.hidden :]], -1)
        width = input_ids.shape[1]
        return outputs["logits"].expand(1, width, -1), follows.expand(1, width, -1)


def written(folder: Path) -> bool:
    return (folder / "mtp_head" / CONFIG).exists()


def write_graphs(files: tuple[Checkpoint, Checkpoint], recipes: Recipes, context: int, folder: Path) -> None:
    models = load_models(*files)
    geometry = models.target.geometry
    layout = KVLayout.of(geometry, context)
    target = next(s for s in target_steps(models.target, layout, (), (2,), Rows()) if s.spec.role == "verify")
    embedders = embedder_steps(models.target)
    head = "centroid" if models.drafters["mtp"].has_centroids else "dense"
    draft = mtp_step(models.drafters["mtp"], geometry, layout, head, "pending", Plain())
    quantize_steps([target, draft, *embedders], recipes)

    carried = [tensor.name for tensor in draft.spec.inputs if tensor.is_kv]
    mtp_head = Head(draft, embedders[0], geometry.hidden)
    width = geometry.hidden + 1 + sum(mtp_head.sizes)
    ids, positions = torch.zeros(1, 3, dtype=torch.int64), torch.arange(3)[None]
    kv, past, present = [], [], []
    for layer in layout.layers:
        for kind in ("key", "value"):
            kv.append(torch.zeros(1, layer.heads, context, layer.head_dim))
            past.append(f"past_key_values.{layer.layer}.{kind}")
            present.append(f"present.{layer.layer}.{kind}")
    arguments, inputs, outputs = (ids, positions, kv), ["input_ids", "position_ids", *past], ["logits", *present]
    export(Decoder(target, embedders, ()), arguments, inputs, outputs, folder / "decoder")
    export(Decoder(target, embedders, carried), arguments, inputs, [*outputs, HIDDEN], folder / "mtp_decoder")
    arguments, inputs = (ids, torch.zeros(1, 3, width)), ["input_ids", HIDDEN]
    export(mtp_head, arguments, inputs, ["logits", HEAD_HIDDEN], folder / "mtp_head")

    config = model_config(files[0], layout, width)
    save_config(config, folder / "decoder")
    save_config(config, folder / "mtp_decoder", outputs={HIDDEN: HIDDEN})
    save_config(config, folder / "mtp_head", inputs={HIDDEN: HIDDEN}, outputs={HIDDEN: HEAD_HIDDEN})


def export(module: nn.Module, arguments: tuple[Any, ...], inputs: list[str], outputs: list[str], folder: Path) -> None:
    """Axis 1 of an argument counts tokens; a list's tensors have fixed shapes."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = torch.export.Dim("tokens", min=2)
    program = torch.onnx.export(
        module.eval(),
        arguments,
        dynamo=True,
        opset_version=OPSET,
        input_names=inputs,
        output_names=outputs,
        dynamic_shapes=tuple({1: tokens} if isinstance(one, Tensor) else [None] * len(one) for one in arguments),
        verbose=False,
    )
    assert program is not None
    program.save(folder / "model.onnx", external_data=True)


def model_config(target: Checkpoint, layout: KVLayout, hidden: int) -> dict[str, Any]:
    """`genai_config.json` but for the hidden states. K/V shapes and layers are read off the graph's inputs."""
    text, tokens = target.text_config, target.tokens()
    decoder = {
        "filename": "model.onnx",
        "session_options": {"intra_op_num_threads": 1},
        "hidden_size": hidden,
        "num_attention_heads": text.num_attention_heads,
        "num_hidden_layers": len(layout.layers),
        "num_key_value_heads": layout.layers[0].heads,
        "head_size": layout.layers[0].head_dim,
    }
    return {
        "type": "gemma4_text",
        "bos_token_id": tokens.bos,
        "eos_token_id": list(tokens.stop),
        "pad_token_id": text.pad_token_id,
        "vocab_size": text.vocab_size,
        "context_length": layout.context,
        "decoder": decoder,
    }


def save_config(
    config: dict[str, Any], folder: Path, inputs: dict[str, str] | None = None, outputs: dict[str, str] | None = None
) -> None:
    decoder = config["decoder"] | {"inputs": inputs or {}, "outputs": outputs or {}}
    model = config | {"decoder": decoder}
    if outputs:
        model["mtp"] = {"main_hidden_states": HIDDEN, "outputs": {HIDDEN: HEAD_HIDDEN}}
    search = {"do_sample": False, "max_length": config["context_length"], "past_present_share_buffer": True}
    (folder / CONFIG).write_text(json.dumps({"model": model, "search": search}, indent=1))
