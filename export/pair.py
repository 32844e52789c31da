"""Was this drafter made for this target? Asked before any work; every refusal names both values and the mend."""

from __future__ import annotations

import json
from collections.abc import Iterator

from pocketdraft.runtime.errors import PocketdraftError

from .checkpoint import Checkpoint
from .families import family_of
from .models.gemma4 import Geometry
from .models.masks import Kind

MEND = "give the drafter that was trained for this target."


def check_pair(target: Checkpoint, drafter: Checkpoint) -> None:
    """Raises PocketdraftError at the first mismatch."""
    family_of(target.config)
    drafter.require("drafter")
    for what, theirs, mine in _facts(target, drafter):
        if theirs != mine:
            raise PocketdraftError(
                f"The drafter {drafter.folder} has {what} {mine}, the target {target.folder} has {theirs}; {MEND}"
            )
    _check_tokenizers(target, drafter)


def _facts(target: Checkpoint, drafter: Checkpoint) -> Iterator[tuple[str, object, object]]:
    """What, the target's value, the drafter's."""
    ours, theirs = target.text_config, drafter.text_config
    yield "vocabulary size", ours.vocab_size, theirs.vocab_size
    yield "backbone hidden size", ours.hidden_size, drafter.config.backbone_hidden_size
    geometry = Geometry.from_config(ours)
    reader = Geometry.from_config(theirs, geometry)
    kinds: tuple[Kind, Kind] = ("sliding", "full")
    for kind in kinds:
        owner = geometry.layers[geometry.last_owner(kind)]
        for layer in reader.layers:
            if layer.kind == kind:
                yield f"{kind} layers with KV heads", owner.kv_heads, layer.kv_heads
                yield f"{kind} layers with head size", owner.head_dim, layer.head_dim
    yield "sliding window", geometry.window, reader.window
    if drafter.config.use_ordered_embeddings:
        members = theirs.vocab_size // drafter.config.num_centroids * drafter.config.num_centroids
        yield "centroids that cover a vocabulary of", ours.vocab_size, members


def _check_tokenizers(target: Checkpoint, drafter: Checkpoint) -> None:
    """The drafter may come without a tokenizer; one that it brings must give the same ids."""
    if not target.tokenizer_file.is_file():
        raise PocketdraftError(
            f"{target.folder} has no tokenizer.json, the bundle needs it; save the tokenizer beside the target."
        )
    if not drafter.tokenizer_file.is_file():
        return
    ours, theirs = (_vocabulary(c) for c in (target, drafter))
    differing = sorted((token for token in ours | theirs if ours.get(token) != theirs.get(token)), key=str)
    if differing:
        token = differing[0]
        raise PocketdraftError(
            f"The drafter {drafter.folder} has another tokenizer: {token!r} is {theirs.get(token)}, "
            f"the target {target.folder} has {ours.get(token)}; {MEND}"
        )


def _vocabulary(checkpoint: Checkpoint) -> dict[str, int]:
    path = checkpoint.tokenizer_file
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        vocabulary: dict[str, int] = dict(content["model"]["vocab"])
        return vocabulary | {token["content"]: token["id"] for token in content.get("added_tokens", [])}
    except (ValueError, KeyError, TypeError) as error:
        raise PocketdraftError(f"{path} is not a Hugging Face tokenizer ({error!r}); download it again.") from error
