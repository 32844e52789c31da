"""Prompts with their domain and licence, one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import PocketdraftError


class Prompt(BaseModel):
    """Only `text` is required of users' own files. `reference` is the text that should follow, where that is known."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    text: str
    reference: str = ""
    id: str = ""
    domain: str = "own"
    source: str = ""
    licence: str = ""


def read_prompts(path: Path, per_domain: int | None = None) -> list[Prompt]:
    """All prompts of a JSONL file, or the first few of each domain. Raises PocketdraftError naming the line."""
    if not path.is_file():
        raise PocketdraftError(f"There is no prompt file {path}; give a JSONL file with a `text` in each line.")
    prompts: list[Prompt] = []
    taken: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            prompt = Prompt.model_validate(json.loads(line))
        except (ValueError, ValidationError) as error:
            first = str(error).splitlines()[0]
            raise PocketdraftError(
                f"{path} line {number} is no prompt ({first}); each line is an object with `text`."
            ) from error
        taken[prompt.domain] = taken.get(prompt.domain, 0) + 1
        if per_domain is None or taken[prompt.domain] <= per_domain:
            prompts.append(prompt)
    if not prompts:
        raise PocketdraftError(f"{path} holds no prompt; each line is an object with `text`.")
    return prompts
