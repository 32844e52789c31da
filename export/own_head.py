"""The native MTP head that a Qwen3.5 checkpoint brings along, as a checkpoint of its own: what `--drafter` takes.

    python -m pocketdraft.export.own_head --target QWEN --out HEAD
    pocketdraft export --target QWEN --drafter HEAD --out BUNDLE

Its weights (`mtp.*`) are copied as they lie, packed ones too. A head that was not fine-tuned along with its target may
be taken from the target's parent.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PretrainedConfig

from pocketdraft.runtime.errors import PocketdraftError

from .checkpoint import Checkpoint
from .heads import FIELDS
from .models.mtp_config import MtpHeadsConfig
from .models.qwen3_5 import MODEL_TYPES
from .staging import Kind, staged

PREFIX = "mtp."
HEAD = Kind("MTP head taken from its target", "own_head.json")


def head_config(target: PretrainedConfig) -> MtpHeadsConfig:
    """Of the text half of a Qwen3.5: a layer of gated attention."""
    config = MtpHeadsConfig(
        **{name: getattr(target, name) for name in FIELDS},
        num_mtp_layers=getattr(target, "mtp_num_hidden_layers", 1),
        attn_output_gate=True,
        zero_centred_norms=True,
    )
    config.quantization_config = getattr(target, "quantization_config", None)
    return config


def extract(target: Path, out: Path) -> None:
    """Raises PocketdraftError for a checkpoint that has no such head."""
    checkpoint = Checkpoint.open(target)
    if checkpoint.config.model_type not in MODEL_TYPES:
        raise PocketdraftError(
            f"{target} is a {checkpoint.config.model_type}, of which no head can be taken; give a Qwen3.5."
        )
    weights: dict[str, Tensor] = {}
    for path in checkpoint.files:
        with safe_open(path, "pt") as file:
            weights |= {name: file.get_tensor(name) for name in file.keys() if name.startswith(PREFIX)}  # noqa: SIM118
    if not weights:
        raise PocketdraftError(
            f"{target} has no weights {PREFIX}*: whoever saved it left its MTP head out; "
            "give the checkpoint that it was made of."
        )
    with staged(out, kind=HEAD) as folder:
        head_config(checkpoint.text_config).save_pretrained(folder)
        (folder / HEAD.mark).write_text(json.dumps({"target": checkpoint.name, "sha256": checkpoint.sha256()}))
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, required=True, help="folder of a Qwen3.5 checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    chosen = parser.parse_args()
    try:
        extract(chosen.target, chosen.out)
    except PocketdraftError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
