"""A conversation over one sequence: each turn runs only what the turns before have not."""

from __future__ import annotations

from collections.abc import Generator

from .chat_template import ChatTemplate, Message
from .session import Session
from .text import Tokenizer


class Chat:
    """`messages` are what was said so far, answers with their special tokens spelled out for the template to judge.

    An answer's last token, which ended it, belongs to the conversation and is in the K/V of the next turn, whose
    logits are those of one long prefill.
    """

    def __init__(
        self, session: Session, template: ChatTemplate, tokenizer: Tokenizer, system: str | None = None
    ) -> None:
        self.session, self._template, self._tokenizer = session, template, tokenizer
        self.messages: list[Message] = [{"role": "system", "content": system}] if system else []
        self._text, self._tokens = "", list[int]()  # the conversation up to the last answer's end

    def ask(self, text: str, budget: int) -> Generator[str, None, None]:
        """Yields the answer, of up to `budget` tokens, in pieces.

        Left early, by Ctrl-C too, what was said until then is the answer. Raises PocketdraftError where the
        conversation does not fit, and is then as it was before.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        rendered = self._template.render(messages)
        tokens = self._encode(rendered)
        session, stream = self.session, self._tokenizer.stream()
        session.begin(session.rewind(tokens), budget)
        try:
            while session.context.finish is None:
                emitted = session.round()
                yield stream.feed(emitted.tokens[:-1] if emitted.finish == "stop" else emitted.tokens)
            yield stream.finish()
        finally:
            said = session.context.tokens[len(tokens) :]
            if session.context.finish == "stop":
                said.pop()  # the template spells it
            answer = self._tokenizer.decode(said, special=True)
            self.messages = [*messages, {"role": "assistant", "content": answer}]
            self._text, self._tokens = rendered + answer, tokens + said

    def _encode(self, rendered: str) -> list[int]:
        """Where the text goes on from the last answer, that one's tokens stay those that the target chose.

        The tokenizer might cut the same text otherwise, and the K/V from there on would be lost.
        """
        if self._text and rendered.startswith(self._text):
            return self._tokens + self._tokenizer.encode_rendered(rendered[len(self._text) :])
        return self._tokenizer.encode_rendered(rendered)
