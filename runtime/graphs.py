"""What a bundle says of its graphs: what each is for, its tensors by name, and how K/V are laid out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from pydantic import PositiveInt

from .drafter_specs import Frozen

PRESENT = "present."  # before the name of what an ONNX graph takes and gives back: see `GraphSpec.returned`
KV_MOVER = "move_kv"  # the method of an ExecuTorch program that moves rows of K/V: sources, destinations, int64 [N]
KV_READER = "read_kv"  # the method of an ExecuTorch program that gives its K/V, in the order of `Manifest.kv_tensors`
# Of recurrent layers, in the place of K/V: see `export/models/delta_net.py`.
STATE, ROWS_KEPT, SETTLED = "kv_cache_state", "kv_cache_rows", "kv_cache_settled_0"
SLOTS_NAME = "param_tensor"  # int32 [1, 1, 1, 7] on GPU graphs: first slot, end, end and four zeros
TargetRole = Literal["prefill", "decode", "verify", "embed", "embed_per_layer", "head"]
DrafterRole = Literal[
    "draft",  # MTP's
    "dflash_context",
    "dflash_draft",
    "exit_draft",
    "exit_fill",
    "exit_head",
    "exit_verify",
    "further_exit",
    "further_head",
    "further_fill",
    "further_rest",
    "mtp_heads",
    "model_prefill",
    "model_decode",
    "model_embed",
    "model_embed_per_layer",
]
Role = TargetRole | DrafterRole
FURTHER = ("further_exit", "further_head", "further_fill", "further_rest")  # roles of graphs of exits after the first
PartName = Literal[
    "target",
    "embedder",
    "per_layer_embedder",
    "drafter",  # MTP's
    "dflash",
    "mtp_heads",
    "draft_model",
    "draft_model_embedder",
    "draft_model_per_layer_embedder",
]


class TensorSpec(Frozen):
    """A graph's input or output. Names are LiteRT-LM's on every backend (`embeddings`, `kv_cache_k_3`...).

    K/V that a drafter owns are named after it, `dflash_kv_cache_k_0`; those without are the target's.
    """

    name: str
    dtype: Literal["float32", "float16", "int32", "int8", "bool"]
    shape: tuple[int, ...]

    @property
    def is_kv(self) -> bool:
        """Whether it is kept from call to call: keys, values, and what recurrent layers have instead."""
        return "kv_cache_" in self.name

    @property
    def has_slots(self) -> bool:
        """Whether it holds keys or values by slot."""
        return "kv_cache_k_" in self.name or "kv_cache_v_" in self.name


class GraphSpec(Frozen):
    """One graph. `width` is T, the tokens per call; `part` says which section of the bundle holds it."""

    name: str
    role: Role
    part: PartName
    width: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def head(self) -> int:
        """Which of several native MTP heads it is of: K/V of its drafter's layer of that number are what it takes."""
        kv = next((tensor.name for tensor in self.inputs if tensor.is_kv), "") if self.role == "mtp_heads" else ""
        return int(kv.rpartition("_")[2] or 0)

    @property
    def family(self) -> str:
        """Graphs that differ in width only. Where widths are symbolic (ExecuTorch, ONNX), a family is one graph.

        Those of several native heads differ in their head, those of further exits in layers: each of these is alone.
        """
        if self.role in ("decode", "verify"):
            return "target"
        if self.role in FURTHER:
            return self.name
        return f"{self.role}_{self.head}" if self.head else self.role

    def returned(self, output: TensorSpec) -> str:
        """An output's name in an ONNX graph, where it cannot be called as an input: K/V, an exit's state."""
        return PRESENT + output.name if output.name in {one.name for one in self.inputs} else output.name


def keep_states(graphs: Iterable[GraphSpec]) -> bool:
    """Whether a layer of one of them is recurrent."""
    return any(STATE in tensor.name for graph in graphs for tensor in graph.inputs)


class KVSteps(NamedTuple):
    """What a level of int8 keys and values is worth."""

    keys: float
    values: float


class KVLayer(Frozen):
    """A target layer that owns keys and values. K is [1, heads, slots, head_dim], V [1, heads, head_dim, slots].

    Both are float32 if `steps` is None, else int8.

    `slots` None is one a position of the context. Else the layer is a ring: position p lies in slot p modulo
    `slots`, which are so many that no call overwrites what a later one may look back at.
    """

    layer: int
    kind: Literal["full", "sliding"]
    heads: int
    head_dim: int
    slots: PositiveInt | None = None
    steps: KVSteps | None = None
