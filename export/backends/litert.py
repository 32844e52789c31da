"""LiteRT: steps -> flatbuffer without weights (litert-torch) -> the same, filled with quantized ones.

One flatbuffer per part of the bundle, one signature per graph, weights shared between signatures. Converted
without weights, a graph of any size takes the memory and the time of its operators alone, and one conversion
serves every recipe.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pocketdraft.quantize.recipe import Rule
from pocketdraft.quantize.weights import round_trip
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.graphs import SLOTS_NAME
from pocketdraft.runtime.manifest import Part, sha256

from .. import litertlm
from ..cache import key_of
from ..checkpoint import Checkpoint
from ..plan import Plan, Progress, Recipes
from ..quantized import Weights
from ..staging import require_space
from ..step import Call, Plain, Step, all_weights, spec
from ..tflite import fill

# Google's own packages that write the file, beside torch and transformers.
VERSIONED = ("litert-torch", "litert-converter", "litert-lm-builder")
SPARE_BYTES = 8 << 20  # for graphs, tokenizer and tables
MASKED_ON_GPU = -1e4  # far below any score, and finite in float16


def _first_slot(start: Tensor, axis: int) -> Tensor:
    """`start` as an index into a cache of four dimensions, int32 [4]."""
    zero = torch.zeros((1,), dtype=start.dtype)
    return torch.cat([start if i == axis else zero for i in range(4)])


def _update_slice(cache: Tensor, rows: Tensor, at: Tensor) -> Tensor:
    from litert_torch.generative.custom_ops import dynamic_update_slice as custom

    return custom.dynamic_update_slice(cache, rows, list(at))  # type: ignore[no-any-return]


class LiteRTOperators(Plain):
    """K/V rows by tfl.dynamic_update_slice, in place where the runtime gives input and output one buffer.

    Of a ring that holds for one row; several may wrap around, and are put among the old ones by selection.
    """

    def write_rows(self, cache: Tensor, rows: Tensor, start: Tensor, axis: int, ring: bool) -> Tensor:
        size, count = cache.shape[axis], rows.shape[axis]
        if not ring or count == 1:
            return _update_slice(cache, rows, _first_slot(torch.remainder(start, size) if ring else start, axis))
        index = torch.remainder(torch.arange(size, dtype=torch.int32) - start, size)
        spread = rows.index_select(axis, torch.minimum(index, torch.tensor(count - 1, dtype=torch.int32)))
        return torch.where((index < count).reshape([size if i == axis else 1 for i in range(4)]), spread, cache)

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


STREAMS = True
OPERATORS = {"cpu": LiteRTOperators(), "gpu": GPUOperators()}


def check_rule(name: str, module: nn.Linear | nn.Embedding, rule: Rule) -> None:
    """Raises PocketdraftError where LiteRT's CPU kernels do not take a weight quantized so."""
    blocks = ("int4", "int2") if isinstance(module, nn.Embedding) else ("int4",)
    if rule.block and rule.dtype not in ("float32", *blocks):
        raise PocketdraftError(
            f"LiteRT has no kernel for {name} as {rule.dtype} in blocks of {rule.block}; "
            "use block = 0, or dtype = 'int4'."
        )


def write(
    plan: Plan, steps: list[Step], weights: Weights, target: Checkpoint, folder: Path, progress: Progress
) -> dict[str, Part]:
    """Writes `model.litertlm` into `folder`: a flatbuffer a part, tokenizer and metadata."""
    require_space(folder, SPARE_BYTES + 2 * sum(weight.levels_bytes for weight in weights.values()))
    scratch = folder / "lowering"
    scratch.mkdir()
    parts = {}
    grouped = [(part, list(group)) for part, group in groupby(steps, key=lambda step: step.spec.part)]
    for index, (part, group) in enumerate(grouped):
        progress(f"Lowering the {part.replace('_', ' ')}", index, len(grouped))
        inputs = _weight_inputs(group)
        with plan.cache.open(_key(group), partial(lower, group)) as file:
            structure = file.read()
        parts[part] = scratch / f"{part}.tflite"
        fill(structure, {given: weights[name] for name, given in inputs.items()}, parts[part])
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
    """Converts the steps of one part to the flatbuffer `path`, whose weights are inputs: see `_weight_inputs`.

    Takes the weights out of the steps.
    """
    from litert_torch._convert.interface import Converter
    from litert_torch.generative.export_hf.core.mu import mu_pass_lib

    converter, inputs = Converter(), _weight_inputs(steps)
    # Nothing but their shape is asked of them: one number stands for all of a weight's.
    samples = {name: torch.zeros(()).expand(module.weight.shape) for name, module in all_weights(steps).items()}
    for module in all_weights(steps).values():
        module.weight = nn.Parameter(torch.empty(0), requires_grad=False)
    for step in steps:
        own = {inputs[name]: samples[name] for name in step.weights}
        converter.add_signature(step.spec.name, _WeightsGiven(step, inputs), sample_kwargs=step.sample_inputs() | own)
    mu_pass_lib.update_model(converter.convert(strict_export=False)).export(str(path))


class _WeightsGiven(nn.Module):
    """A step that takes its weights as inputs."""

    def __init__(self, step: Step, inputs: Mapping[str, str]) -> None:
        super().__init__()
        self.step = step.module
        self.paths = {f"{path}.weight": inputs[step.weight_name(path)] for path in step.weight_paths}

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        weights = {path: inputs.pop(given) for path, given in self.paths.items()}
        outputs: dict[str, Tensor] = functional_call(self.step, weights, kwargs=inputs)
        return outputs


def _weight_inputs(steps: list[Step]) -> dict[str, str]:
    """By weight, the name of the input that stands for it."""
    return {name: f"weight_{index}" for index, name in enumerate(all_weights(steps))}


def _key(steps: list[Step]) -> str:
    """Names the conversion of these steps: all that goes into it but the weights."""
    here = Path(__file__)
    sources = [
        here,
        here.parents[1] / "step.py",
        here.parents[1] / "kv_int8.py",
        *here.parents[1].glob("models/*.py"),
        *here.parents[1].glob("steps/*.py"),
    ]
    facts: list[object] = [(package, version(package)) for package in ("torch", "litert-torch", "litert-converter")]
    facts += [sha256(path) for path in sorted(sources)]
    for step in steps:
        facts.append(step.spec.model_dump_json())
        for path, module in step.module.named_modules():
            plain = {name: repr(value) for name, value in vars(module).items() if _is_plain(value)}
            facts.append((path, type(module).__qualname__, sorted(plain.items())))
        for path, tensor in (*step.module.named_parameters(), *step.module.named_buffers()):
            content = None if tensor.is_meta else hashlib.sha256(tensor.detach().numpy().tobytes()).digest()
            facts.append((path, tuple(tensor.shape), content))
    return key_of(*facts)


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, int | float | str | tuple) or dataclasses.is_dataclass(value)


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
