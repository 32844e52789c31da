"""A server in a thread over a scripted engine, whose texts are noise in the embedded tokenizer's tokens."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import openai
import uvicorn
from spelled import SpelledEngine, embedded_tokenizer, vocabulary_of

from pocketdraft.runtime.chat_template import ChatTemplate
from pocketdraft.runtime.constraints import Grammars
from pocketdraft.runtime.serve.app import Limits, make_app
from pocketdraft.runtime.serve.generation import Model
from pocketdraft.runtime.target import Target
from pocketdraft.runtime.text import Tokenizer

NAME, STOP, LONGEST = "scripted", 1, 300
MESSAGES = [{"role": "user", "content": "Say something."}]


class SlowEngine(SpelledEngine):
    """Waits where it is told to: at the gate, and a moment in each call."""

    def __init__(self) -> None:
        super().__init__(vocabulary_of(embedded_tokenizer()), STOP)
        self.gate, self.pause_s = threading.Event(), 0.0
        self.gate.set()

    def run(self, name, inputs, cache=None):
        self.gate.wait(10)
        time.sleep(self.pause_s)
        return super().run(name, inputs, cache)


@dataclass
class Served:
    url: str
    engine: SlowEngine
    tokenizer: Tokenizer
    turns: object

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=20)

    def post(self, path: str = "/completions", **options) -> httpx.Response:
        return httpx.post(self.url + path, timeout=20, **options)

    def asked(self, **fields: object) -> httpx.Response:
        return self.post(json={"model": NAME, "prompt": "a", "max_tokens": 4} | fields)

    def finishes(self, within_s: float = 5) -> bool:
        """Whether all work has ended by then."""
        end = time.monotonic() + within_s
        while self.turns.unfinished and time.monotonic() < end:
            time.sleep(0.01)
        return not self.turns.unfinished


@contextlib.contextmanager
def serving(limits: Limits = Limits(), template: bool = True) -> Iterator[Served]:  # noqa: B008
    path, engine = embedded_tokenizer(), SlowEngine()
    tokenizer, size = Tokenizer(path, bos=2), vocabulary_of(path)
    source = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    made = ChatTemplate(source, {}) if template else None
    grammars = Grammars(path, size, [STOP])
    model = Model(NAME, engine, Target(engine), tokenizer, made, grammars, "mtp", 4, LONGEST)
    app = make_app(model, limits)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.005)
        yield Served(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", engine, tokenizer, app.state.turns)
        engine.gate.set()
        server.should_exit = True
        thread.join(10)
