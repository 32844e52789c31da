"""What the graphs know of a target, whatever its family: its geometry, its trunk, its head and its tables.

A family adds decoder layers of its own. Parameters have the checkpoint's names, so that loading is a rename of
prefixes. Letters in shapes: T tokens of a call, S cache slots, D hidden size, L layers, P per-layer embedding size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig

from pocketdraft.runtime.errors import PocketdraftError

from .attention import KVAccess, rotary
from .layers import RMSNorm, linear
from .masks import Kind, additive_masks, held_positions


@dataclass(frozen=True)
class Recurrence:
    """What a recurrent layer keeps instead of K/V: a state [heads, value_dim, key_dim], and `row` numbers of each of
    the last tokens, of which its convolution looks `before` tokens back. See `delta_net.py`."""

    heads: int
    key_dim: int
    value_dim: int
    row: int
    before: int

    def shapes(self, back: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the state and of the rows that are kept, if `back` tokens can be taken back."""
        return (1, self.heads, self.value_dim, self.key_dim), (1, back + self.before, self.row)


@dataclass(frozen=True)
class Layer:
    """Geometry of one decoder layer. It attends over the K/V of target layer `reads`: its own or an earlier one's.

    A recurrent layer has none, whatever its kind: `recurrence` is what it has.
    """

    kind: Kind
    owns_kv: bool
    reads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    v_is_k: bool = False
    recurrence: Recurrence | None = None


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """All that the graphs need of a model's configuration. `window` is of sliding layers: 0 where there are none."""

    vocab: int
    hidden: int
    heads: int
    layers: tuple[Layer, ...]
    eps: float
    rope: Mapping[Kind, tuple[float, float]]  # kind -> (theta, rotated fraction of the head)
    window: int = 0
    per_layer: int = 0
    softcap: float | None = None
    embedding_scale: float = 1.0
    tied_head: bool = True  # to the embedding, unless a checkpoint has a head of its own
    zero_centred: bool = False  # norms: see `RMSNorm`

    @property
    def recurrent(self) -> dict[int, Recurrence]:
        """By layer."""
        return {index: layer.recurrence for index, layer in enumerate(self.layers) if layer.recurrence}

    def last_owner(self, kind: Kind) -> int:
        """The layer whose K/V the KV-shared layers of this kind, and the drafter, read.

        Raises PocketdraftError where there is none.
        """
        owners = [index for index, layer in enumerate(self.layers) if layer.owns_kv and layer.kind == kind]
        if not owners:
            raise PocketdraftError(
                f"The drafter reads K/V of a {kind} layer, the target has none; give a drafter that was trained for it."
            )
        return owners[-1]


def check_choices(config: PretrainedConfig, choices: Iterable[tuple[str, object, object]]) -> None:
    """Raises PocketdraftError for what the graphs do not cover: `choices` are what a configuration may choose, its
    choice, and the only one that the graphs have."""
    for what, value, covered in choices:
        if value != covered:
            raise PocketdraftError(
                f"The checkpoint has {what} {value}, the graphs of a {config.model_type} have {covered}; "
                "give a checkpoint of that kind."
            )


class Trunk(nn.Module):
    """Decoder layers and the final norm: embeddings [1, T, D] -> hidden state after the final norm [1, T, D]."""

    def __init__(self, geometry: Geometry, layers: Iterable[nn.Module]) -> None:
        """A layer is called with the hidden state, what `given` gives it, and K/V."""
        super().__init__()
        self.geometry = geometry
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(geometry.hidden, geometry.eps, zero_centred=geometry.zero_centred)

    def forward(self, x: Tensor, per_layer: Tensor | None, positions: Tensor, mask: Tensor, kv: KVAccess) -> Tensor:
        return self.norm(self.states(x, per_layer, positions, mask, kv)[-1])  # type: ignore[no-any-return]

    def states(
        self,
        embeddings: Tensor,
        per_layer: Tensor | None,
        positions: Tensor,
        mask: Tensor,
        kv: KVAccess,
        layers: range | None = None,
        state: Tensor | None = None,
    ) -> list[Tensor]:
        """The hidden state [1, T, D] after each of `layers`, all unless told otherwise. They start from `state`, which
        is the embeddings unless other layers ran before."""
        layers = layers or range(len(self.layers))
        x, found = embeddings if state is None else state, []
        given = self.given(embeddings, per_layer, positions, mask, kv, layers)
        for index in layers:
            x = self.layers[index](x, *given[index], kv)
            found.append(x)
        return found

    def fill(self, state: Tensor, positions: Tensor, kv: KVAccess, layers: Iterable[int]) -> None:
        """Writes the K/V of `layers`, which own theirs, as if each were given `state` [1, T, D]. None of them runs."""
        ropes = self._ropes(positions)
        for index in layers:
            layer: Any = self.layers[index]
            layer.self_attn.remember(layer.input_layernorm(state), ropes[self.geometry.layers[index].kind], kv)

    @property
    def preparing(self) -> list[nn.Module]:
        """The modules with linear weights that `given` runs."""
        return []

    def given(
        self,
        x: Tensor,
        per_layer: Tensor | None,
        positions: Tensor,
        mask: Tensor,
        kv: KVAccess,
        layers: range | None = None,
    ) -> list[tuple[Any, ...]]:
        """What each layer takes besides the hidden state: RoPE (cos and sin, [T, d]) and its additive mask.

        `mask` is the runtime's, bool [1, 1, T, context]; `per_layer`, [1, T, L, P], is for families that have it.
        `layers` are those that the call runs, whose K/V `kv` has.
        """
        g = self.geometry
        run = [g.layers[index] for index in layers or range(len(g.layers))]
        sliding = next((layer.reads for layer in run if layer.kind == "sliding"), None)
        slots = mask.shape[-1] if sliding is None else kv.read(sliding)[0].shape[2]
        masks = additive_masks(mask, positions, g.window, held_positions(slots, mask.shape[-1], kv.last))
        ropes = self._ropes(positions)
        return [(ropes[layer.kind], masks[layer.kind]) for layer in g.layers]

    def _ropes(self, positions: Tensor) -> dict[Kind, tuple[Tensor, Tensor]]:
        sizes = {layer.kind: layer.head_dim for layer in self.geometry.layers}
        return {kind: rotary(size, *self.geometry.rope[kind], positions) for kind, size in sizes.items()}


class Target(nn.Module):
    """The target: trunk, head and embedding tables, which ship as graphs of their own."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        geometry = trunk.geometry
        self.geometry = geometry
        self.trunk = trunk
        self.embed_tokens = nn.Embedding(geometry.vocab, geometry.hidden)
        self.lm_head = linear(geometry.hidden, geometry.vocab)
        if geometry.per_layer:
            self.embed_tokens_per_layer = nn.Embedding(geometry.vocab, len(geometry.layers) * geometry.per_layer)

    @property
    def tied(self) -> dict[str, str]:
        """Parameters that a checkpoint may leave out, by those that they share."""
        return {"lm_head.weight": "embed_tokens.weight"} if self.geometry.tied_head else {}
