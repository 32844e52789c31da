"""The chat template's files in a bundle."""

from __future__ import annotations

import contextlib
from pathlib import Path

from pocketdraft.runtime.chat_template import ChatTemplate, special_tokens
from pocketdraft.runtime.chat_turns import CHAT_TURNS_NAME, chat_turns
from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.manifest import CHAT_TEMPLATE_NAME, TOKENIZER_NAME, Tokens
from pocketdraft.runtime.text import Tokenizer


def write_template(source: str, tokens: Tokens, folder: Path) -> None:
    """As it is, and as plain strings where it can be said in these. Beside the tokenizer."""
    (folder / CHAT_TEMPLATE_NAME).write_text(source, encoding="utf-8")
    tokenizer = Tokenizer(folder / TOKENIZER_NAME, tokens.bos)
    with contextlib.suppress(PocketdraftError):  # a template that is none is refused where it is used
        if turns := chat_turns(ChatTemplate(source, special_tokens(tokens, tokenizer))):
            (folder / CHAT_TURNS_NAME).write_text(turns.model_dump_json(), encoding="utf-8")
