"""Messages to a prompt, by the bundle's own chat template, rendered as transformers does it."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .errors import PocketdraftError
from .manifest import CHAT_TEMPLATE_NAME, Manifest, Tokens
from .text import Tokenizer

Message = Mapping[str, Any]  # `role` and `content`, and whatever else the template asks for


class ChatTemplate:
    """A Jinja template, which is somebody's program: it runs in a sandbox.

    `special` are the spellings of special tokens by the names that templates know: `bos_token`, `eos_token`.
    """

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _strftime_now, **special}
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise PocketdraftError(
                f"The chat template is no Jinja template: line {error.lineno}, {error.message}; export one that is."
            ) from error

    def render(self, messages: Sequence[Message], answer: bool = True) -> str:
        """The text of the conversation, special tokens spelled out; with `answer`, up to where one is to begin.

        Encode it with `Tokenizer.encode_rendered`. Raises PocketdraftError with the template's own words where it
        does not take the messages.
        """
        try:
            return self._template.render(messages=messages, add_generation_prompt=answer)
        except Exception as error:
            raise PocketdraftError(f"The chat template does not take these messages: {error}.") from error


def open_template(folder: Path, manifest: Manifest, tokenizer: Tokenizer) -> ChatTemplate:
    """The bundle's. Raises PocketdraftError where it has none."""
    if CHAT_TEMPLATE_NAME not in manifest.files:
        raise PocketdraftError(
            f"{folder} has no {CHAT_TEMPLATE_NAME}, so it takes no messages; export it again from a checkpoint that "
            "has one, or continue a text with `pocketdraft run`."
        )
    source = (folder / CHAT_TEMPLATE_NAME).read_text(encoding="utf-8")
    return ChatTemplate(source, special_tokens(manifest.tokens, tokenizer))


def special_tokens(tokens: Tokens, tokenizer: Tokenizer) -> dict[str, str]:
    """Their spellings by the names that templates know."""
    named = {"bos_token": tokens.bos, "eos_token": tokens.stop[0] if tokens.stop else None}
    return {name: "" if token is None else tokenizer.spelling(token) for name, token in named.items()}


def _to_json(value: Any, indent: int | None = None, sort_keys: bool = False, ensure_ascii: bool = False) -> str:
    """Jinja's own would escape for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)
