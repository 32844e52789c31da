"""The embedded default pair: a small, really trained Gemma 4 target and its MTP drafter. See MODEL_CARD.md.

The target has drafters of other kinds too, `EMBEDDED` by kind.
"""

from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
TARGET_DIR = HERE / "target"
DRAFTER_DIR = HERE / "drafter"
EMBEDDED = {"mtp": DRAFTER_DIR} | {kind: HERE / kind for kind in ("dflash", "mtp_heads", "draft_model")}
PROMPTS_FILE = HERE / "prompts.jsonl"
MORE_PROMPTS_FILE = HERE / "prompts_more.jsonl"  # of domains that the embedded pair was not trained on


def or_embedded(target: Path | None, drafters: Sequence[Path]) -> tuple[Path, tuple[Path, ...]]:
    """What was given. Without a target it is the embedded one, and its MTP drafter unless others were given."""
    return target or TARGET_DIR, tuple(drafters) or (() if target else (DRAFTER_DIR,))
