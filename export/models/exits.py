"""Early exits of a target: what it would say after its first n layers.

The first n layers and an exit draft for the rest (LayerSkip, arXiv 2404.16710), or a token leaves at the first exit
that is sure (CALM, arXiv 2207.07061). The target stays as it is: an exit takes the hidden state of a middle layer to
where the final norm and the head can read it. A checkpoint trained to be left anywhere, as LayerSkip's are, needs none:
there `exits` is None below. Letters in shapes are those of `gemma4.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pocketdraft.runtime.errors import PocketdraftError

from .decoder import Geometry, Target
from .exits_config import ExitsConfig
from .layers import GELU, GatedMLP, RMSNorm, capped


class Row(nn.Module):
    """A linear layer of one output [1, T, D] -> [1, T], spelled out: LiteRT transposes one row by a reshape, which no
    kernel does in int8. No recipe sees it, and a row is not worth quantizing."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, hidden))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).sum(-1)


class Exit(nn.Module):
    """One exit: a feed-forward block of the target's form, and CALM's classifier."""

    def __init__(self, hidden: int, intermediate: int, eps: float) -> None:
        super().__init__()
        self.norm = RMSNorm(hidden, eps)
        self.mlp = GatedMLP(hidden, intermediate, GELU())
        self.classifier = Row(hidden)
        self.classifier_bias = nn.Parameter(torch.empty(1))

    def forward(self, state: Tensor) -> Tensor:
        """The hidden state after n layers [1, T, D] -> the state for the target's final norm [1, T, D]."""
        return state + self.mlp(self.norm(state))  # type: ignore[no-any-return]

    def score(self, state: Tensor) -> Tensor:
        """The hidden state after n layers [1, T, D] -> [1, T], the logit of "my token is the last layer's"."""
        return self.classifier(self.norm(state)) + self.classifier_bias  # type: ignore[no-any-return]


class Exits(nn.Module):
    """The exits of a target by the layers before them: `exits["3"]` follows its first three."""

    def __init__(self, config: ExitsConfig) -> None:
        super().__init__()
        self.config, self.cuts = config, tuple(config.cuts)
        self.exits = nn.ModuleDict(
            {str(cut): Exit(config.hidden_size, config.intermediate_size, config.rms_norm_eps) for cut in self.cuts}
        )

    def after(self, layers: int) -> Exit:
        """Raises PocketdraftError where none was trained."""
        if layers not in self.cuts:
            trained = ", ".join(map(str, self.cuts))
            raise PocketdraftError(f"There is no exit after layer {layers}; exits were trained after {trained}.")
        return self.exits[str(layers)]  # type: ignore[return-value]


def exit_logits(target: Target, exits: Exits | None, layers: int, state: Tensor) -> Tensor:
    """The hidden state after the first `layers` layers [1, T, D] -> logits [1, T, V], after the softcap."""
    if exits is not None:
        state = exits.after(layers)(state)
    return capped(target.lm_head(target.trunk.norm(state)), target.geometry.softcap)


def check_exits(config: ExitsConfig, target: Geometry) -> None:
    """Raises PocketdraftError where the exits are not of a target of this shape."""
    last = len(target.layers) - 1
    if config.hidden_size != target.hidden:
        raise PocketdraftError(
            f"The exits have hidden size {config.hidden_size}, the target {target.hidden}; give exits of this target."
        )
    cuts = list(config.cuts)
    if not cuts or cuts != sorted(set(cuts)) or cuts[0] < 1 or cuts[-1] > last:
        raise PocketdraftError(
            f"The exits lie after layers {cuts}, the target's may lie after 1 to {last}, in ascending order; "
            "give exits of this target."
        )
