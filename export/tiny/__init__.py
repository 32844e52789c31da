"""The embedded default pair: a small, really trained Gemma 4 target and its MTP drafter. See MODEL_CARD.md."""

from pathlib import Path

HERE = Path(__file__).parent
TARGET_DIR = HERE / "target"
DRAFTER_DIR = HERE / "drafter"
EXITS_DIR = HERE / "exits"  # of the target, for the early-exit modes
PROMPTS_FILE = HERE / "prompts.jsonl"
MORE_PROMPTS_FILE = HERE / "prompts_more.jsonl"  # of domains that the embedded pair was not trained on
