"""The embedded target, a small and really trained Gemma 4, and its drafters. See MODEL_CARD.md."""

from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
TARGET_DIR = HERE / "target"
DRAFTER_DIR = HERE / "drafter"  # MTP
DFLASH_DIR = HERE / "dflash"
MTP_HEADS_DIR = HERE / "mtp_heads"
DRAFT_MODEL_DIR = HERE / "draft_model"
EXITS_DIR = HERE / "exits"  # of the target
EMBEDDED = {
    "mtp": DRAFTER_DIR,
    "dflash": DFLASH_DIR,
    "mtp_heads": MTP_HEADS_DIR,
    "draft_model": DRAFT_MODEL_DIR,
    "early_exit": EXITS_DIR,
}
PROMPTS_FILE = HERE / "prompts.jsonl"
MORE_PROMPTS_FILE = HERE / "prompts_more.jsonl"  # of domains that the embedded pair was not trained on


def or_embedded(target: Path | None, drafters: Sequence[Path]) -> tuple[Path, tuple[Path, ...]]:
    """What was given. Without a target it is the embedded one, with its MTP drafter unless others were given: by their
    kind, or `all`."""
    if target:
        return target, tuple(drafters)
    named = [EMBEDDED.values() if str(one) == "all" else [EMBEDDED.get(str(one), one)] for one in drafters]
    return TARGET_DIR, tuple(folder for folders in named for folder in folders) or (DRAFTER_DIR,)
