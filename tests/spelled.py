"""Small tokenizers, and an engine whose logits are drawn by the tokens before: for whatever looks at the text."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from sampled import TableEngine
from scripted import VOCABULARY, scripted_manifest
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as HFTokenizer

from pocketdraft.runtime.manifest import Tokens

# The scripted engine's twelve tokens, for grammars: pieces of JSON that overlap, and the stop token last.
PIECES = ("a", "b", "ab", "{", "}", '"', ":", "1", ",", '{"', '":')
STOP = len(PIECES)
assert VOCABULARY == STOP + 1
SHARPNESS = 3.0  # of the drawn logits: some tokens are likely, as a trained model's are


def save_pieces(folder: Path) -> Path:
    """`tokenizer.json` of PIECES."""
    tokenizer = HFTokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(PIECES)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True)])
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@cache
def _row(vocab_size: int, tail: tuple[int, ...], drafter: bool) -> np.ndarray:
    own = np.random.default_rng([1, *tail]).normal(size=vocab_size) * SHARPNESS
    if drafter:
        own += np.random.default_rng([2, *tail]).normal(size=vocab_size)
    return own.astype(np.float32)


class SpelledEngine(TableEngine):
    """Like TableEngine with a vocabulary of any size. A row depends on the last two tokens and on the length."""

    def __init__(self, vocab_size: int, stop: int, capacity: int = 512) -> None:
        super().__init__()
        manifest = scripted_manifest(capacity, verify=(2, 3, 5), per_layer=False)
        tokens = Tokens(bos=None, stop=(stop,))
        self.manifest = manifest.model_copy(update={"vocab_size": vocab_size, "tokens": tokens})
        self._graphs = {graph.name: graph for graph in self.manifest.graphs}
        self.runs = 0

    def run(self, name: str, inputs: Any, cache: Any = None) -> dict[str, Any]:
        self.runs += 1
        return super().run(name, inputs, cache)

    def logits(self, sequence: tuple[int, ...], drafter: bool = False) -> np.ndarray:
        return _row(self.manifest.vocab_size, (len(sequence), *sequence[-2:]), drafter)


def embedded_tokenizer() -> Path:
    """The embedded pair's `tokenizer.json`: 2,048 tokens of byte-level BPE, stop token 1."""
    from pocketdraft.export.tiny import TARGET_DIR

    return TARGET_DIR / "tokenizer.json"


def vocabulary_of(path: Path) -> int:
    return len(json.loads(path.read_text())["model"]["vocab"])
