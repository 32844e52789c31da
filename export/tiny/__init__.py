"""The embedded target, a small and really trained Gemma 4, and its drafters. See MODEL_CARD.md."""

from pathlib import Path

HERE = Path(__file__).parent
TARGET_DIR = HERE / "target"
DRAFTER_DIR = HERE / "drafter"
MTP_HEADS_DIR = HERE / "mtp_heads"
DRAFT_MODEL_DIR = HERE / "draft_model"
PROMPTS_FILE = HERE / "prompts.jsonl"
MORE_PROMPTS_FILE = HERE / "prompts_more.jsonl"  # of domains that the embedded pair was not trained on
