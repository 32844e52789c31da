"""Random pairs of a given width, for what depends on size and not on weights."""

from __future__ import annotations

from pathlib import Path

from pocketdraft.export.tiny import TARGET_DIR, configs


def random_pair(folder: Path, hidden: int) -> tuple[Path, Path]:
    """Checkpoints of the trained pair's shape, but `hidden` wide; made once.

    640, 1024 and 1536 give 47, 119 and 265 million parameters outside the embeddings.
    """
    folders = folder / "target", folder / "drafter"
    if not folders[1].exists():
        target = configs.target_config()
        target.hidden_size, target.intermediate_size, target.num_attention_heads = hidden, 4 * hidden, 8
        target.sliding_window = 256
        drafter = configs.drafter_config(target, centroids=True, hidden=256)
        for model, path in zip(configs.random_pair(target, drafter, seed=0), folders, strict=True):
            model.save_pretrained(path)
            (path / "tokenizer.json").write_bytes((TARGET_DIR / "tokenizer.json").read_bytes())
    return folders
