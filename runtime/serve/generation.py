"""A request to pieces of output."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..chat_template import ChatTemplate, open_template
from ..constraints import Grammar, Grammars, LogitBias, open_grammars
from ..draft_length import Confident, Drafts
from ..drafters import default_rule
from ..engine import Engine, open_engine
from ..errors import PocketdraftError
from ..manifest import CHAT_TEMPLATE_NAME, TOKENIZER_NAME
from ..sampler import Sampler
from ..sampling import LogitsProcessor, Sampling
from ..session import open_session
from ..target import Target
from ..text import Tokenizer
from .logprobs import TokenLogprob, Watched
from .requests import ChatRequest, CompletionRequest, ObjectFormat, Request, SchemaFormat

COMPLETION_TOKENS = 16  # OpenAI's, where a completion does not say
BAN = -100.0  # OpenAI: a bias of -100 is a ban

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Model:
    """The bundle that is served and how it drafts. `longest` bounds an output."""

    name: str
    engine: Engine
    target: Target
    tokenizer: Tokenizer
    template: ChatTemplate | None
    grammars: Grammars | None
    drafter: str
    drafts: Drafts
    longest: int


def open_model(bundle: Path, name: str, threads: int, drafter: str, drafts: Drafts, longest: int) -> Model:
    """`longest` 0 is as much as the context holds. Raises PocketdraftError."""
    engine = open_engine(bundle, threads)
    manifest = engine.manifest
    default_rule(drafter, timed=isinstance(drafts, Confident))  # raises for a drafter that there is none of
    tokenizer = Tokenizer(bundle / TOKENIZER_NAME, manifest.tokens.bos)
    has_template = CHAT_TEMPLATE_NAME in manifest.files
    return Model(
        name=name,
        engine=engine,
        target=Target(engine),
        tokenizer=tokenizer,
        template=open_template(bundle, manifest, tokenizer) if has_template else None,
        grammars=open_grammars(bundle, manifest) if manifest.tokens.stop else None,
        drafter=drafter,
        drafts=drafts,
        longest=longest or manifest.context_length,
    )


@dataclass(frozen=True)
class Wanted:
    """A request, checked and in tokens. `top` likely tokens are told beside each one's log-probability."""

    prompt: tuple[int, ...]
    budget: int
    choices: int
    sampling: Sampling
    bias: LogitBias | None
    grammar: Grammar | None
    stop: tuple[str, ...]
    top: int | None


@dataclass(frozen=True)
class Piece:
    """What a round gave to a choice. `tokens` counts what was emitted, a stop token included."""

    choice: int
    text: str
    tokens: int
    logprobs: tuple[TokenLogprob, ...]
    finish: Finish | None


def prepare(model: Model, request: Request) -> Wanted:
    """All that can be refused before the engine runs. Raises PocketdraftError."""
    if request.model != model.name:
        raise UnknownModel(f"There is no model {request.model!r} here; there is {model.name!r}.")
    seed = secrets.randbits(63) if request.seed is None else request.seed % (1 << 64)
    model.tokenizer.output(request.stops)
    return Wanted(
        prompt=tuple(_prompt(model, request)),
        budget=_budget(model, request),
        choices=request.n,
        sampling=Sampling(
            request.temperature, request.top_k, request.top_p, request.min_p, request.repetition_penalty, seed
        ),
        bias=_bias(request, model.engine.manifest.vocab_size),
        grammar=_grammar(model, request),
        stop=request.stops,
        top=request.top,
    )


def generate(model: Model, wanted: Wanted) -> Iterator[Piece]:
    """One choice after the other, a round a step, all after one prefill. The first has the request's own seed."""
    prompt = model.target.new_cache()
    if wanted.choices > 1:
        model.target.prefill(prompt, wanted.prompt[:-1])
    first = _sampler(model, wanted)
    for choice in range(wanted.choices):
        sampler = first.sample(choice)
        cache = model.target.fork(prompt) if choice + 1 < wanted.choices else prompt
        session = open_session(model.engine, model.drafter, model.drafts, model.target, sampler, cache)
        watched = None
        if wanted.top is not None:
            session.drafter = watched = Watched(session.drafter, sampler, wanted.top)
        output, stops = model.tokenizer.output(wanted.stop), model.engine.manifest.tokens.stop
        for emitted in session.generate(wanted.prompt, wanted.budget, output.feed):
            text = output.take() + (output.finish() if emitted.finish else "")
            finish: Finish | None = emitted.finish and (
                "stop" if emitted.finish == "stop" or output.ended else "length"
            )
            logprobs = watched.last(len(emitted.tokens)) if watched else ()
            told = tuple(one for one in logprobs if one.token not in stops)
            yield Piece(choice, text, len(emitted.tokens), told, finish)


class UnknownModel(PocketdraftError):
    """Another model than the one that is served."""


def _sampler(model: Model, wanted: Wanted) -> Sampler:
    processors: list[LogitsProcessor] = [] if wanted.bias is None else [wanted.bias]
    if wanted.grammar is not None:
        processors.append(wanted.grammar.after(len(wanted.prompt)))
    rule = default_rule(model.drafter, timed=isinstance(model.drafts, Confident))
    return Sampler(wanted.sampling, rule, tuple(processors))


def _prompt(model: Model, request: Request) -> list[int]:
    if isinstance(request, ChatRequest):
        if model.template is None:
            raise PocketdraftError(
                "The bundle has no chat template, so it takes no messages; send a prompt to /v1/completions, or "
                "export it from a checkpoint that has one."
            )
        return model.tokenizer.encode_rendered(model.template.render([one.plain() for one in request.messages]))
    assert isinstance(request, CompletionRequest)
    return model.tokenizer.encode(request.prompt) if isinstance(request.prompt, str) else request.prompt


def _budget(model: Model, request: Request) -> int:
    chat = isinstance(request, ChatRequest)
    said = (request.max_completion_tokens if isinstance(request, ChatRequest) else None) or request.max_tokens
    if said is not None and said > model.longest:
        raise PocketdraftError(f"max_tokens is {said}, an output here has {model.longest} at most; ask for less.")
    return said or (model.longest if chat else min(COMPLETION_TOKENS, model.longest))


def _bias(request: Request, vocab_size: int) -> LogitBias | None:
    wrong = next((key for key in request.logit_bias if not key.isdecimal()), None)
    if wrong is not None:
        raise PocketdraftError(f"logit_bias names {wrong!r}, tokens are numbers; give one of the vocabulary's.")
    outside = next((key for key, value in request.logit_bias.items() if not -100 <= value <= 100), None)
    if outside is not None:
        raise PocketdraftError(f"logit_bias of {outside} is {request.logit_bias[outside]}; give -100 to 100.")
    bias = {int(key): -math.inf if value <= BAN else value for key, value in request.logit_bias.items()}
    return LogitBias(bias, vocab_size) if bias else None


def _grammar(model: Model, request: Request) -> Grammar | None:
    form = request.response_format
    if not isinstance(form, ObjectFormat | SchemaFormat):
        return None
    if model.grammars is None:
        raise PocketdraftError("The bundle has no stop token, with which constrained output ends; ask for text.")
    schema = form.json_schema.json_schema if isinstance(form, SchemaFormat) else {"type": "object"}
    return model.grammars.compile("json-schema", json.dumps(schema))
