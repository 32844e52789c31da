"""LiteRT: steps -> float flatbuffer (litert-torch) -> quantized flatbuffer (ai-edge-quantizer).

One flatbuffer per part of the bundle, one signature per graph, weights shared between signatures.
"""

from __future__ import annotations

import re
import shutil
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor, nn

from pocketdraft.quantize.recipe import Recipe
from pocketdraft.quantize.weights import round_trip
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.manifest import SLOTS_NAME, Part

from .. import litertlm
from ..checkpoint import Checkpoint
from ..plan import Plan, Progress, Recipes
from ..staging import require_space
from ..step import Call, Plain, Step, all_weights, spec

# Google's own packages that write the file, beside torch and transformers.
VERSIONED = ("litert-torch", "ai-edge-quantizer", "litert-lm-builder")
MASKED_ON_GPU = -1e4  # far below any score, and finite in float16


def _first_slot(start: Tensor, axis: int) -> Tensor:
    """`start` as an index into a cache of four dimensions, int32 [4]."""
    zero = torch.zeros((1,), dtype=start.dtype)
    return torch.cat([start if i == axis else zero for i in range(4)])


def _update_slice(cache: Tensor, rows: Tensor, at: Tensor) -> Tensor:
    from litert_torch.generative.custom_ops import dynamic_update_slice as custom

    return custom.dynamic_update_slice(cache, rows, list(at))  # type: ignore[no-any-return]


class LiteRTOperators(Plain):
    """K/V rows by tfl.dynamic_update_slice, in place where the runtime gives input and output one buffer."""

    def write_rows(self, cache: Tensor, rows: Tensor, start: Tensor, axis: int) -> Tensor:
        return _update_slice(cache, rows, _first_slot(start, axis))

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        # A plain matmul lowers to FULLY_CONNECTED with K as its "weights", which a recipe would then quantize.
        from litert_torch.generative.custom_ops import bmm_4d as custom

        return custom.bmm_4d(a, b)  # type: ignore[no-any-return]


class GPUOperators(Plain):
    """Composites that a GPU delegate replaces by kernels of its own; a CPU runs the operators inside them.

    The kernels write and read slots [start, end) only, which LiteRT-LM tells them in `param_tensor`: start, end,
    end and four zeros. What lies beyond is whatever the GPU's memory held, hence masked by selection, not addition.
    """

    inputs = (spec(SLOTS_NAME, "int32", 1, 1, 1, 7),)

    def write(self, keys: Tensor, values: Tensor, key: Tensor, value: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        from litert_torch.backend import composite

        _, heads, slots, size = keys.shape
        attributes = {
            "kv_cache_batch_size": heads,
            "cache_size": slots,
            "head_size": size,
            "is_ring_buffer": False,
        }
        builder = composite.StableHLOCompositeBuilder("odml.cache_update", attributes)
        at_key, at_value = _first_slot(call.start, 2), _first_slot(call.start, 3)
        key, value, param, keys, values, at_key, at_value = builder.mark_inputs(
            key, value, call.asked[SLOTS_NAME], keys, values, at_key, at_value
        )
        unused = _unused(param)
        keys = _update_slice(keys, key + unused, at_key)
        values = _update_slice(values, value.transpose(2, 3) + unused, at_value)
        return builder.mark_outputs(keys, values)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, call: Call) -> Tensor:
        param = call.asked[SLOTS_NAME]
        scores = self._product(query, keys, param, over_slots=False)
        weights = torch.softmax(torch.where(mask < 0, torch.tensor(MASKED_ON_GPU), scores), -1)
        return self._product(weights, values, param, over_slots=True)

    def _product(self, a: Tensor, b: Tensor, param: Tensor, over_slots: bool) -> Tensor:
        """a @ b^T; `over_slots` says that the sum runs over the cache, else its result does."""
        from litert_torch.backend import composite
        from litert_torch.generative.custom_ops import bmm_4d as custom

        # "Global": no ring buffer, all slots are in the cache, a sliding layer's too.
        attributes = {"is_global": True, "is_src": over_slots, "rhs_cache_update": True}
        builder = composite.StableHLOCompositeBuilder("odml.runtime_bmm", attributes)
        a, b, param = builder.mark_inputs(a, b, param)
        return builder.mark_outputs(custom.bmm_4d(a, b) + _unused(param))


def _unused(param: Tensor) -> Tensor:
    """A zero that depends on `param_tensor`: a composite must use all its inputs."""
    return (param.sum() * 0).to(torch.float32)


OPERATORS = {"cpu": LiteRTOperators(), "gpu": GPUOperators()}


def write(plan: Plan, steps: list[Step], target: Checkpoint, folder: Path, progress: Progress) -> dict[str, Part]:
    """Writes `model.litertlm` into `folder`: a flatbuffer a part, tokenizer and metadata."""
    require_space(folder, 8 * sum(module.weight.numel() for module in all_weights(steps).values()))
    scratch = folder / "lowering"
    scratch.mkdir()
    parts = {}
    grouped = [(part, list(group)) for part, group in groupby(steps, key=lambda step: step.spec.part)]
    for index, (part, group) in enumerate(grouped):
        progress(f"Lowering and quantizing the {part.replace('_', ' ')}", index, len(grouped))
        float_file, parts[part] = scratch / f"{part}.float.tflite", scratch / f"{part}.tflite"
        lower(group, float_file)
        quantize(group, plan.recipes.of(part), float_file, parts[part])
        float_file.unlink()
    progress("Packing", len(grouped), len(grouped))
    chat = litertlm.ChatFile(
        tokenizer=target.tokenizer_file,
        tokens=target.tokens(),
        # LiteRT-LM verifies at full width whatever is left: keep room for a whole verify.
        max_tokens=plan.context - plan.verify[0],
        chat_template=target.chat_template(),
    )
    located = litertlm.pack(parts, chat, folder / litertlm.FILE_NAME)
    shutil.rmtree(scratch)
    return located


def lower(steps: list[Step], path: Path) -> None:
    """Converts the steps of one part to the float32 flatbuffer `path`."""
    from litert_torch._convert.interface import Converter
    from litert_torch.generative.export_hf.core.mu import mu_pass_lib

    converter = Converter()
    for step in steps:
        converter.add_signature(step.spec.name, step.module, sample_kwargs=step.sample_inputs())
    mu_pass_lib.update_model(converter.convert(strict_export=False)).export(str(path))


def quantize(steps: list[Step], recipe: Recipe, source: Path, path: Path) -> None:
    """Writes the flatbuffer `path` from the float one, each weight in the precision that the recipe gives it.

    Raises PocketdraftError where LiteRT has no kernel for a rule.
    """
    from ai_edge_quantizer.qtyping import QuantGranularity, TFLOperationName
    from ai_edge_quantizer.quantizer import Quantizer

    work = Quantizer(str(source))
    outputs = _outputs_of_weights(steps)
    quantized = False
    for name, module in all_weights(steps).items():
        rule = recipe.rule_for(name)
        if rule.dtype == "float32":
            continue
        linear = isinstance(module, nn.Linear)
        try:
            work.add_dynamic_config(
                regex="|".join([_scope(name), *(f"^{output}(;|$)" for output in outputs.get(name, ()))]),
                operation_name=TFLOperationName.FULLY_CONNECTED if linear else TFLOperationName.EMBEDDING_LOOKUP,
                num_bits=rule.bits,
                granularity=QuantGranularity[f"BLOCKWISE_{rule.block}" if rule.block else "CHANNELWISE"],
            )
        except ValueError as error:
            raise PocketdraftError(
                f"LiteRT has no kernel for {name} as {rule.dtype} in blocks of {rule.block}: {error}"
            ) from error
        quantized = True
    if quantized:
        work.quantize().export_model(str(path), overwrite=True)
    else:
        shutil.copyfile(source, path)


def quantize_steps(steps: list[Step], recipes: Recipes) -> None:
    """Makes the steps compute as the quantized graphs do, in place: weights rounded, activations as well.

    A linear operator with quantized weights gets its input quantized to int8 on the fly, one range a row.
    """
    for name, module in all_weights(steps).items():
        rule = recipes.rule_for(name)
        if rule.dtype == "float32":
            continue
        rounded = torch.from_numpy(round_trip(module.weight.detach().numpy(), rule))
        module.weight = nn.Parameter(rounded, requires_grad=False)
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs: (round_trip_rows(inputs[0]),))


def round_trip_rows(x: Tensor) -> Tensor:
    """Asymmetric int8 with one scale and zero point a row, zero exact: XNNPACK's `qd8` (its `f32-qdint8` convert)."""
    low, high = x.amin(-1, keepdim=True).clamp_max(0.0), x.amax(-1, keepdim=True).clamp_min(0.0)
    scale = ((high - low) / 255.0).clamp_min(1e-30)
    zero = torch.round(-128.0 - low / scale).clamp(-128, 127)
    return (torch.round(x / scale + zero).clamp(-128, 127) - zero) * scale


def _outputs_of_weights(steps: list[Step]) -> dict[str, list[str]]:
    """By weight, the graph outputs that are its operator's own: LiteRT names those `graph_output_output`."""
    found: dict[str, list[str]] = {}
    for step in steps:
        if step.spec.role == "prefill":  # K/V only
            continue
        made: dict[str, Tensor] = {}
        hooks = [
            module.register_forward_hook(lambda _, inputs, output, name=name, made=made: made.update({name: output}))
            for name, module in step.weights.items()
        ]
        with torch.no_grad():
            outputs = step.module(**step.sample_inputs())
        for hook in hooks:
            hook.remove()
        for name, tensor in made.items():
            names = [f"{step.spec.name}_{key}_output" for key, output in outputs.items() if output is tensor]
            found.setdefault(name, []).extend(names)
    return found


def _scope(weight: str) -> str:
    """A pattern for the operator that uses this weight.

    litert-torch names an operator's output by the modules around it, `Class_attribute/Class_attribute/...`,
    and leaves containers out: `layers.3.mlp.up_proj` -> `_3/..._mlp/..._up_proj`.
    """
    path = weight.split(".")[1:]
    return "/".join(rf"[^/;]*_{re.escape(name)}" for name in path if name != "layers") + r"(?![^/;\d])"
