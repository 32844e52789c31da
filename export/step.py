"""A step: one graph before lowering, with names, shapes and dtypes of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pocketdraft.runtime.graphs import ROWS_KEPT, SETTLED, STATE, GraphSpec, TensorSpec

ROWS = ("activations", "taps", "exit_states")  # inputs [1, T, size] that graphs before have made
DTYPES = {"float32": torch.float32, "int32": torch.int32, "int8": torch.int8, "bool": torch.bool}


@dataclass(frozen=True)
class Call:
    """What operators know of the call: its first position, int32 [1], and the inputs that they asked for."""

    start: Tensor
    context: int
    asked: Mapping[str, Tensor]


class Operators(Protocol):
    """What a backend computes in its own way. The defaults in plain torch are `Plain`.

    G KV heads, T tokens of the call, S cache slots, d head size, R query rows under a KV head.
    """

    inputs: tuple[TensorSpec, ...]
    """What every graph that touches K/V takes besides."""

    def write(self, keys: Tensor, values: Tensor, key: Tensor, value: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        """K [1, G, S, d] and V [1, G, d, S] with new rows, [1, G, T, d] each, from the call's first position on."""

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, call: Call) -> Tensor:
        """softmax(query @ K + mask) @ V: query and result are [1, G, R, d], the additive mask is [1, 1, R, S]."""

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """a @ b^T over the last two of four dimensions."""

    def replace(self, old: Tensor, new: Tensor) -> Tensor:
        """What a sequence keeps, anew as a whole."""


class Plain:
    """A backend overrides what it must: the whole of `write` or `attend`, or the one operator they are made of."""

    inputs: tuple[TensorSpec, ...] = ()

    def write(self, keys: Tensor, values: Tensor, key: Tensor, value: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        ring = keys.shape[2] < call.context
        return (
            self.write_rows(keys, key, call.start, 2, ring),
            self.write_rows(values, value.transpose(2, 3), call.start, 3, ring),
        )

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, call: Call) -> Tensor:
        return self.product(torch.softmax(self.product(query, keys) + mask, -1), values)

    def write_rows(self, cache: Tensor, rows: Tensor, start: Tensor, axis: int, ring: bool) -> Tensor:
        """The cache with `rows` along `axis` from position `start` (int32 [1]) on, in the slots of `slots_of`."""
        return cache.index_copy(axis, slots_of(cache, rows, start, axis), rows)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """a @ b^T over the last two dimensions."""
        return a @ b.transpose(-1, -2)

    def replace(self, old: Tensor, new: Tensor) -> Tensor:
        return new


def slots_of(cache: Tensor, rows: Tensor, start: Tensor, axis: int) -> Tensor:
    """Where rows of consecutive positions go, int64 [T]: a cache shorter than the context is a ring."""
    return (start.to(torch.int64) + torch.arange(rows.shape[axis])) % cache.shape[axis]


@dataclass(frozen=True)
class Step:
    """`module(**inputs) -> outputs by name`. Inputs and outputs are listed in `spec`."""

    spec: GraphSpec
    module: nn.Module

    @property
    def weights(self) -> dict[str, nn.Linear | nn.Embedding]:
        """What a recipe may quantize, by the name that recipes use."""
        return {self.weight_name(path): module for path, module in self._weights()}

    @property
    def weight_paths(self) -> list[str]:
        """The module paths of `weights`; two that have one name share it."""
        return [path for path, _ in self._weights()]

    def weight_name(self, path: str) -> str:
        """`part.path`, the trunk's prefix left out."""
        return f"{self.spec.part}.{path.removeprefix('trunk.')}"

    def _weights(self) -> Iterator[tuple[str, nn.Linear | nn.Embedding]]:
        for path, module in self.module.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                yield path, module

    def sample_inputs(self) -> dict[str, Tensor]:
        return {t.name: torch.zeros(t.shape, dtype=DTYPES[t.dtype]) for t in self.spec.inputs}


def all_weights(steps: list[Step]) -> dict[str, nn.Linear | nn.Embedding]:
    """The weights of several steps, shared ones once."""
    return {name: module for step in steps for name, module in step.weights.items()}


def replace_weights(steps: list[Step], make: Callable[[str, nn.Linear | nn.Embedding], nn.Module]) -> None:
    """Puts `make(name, module)` in the place of each weight's module; steps that shared one share the new one."""
    made: dict[str, nn.Module] = {}
    for step in steps:
        for path, module in list(step._weights()):
            name = step.weight_name(path)
            if name not in made:
                made[name] = make(name, module)
            step.module.set_submodule(path, made[name])


def replace_modules(steps: list[Step], make: Mapping[type[nn.Module], Callable[[Any], nn.Module]]) -> None:
    """Puts `make[kind](module)` in the place of each module of that kind, in place."""
    for step in steps:
        for path, module in list(step.module.named_modules()):
            if type(module) in make:
                step.module.set_submodule(path, make[type(module)](module))


class Positional(nn.Module):
    """A step for exporters that take no keywords: tensors in the order of the spec, in and out."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step.module
        self._inputs = [tensor.name for tensor in step.spec.inputs]
        self._outputs = [tensor.name for tensor in step.spec.outputs]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs = self.step(**dict(zip(self._inputs, tensors, strict=True)))
        return tuple(outputs[name] for name in self._outputs)


def families(steps: list[Step]) -> dict[str, Step]:
    """The widest step of each family, for backends whose graphs take any width."""
    by_width = sorted(steps, key=lambda step: step.spec.width)
    return {step.spec.family: step for step in by_width}


def width_axes(step: Step) -> list[int | None]:
    """For each input, the axis that counts the call's tokens: it may be symbolic. None where there is none."""
    fixed = step.spec.width == 1
    axes = {"input_pos": 0, "mask": 2} | dict.fromkeys(("embeddings", "per_layer_embeddings", *ROWS), 1)
    return [None if fixed else axes.get(tensor.name) for tensor in step.spec.inputs]


class StepKV:
    """K/V of one call as functional tensors: every write gives a new tensor, which is a graph output."""

    def __init__(
        self,
        tensors: dict[str, Tensor],
        start: Tensor,
        last: Tensor,
        context: int,
        operators: Operators,
        owner: str = "",
        widest: int = 0,
    ) -> None:
        """`tensors` are K/V, whose names start with `owner`, and what the operators asked for. `last` (int32 [1]) is
        the last position in K/V, `widest` the most tokens of a call."""
        self.last, self.widest, self._owner = last, widest, owner
        asked = {tensor.name: tensors[tensor.name] for tensor in operators.inputs}
        self.tensors = {name: tensor for name, tensor in tensors.items() if name not in asked}
        self._call, self._operators = Call(start, context, asked), operators

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        keys, values = self._operators.write(*self.read(layer), key, value, self._call)
        self.put(layer, keys, values)

    def put(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """The layer's whole K and V anew."""
        self.tensors |= {f"{self._owner}kv_cache_k_{layer}": keys, f"{self._owner}kv_cache_v_{layer}": values}

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        return self.tensors[f"{self._owner}kv_cache_k_{layer}"], self.tensors[f"{self._owner}kv_cache_v_{layer}"]

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        return self._operators.attend(query, keys, values, mask, self._call)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        return self._operators.product(a, b)

    @property
    def settled(self) -> Tensor:
        return self.tensors[f"{self._owner}{SETTLED}"]

    def settle(self, position: Tensor) -> None:
        self._replace(SETTLED, position)

    def memory(self, layer: int) -> tuple[Tensor, Tensor]:
        return self.tensors[f"{self._owner}{STATE}_{layer}"], self.tensors[f"{self._owner}{ROWS_KEPT}_{layer}"]

    def remember(self, layer: int, state: Tensor, rows: Tensor) -> None:
        self._replace(f"{STATE}_{layer}", state)
        self._replace(f"{ROWS_KEPT}_{layer}", rows)

    def _replace(self, name: str, new: Tensor) -> None:
        name = f"{self._owner}{name}"
        self.tensors |= {name: self._operators.replace(self.tensors[name], new)}


def spec(name: str, dtype: str, *shape: int) -> TensorSpec:
    return TensorSpec.model_validate({"name": name, "dtype": dtype, "shape": shape})
