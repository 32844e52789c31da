"""ExecuTorch: steps -> one `.pte` whose methods share weights and K/V, delegated to XNNPACK.

K/V are mutable buffers of the program: the target's methods write them in place and the drafter's reads the very
same memory. A family of graphs is one method of symbolic width.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pocketdraft.quantize.recipe import Rule
from pocketdraft.quantize.weights import quantize
from pocketdraft.runtime.compaction import SLOT_AXES
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.graphs import KV_MOVER, KV_READER
from pocketdraft.runtime.manifest import DELEGATION_NAME, Part

from ..checkpoint import Checkpoint
from ..models.layers import GELU, RMSNorm
from ..plan import Plan, Progress, Recipes
from ..quantized import Weights
from ..step import Plain, Step, families, replace_modules, replace_weights, slots_of, width_axes

FILE_NAME = "model.pte"
# What the graph holds beside operators that cost something.
NO_KERNEL = ("getitem", "executorch_call_delegate", "sym_size", "alloc", "view_copy")
# A linear layer, or the pattern of a quantized one that no delegate has recognized.
HEAVY = ("linear", "addmm", "convolution", "torchao::dequantize_affine", "torchao::choose_qparams_affine")
VERSIONED = ("executorch", "torchao")


class InPlace(Plain):
    """K/V rows are written into the program's own buffers."""

    def write_rows(self, cache: Tensor, rows: Tensor, start: Tensor, axis: int, ring: bool) -> Tensor:
        return cache.index_copy_(axis, slots_of(cache, rows, start, axis), rows)

    def replace(self, old: Tensor, new: Tensor) -> Tensor:
        return old.copy_(new)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        # A matmul of four dimensions becomes expand, view and bmm, of which XNNPACK takes the bmm only.
        product = torch.bmm(a.reshape(a.shape[1:]), b.reshape(b.shape[1:]).transpose(1, 2))
        return product.reshape(1, *product.shape)


class DelegatedRMSNorm(nn.Module):
    """RMSNorm whose mean is a product with a constant: XNNPACK has no mean over one axis of three."""

    mean: Tensor

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        self.weight = None if norm.scale is None else nn.Parameter(norm.scale.detach(), requires_grad=False)
        self.register_buffer("mean", torch.full((1, norm.size), 1.0 / norm.size))

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(nn.functional.linear(x * x, self.mean) + self.eps)
        return x if self.weight is None else x * self.weight


class TanhGELU(nn.Module):
    """Spelled out: the delegate takes aten.gelu for the exact one, whatever its approximation (5e-4 apart)."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * (x * x * x))))


STREAMS = False
OPERATORS = {"cpu": InPlace()}


def check_rule(name: str, module: nn.Linear | nn.Embedding, rule: Rule) -> None:
    """Raises PocketdraftError where ExecuTorch's kernels do not take a weight quantized so."""
    if rule.dtype == "int2":
        raise PocketdraftError(
            f"The recipe asks for int2 in {name}, the executorch backend has int8 and int4; use dtype = 'int4'."
        )
    if isinstance(module, nn.Embedding) and rule.block:
        raise PocketdraftError(
            f"ExecuTorch's embeddings have a scale a row, the recipe asks for blocks of {rule.block} in {name}; "
            "put a rule for it with block = 0 before."
        )


def write(
    plan: Plan, steps: list[Step], weights: Weights, target: Checkpoint, folder: Path, progress: Progress
) -> dict[str, Part]:
    """Writes `model.pte` into `folder`."""
    from ..lowering import delegate, without_idle_work

    quantize_steps(steps, plan.recipes)
    # What XNNPACK computes, and computes right, in the place of norms and activations.
    replace_modules(steps, {RMSNorm: DelegatedRMSNorm, GELU: lambda _: TanhGELU()})
    chosen = families(steps)
    kv = KVBuffers(list(chosen.values()))
    programs = {}
    for index, (family, step) in enumerate(chosen.items()):
        progress(f"Tracing {family}", index, len(chosen) + 1)
        programs[family] = _trace(Method(step, kv).eval())
    mover = KVMover(kv, chosen["target"], max(plan.verify) - 1)
    rows = torch.zeros(mover.rows, dtype=torch.int64)
    programs[KV_MOVER] = torch.export.export(mover, (rows, rows.clone()), strict=False)
    programs[KV_READER] = torch.export.export(KVReader(kv), (torch.zeros(1),), strict=False)
    progress("Lowering", len(chosen), len(chosen) + 1)
    path = folder / FILE_NAME
    with without_idle_work(), path.open("wb") as file:
        edge = delegate(programs)
        outside = {name: undelegated(edge.exported_program(name)) for name in programs}
        check_delegated(outside)
        _plan_memory(edge).write_to_file(file)
    (folder / DELEGATION_NAME).write_text(json.dumps(outside, indent=1))
    size = path.stat().st_size
    return {step.spec.part: Part(file=FILE_NAME, offset=0, size=size) for step in chosen.values()}


def quantize_steps(steps: list[Step], recipes: Recipes) -> None:
    """Linear weights become torchao's tensors of our levels, in place; embeddings ExecuTorch's own operators.

    Activations of a quantized linear are int8, one range a row: XNNPACK's `qd8`, as on LiteRT.
    """
    from torchao.quantization import IntxUnpackedToInt8Tensor

    def quantized(name: str, module: nn.Linear | nn.Embedding) -> nn.Module:
        rule = recipes.rule_for(name)
        if rule.dtype == "float32":
            return module
        if isinstance(module, nn.Embedding):
            return QuantizedEmbedding(module.weight, rule)
        levels, scales = quantize(module.weight.detach().numpy(), rule)
        weight = IntxUnpackedToInt8Tensor(
            qdata=torch.from_numpy(levels).reshape(module.weight.shape),
            scale=torch.from_numpy(scales),
            zero_point=torch.zeros(scales.shape, dtype=torch.int8),
            target_dtype=getattr(torch, rule.dtype),
            block_size=(1, levels.shape[2]),
            dtype=torch.float32,
            activation_quantization="int8_asym_per_token",
        )
        module.weight = nn.Parameter(weight, requires_grad=False)
        return module

    replace_weights(steps, quantized)


class QuantizedEmbedding(nn.Module):
    """`quantized_decomposed::embedding_byte` or `embedding_4bit`: they need no fusion pass."""

    def __init__(self, weight: Tensor, rule: Rule) -> None:
        import executorch.exir.passes._quant_patterns_and_replacements  # noqa: F401 (registers the operators)

        super().__init__()
        levels, scales = quantize(weight.detach().numpy(), rule)
        self.bits = rule.bits
        flat = torch.from_numpy(levels).reshape(weight.shape)
        if self.bits == 4:
            shifted = (flat + 8).view(torch.uint8)
            flat = (shifted[:, 0::2] << 4) | shifted[:, 1::2]
        self.register_buffer("levels", flat)
        self.register_buffer("scales", torch.from_numpy(scales).squeeze(1))

    def forward(self, tokens: Tensor) -> Tensor:
        operators, tokens = torch.ops.quantized_decomposed, tokens.to(torch.int64)
        if self.bits == 8:
            return operators.embedding_byte.dtype(
                self.levels, self.scales, None, -128, 127, tokens, dtype=torch.float32
            )
        return operators.embedding_4bit.dtype(self.levels, self.scales, None, -8, 7, tokens, dtype=torch.float32)


class KVBuffers(nn.Module):
    """K/V of all steps, those of one name once, in the order of `Manifest.kv_tensors`."""

    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        for step in steps:
            samples = step.sample_inputs()
            for tensor in step.spec.inputs:
                if tensor.is_kv and not hasattr(self, tensor.name):
                    self.register_buffer(tensor.name, samples[tensor.name])


class KVReader(nn.Module):
    """All K/V, for the parity ladder; a phone never loads it."""

    def __init__(self, kv: KVBuffers) -> None:
        super().__init__()
        self.kv = kv

    def forward(self, zero: Tensor) -> tuple[Tensor, ...]:
        return tuple(buffer + zero.to(buffer.dtype) for buffer in self.kv.buffers())


class KVMover(nn.Module):
    """Moves so many rows of the target's K/V; see `runtime.engine.Engine.compact`."""

    def __init__(self, kv: KVBuffers, target: Step, rows: int) -> None:
        super().__init__()
        self.kv, self.rows = kv, rows
        names = [tensor.name for tensor in target.spec.inputs if tensor.has_slots]
        self.axes = {name: SLOT_AXES[name.rpartition("_")[0]] for name in names}

    def forward(self, sources: Tensor, places: Tensor) -> Tensor:
        for name, axis in self.axes.items():
            buffer = getattr(self.kv, name)
            slots = buffer.shape[axis]
            moved = buffer.index_select(axis, sources % slots)
            buffer.index_copy_(axis, places % slots, moved)
        return sources + 0  # a method must give something


class Method(nn.Module):
    """A step over the program's buffers: neither takes nor gives K/V."""

    def __init__(self, step: Step, kv: KVBuffers) -> None:
        super().__init__()
        self.step, self.spec = step.module, step.spec
        self.given = {
            tensor.name: axis
            for tensor, axis in zip(step.spec.inputs, width_axes(step), strict=True)
            if not tensor.is_kv
        }
        self.samples = tuple(step.sample_inputs()[name] for name in self.given)
        if any(tensor.is_kv for tensor in step.spec.inputs):
            self.kv = kv

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        feed = dict(zip(self.given, tensors, strict=True))
        feed |= {tensor.name: getattr(self.kv, tensor.name) for tensor in self.spec.inputs if tensor.is_kv}
        outputs = self.step(**feed)
        made = tuple(outputs[tensor.name] for tensor in self.spec.outputs if not tensor.is_kv)
        return made or (feed["input_pos"] + 0,)  # a method must give something


def _trace(method: Method) -> torch.export.ExportedProgram:
    symbolic = any(axis is not None for axis in method.given.values())
    width = torch.export.Dim("tokens", min=2, max=method.spec.width) if symbolic else None
    shapes = tuple({} if axis is None else {axis: width} for axis in method.given.values())
    with torch.no_grad():
        return torch.export.export(
            method,
            method.samples,
            dynamic_shapes=(shapes,),
            strict=False,
            # Whether a reshape copies is not to be decided for all widths beforehand.
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def _plan_memory(edge: Any) -> Any:
    from executorch.exir import ExecutorchBackendConfig
    from executorch.exir.passes import MemoryPlanningPass

    config = ExecutorchBackendConfig(
        memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False, share_mutable_buffers=True),
        emit_mutable_buffer_names=True,
        run_reinplace_pass=True,
        extract_delegate_segments=True,
        # Constant propagation would fold the K/V that the drafter only reads into zeros, without a word.
        do_quant_fusion_and_const_prop=False,
    )
    return edge.to_executorch(config)


def undelegated(program: torch.export.ExportedProgram) -> dict[str, int]:
    """Operators that ExecuTorch's portable kernels will run, most frequent first."""
    targets = (node.target for node in program.graph.nodes if node.op == "call_function")
    names = Counter(str(getattr(target, "_name", getattr(target, "__name__", target))) for target in targets)
    found = {name.removeprefix("aten::").partition(".")[0]: count for name, count in names.most_common()}
    return {name: count for name, count in found.items() if name not in NO_KERNEL}


def check_delegated(outside: Mapping[str, Mapping[str, int]]) -> None:
    """Refuses a program whose weights would be multiplied by a portable kernel: correct, and hopelessly slow."""
    for method, counts in outside.items():
        slow = next((name for name in counts if name in HEAVY), None)
        if slow:
            raise PocketdraftError(
                f"XNNPACK does not take {counts[slow]} of {slow} in the method {method}; "
                "choose another precision or block for its weights in the recipe."
            )
