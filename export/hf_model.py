"""transformers' own model of a checkpoint, with its adapters merged."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from pocketdraft.runtime.errors import PocketdraftError

from .checkpoint import Checkpoint
from .hf_compat import patch_transformers
from .models.layers import capped

TorchDevice = Literal["cpu", "cuda"]


def check_torch_device(device: TorchDevice) -> None:
    """Raises PocketdraftError where there is none such."""
    if device == "cuda" and not torch.cuda.is_available():
        raise PocketdraftError("--device is cuda, torch sees no CUDA device; give --device cpu.")


def load_model(checkpoint: Checkpoint, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """In eval mode, on the CPU. `attention` is transformers' name of an implementation: "eager", "sdpa"."""
    patch_transformers()
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        checkpoint.folder, dtype=dtype, attn_implementation=attention, experts_implementation="eager"
    ).eval()
    for name, weight in checkpoint.changed():
        path, _, leaf = name.rpartition(".")
        owner, new = model.get_submodule(path), weight.to(dtype)
        # A new parameter in the place of the old: a weight that was tied to the old one keeps its values.
        setattr(owner, leaf, nn.Parameter(new) if isinstance(getattr(owner, leaf), nn.Parameter) else new)
    return model


def text_model(model: PreTrainedModel) -> Any:
    """What a text-only or a fused target has below its head: embedding, layers and final norm."""
    return getattr(model.model, "language_model", model.model)


def softcapped(logits: Tensor, target: PreTrainedModel) -> Tensor:
    """As the target's configuration says: not at all in families without."""
    return capped(logits, getattr(text_model(target).config, "final_logit_softcapping", None))
