"""`config.json` of a folder of trained exits."""

from __future__ import annotations

from transformers import PretrainedConfig


class ExitsConfig(PretrainedConfig):  # type: ignore[misc]
    """`cuts` ascend: an exit at n reads the hidden state after the target's first n layers.

    `hidden_size` is the target's, `intermediate_size` that of each exit's MLP.
    """

    model_type = "pocketdraft_exits"
    cuts: tuple[int, ...] | list[int] = ()
    hidden_size: int = 0
    intermediate_size: int = 0
    rms_norm_eps: float = 1e-6
