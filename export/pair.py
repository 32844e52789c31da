"""Was this drafter made for this target? Asked before any work; every refusal names both values and the mend."""

from __future__ import annotations

import json

from pocketdraft.runtime.errors import PocketdraftError

from .checkpoint import Checkpoint
from .drafting import by_kind, kind_of
from .families import family_of

MEND = "give the drafter that was trained for this target."


def check_pair(target: Checkpoint, *drafters: Checkpoint) -> None:
    """Raises PocketdraftError at the first mismatch."""
    family_of(target.config)
    if not target.tokenizer_file.is_file():
        raise PocketdraftError(
            f"{target.folder} has no tokenizer.json, the bundle needs it; save the tokenizer beside the target."
        )
    for drafter in by_kind(drafters).values():
        for what, theirs, mine in kind_of(drafter.config).facts(target, drafter):
            if theirs != mine:
                raise PocketdraftError(
                    f"The drafter {drafter.folder} has {what} {mine}, the target {target.folder} has {theirs}; {MEND}"
                )
        _check_tokenizers(target, drafter)


def _check_tokenizers(target: Checkpoint, drafter: Checkpoint) -> None:
    """The drafter may come without a tokenizer; one that it brings must give the same ids."""
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
