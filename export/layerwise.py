"""What calibration runs on: a model some modules at a time, whole texts at once, and what reaches a weight."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .backends.litert import round_trip_rows
from .models.decoder import Recurrence
from .stored import Places


class TextKV:
    """K/V of one text, all of whose T tokens are one call, before which `recurrent` layers remember nothing.

    See `models.attention.KVAccess`.
    """

    def __init__(self, tokens: int, recurrent: Mapping[int, Recurrence]) -> None:
        self.last, self.widest = torch.tensor([tokens - 1], dtype=torch.int32), tokens
        self.settled, self._recurrent = torch.zeros(1, dtype=torch.int32), recurrent
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        self._layers[layer] = key, value.transpose(2, 3)

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        """Of a layer that has not run yet: as many slots as there are tokens, and nothing in them."""
        empty = torch.empty(1, 1, int(self.last) + 1, 0)
        return self._layers.get(layer, (empty, empty.transpose(2, 3)))

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        return self.product(torch.softmax(self.product(query, keys) + mask, -1), values)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b.transpose(-1, -2)

    def memory(self, layer: int) -> tuple[Tensor, Tensor]:
        state, rows = self._recurrent[layer].shapes(back=1)
        return torch.zeros(state), torch.zeros(rows)

    def remember(self, layer: int, state: Tensor, rows: Tensor) -> None: ...

    def settle(self, position: Tensor) -> None: ...

    def keep(self, layers: set[int]) -> None:
        """Forgets all others."""
        self._layers = {layer: kept for layer, kept in self._layers.items() if layer in layers}


@contextlib.contextmanager
def loaded(places: Places, *modules: nn.Module) -> Iterator[None]:
    """The weights of linear layers and embeddings, float32 while it lasts, on the meta device again afterwards."""
    owners = [
        (module, module.weight)
        for outer in modules
        for module in outer.modules()
        if isinstance(module, nn.Linear | nn.Embedding) and module.weight.is_meta
    ]
    for module, parameter in owners:
        module.weight = nn.Parameter(places[parameter].read(), requires_grad=False)
    try:
        yield
    finally:
        for module, parameter in owners:
            module.weight = parameter


@contextlib.contextmanager
def inputs_of(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Fills with what each module was given last, before `rounded_inputs` rounds it."""
    found: dict[str, Tensor] = {}

    def listen(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        return module.register_forward_pre_hook(lambda _, given: found.update({name: given[0]}), prepend=True)

    hooks = [listen(name, module) for name, module in modules.items()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def rounded_inputs(modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Linear layers get their inputs rounded to int8, one range a row, as where their weights are quantized."""
    hooks = [
        module.register_forward_pre_hook(lambda _, given: (round_trip_rows(given[0]),))
        for module in modules.values()
        if isinstance(module, nn.Linear)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class Moments:
    """Of what reaches a weight now, X, and would reach it in the float model, Y: X^T X and (Y - X)^T X, float32."""

    hessian: Tensor
    cross: Tensor


class Recorder:
    """Moments by weight, summed over texts. Weights that are given the same tensor share them."""

    def __init__(self, rounded: Container[str]) -> None:
        """`rounded` are the weights whose inputs the runtime rounds to int8."""
        self._rounded = rounded
        self._moments: dict[str, Moments] = {}
        self._first: dict[str, str] = {}

    def __getitem__(self, weight: str) -> Moments:
        return self._moments[self._first[weight]]

    def add(self, now: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
        """Inputs by weight, [..., columns]."""
        seen: dict[int, str] = {}
        for name, given in now.items():
            first = self._first[name] = seen.setdefault(id(given), name)
            if first != name:
                continue
            x = (round_trip_rows(given) if name in self._rounded else given).reshape(-1, given.shape[-1])
            off = wanted[name].reshape(x.shape) - x
            if name not in self._moments:
                self._moments[name] = Moments(*torch.zeros(2, x.shape[1], x.shape[1]))
            self._moments[name].hessian += x.T @ x
            self._moments[name].cross += off.T @ x
