"""A chat template as plain strings, for a phone, which has no Jinja: what goes before, between and after the texts.

Derived at export by rendering conversations, and kept only if putting them together gives what the template gives.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from .chat_template import ChatTemplate
from .errors import PocketdraftError

CHAT_TURNS_NAME = "chat_turns.json"


class ChatTurns(BaseModel):
    """`opening` comes before the first user's text, or `system[0]`, the system's text and `system[1]`.

    `answer` lies between a user's text and the model's, `next` between that and the next user's. `system` is None
    where the template takes no system message.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    opening: str
    answer: str
    next: str
    system: tuple[str, str] | None = None

    def render(self, said: Sequence[str], system: str | None = None) -> str:
        """User and model in turn, the user last: up to where the answer is to begin."""
        opening = self.opening if system is None or self.system is None else system.join(self.system)
        return opening + "".join(
            text + (self.answer if index % 2 == 0 else self.next) for index, text in enumerate(said)
        )


def chat_turns(template: ChatTemplate) -> ChatTurns | None:
    """None where the template does more than to put strings around the texts."""
    said = ["1st", "2nd", "3rd", "4th", "5th"]
    try:
        opening, answer, following = _between(_render(template, said[:3]), said[:3])[:3]
        turns = ChatTurns(opening=opening, answer=answer, next=following)
        if turns.render(said) != _render(template, said):
            return None
    except (PocketdraftError, ValueError):
        return None
    try:
        before, after, *_ = _between(_render(template, said[:1], "0th"), ["0th", said[0]])
        with_system = turns.model_copy(update={"system": (before, after)})
        return with_system if with_system.render(said, "0th") == _render(template, said, "0th") else turns
    except (PocketdraftError, ValueError):
        return turns


def _render(template: ChatTemplate, said: Sequence[str], system: str | None = None) -> str:
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": text} for index, text in enumerate(said)]
    return template.render(messages if system is None else [{"role": "system", "content": system}, *messages])


def _between(text: str, marks: Sequence[str]) -> list[str]:
    """What lies before, between and after the marks. Raises ValueError where they are not there once, in order."""
    pieces = re.split("|".join(map(re.escape, marks)), text)
    if re.findall("|".join(map(re.escape, marks)), text) != list(marks):
        raise ValueError("the texts are not there as they were given")
    return pieces
