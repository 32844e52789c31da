"""HTTP: routes, bounds, errors as OpenAI has them, server-sent events, and clients that hang up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ..errors import PocketdraftError
from . import replies
from .generation import Model, Piece, UnknownModel, Wanted, generate, prepare
from .requests import ChatRequest, CompletionRequest, parse
from .turns import Busy, Turns

log = logging.getLogger(__name__)
RETRY_AFTER_S = 2
DRAINED = 4  # a body that is too large is read, and dropped, up to so many times the bound: clients answer to that


@dataclass(frozen=True)
class Limits:
    """`hosts` are the names that requests may address, None for any: a web page may know others for this machine."""

    at_once: int = 4
    waiting: int = 16
    body_bytes: int = 1 << 20
    hosts: frozenset[str] | None = None


class Refused(Exception):
    """`status` and an OpenAI error."""

    def __init__(self, status: int, body: dict[str, Any], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status)
        self.status, self.body, self.headers = status, body, headers


class HungUp(Exception):
    """The client has gone; nobody reads an answer."""


def make_app(model: Model, limits: Limits) -> Starlette:
    turns = Turns(limits.at_once, limits.waiting)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        turns.start()
        yield
        await run_in_threadpool(turns.end)

    async def completions(request: Request) -> Response:
        return await _answer(request, model, turns, limits, CompletionRequest, replies.Completion)

    async def chat(request: Request) -> Response:
        return await _answer(request, model, turns, limits, ChatRequest, replies.Chat)

    async def models(request: Request) -> Response:
        _check_host(request, limits)
        entry = {"id": model.name, "object": "model", "created": 0, "owned_by": "pocketdraft"}
        if "name" not in request.path_params:
            return JSONResponse({"object": "list", "data": [entry]})
        if request.path_params["name"] != model.name:
            raise _refused(UnknownModel(f"There is no model {request.path_params['name']!r} here."))
        return JSONResponse(entry)

    app = Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", models),
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/chat/completions", chat, methods=["POST"]),
        ],
        exception_handlers={Refused: _refusal, HTTPException: _http_error, Exception: _fault},
        lifespan=lifespan,
    )
    app.state.turns = turns
    return app


async def _answer(
    request: Request,
    model: Model,
    turns: Turns,
    limits: Limits,
    kind: type[CompletionRequest] | type[ChatRequest],
    reply_kind: type[replies.Reply],
) -> Response:
    _check_host(request, limits)
    body = await _body(request, limits.body_bytes)
    try:
        asked = parse(kind, body)
        wanted = await run_in_threadpool(prepare, model, asked)
    except PocketdraftError as error:
        raise _refused(error) from error
    reply = reply_kind(model.name, wanted, model.tokenizer)
    pieces = _pieces(request, model, turns, wanted)
    try:
        first = await anext(pieces)  # whatever is wrong with the request shows by now, and can have a status
        reply.add(first)
        if asked.stream:
            events = _events(reply, first, pieces, asked.stream_options.include_usage)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        async for piece in pieces:
            reply.add(piece)
    except HungUp:
        return Response(status_code=499)
    except Exception as error:
        await pieces.aclose()
        raise _refused(error) from error
    return JSONResponse(reply.whole())


async def _pieces(request: Request, model: Model, turns: Turns, wanted: Wanted) -> AsyncGenerator[Piece, None]:
    """What the engine's thread gives. The work ends with the iterator, and when the client hangs up."""
    loop, results = asyncio.get_running_loop(), asyncio.Queue[Any]()

    def deliver(result: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server ends
            loop.call_soon_threadsafe(results.put_nowait, result)

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        results.put_nowait(HungUp())

    job = turns.submit(generate(model, wanted), deliver)
    watching = asyncio.create_task(watch())
    try:
        while (result := await results.get()) is not None:
            if isinstance(result, Exception):
                raise result
            yield result
    finally:
        watching.cancel()
        turns.cancel(job)


async def _events(
    reply: replies.Reply, first: Piece, pieces: AsyncGenerator[Piece, None], with_usage: bool
) -> AsyncIterator[str]:
    try:
        for opening in reply.opening():
            yield _event(opening)
        if chunk := reply.chunk(first):
            yield _event(chunk)
        async for piece in pieces:
            reply.add(piece)
            if chunk := reply.chunk(piece):
                yield _event(chunk)
        if with_usage:
            yield _event(reply.usage_chunk())
        yield "data: [DONE]\n\n"
    except HungUp:
        return
    except Exception as error:
        yield _event(_refused(error).body)
    finally:
        await pieces.aclose()


def _event(value: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


async def _body(request: Request, bound: int) -> bytes:
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise Refused(415, replies.error("The body's Content-Type is not application/json; send JSON."))
    found, size = bytearray(), 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size <= bound:
                found += chunk
            elif size > DRAINED * bound:
                break
    except ClientDisconnect as error:
        raise Refused(499, {}) from error
    if size > bound:
        message = f"The body has more than {bound} bytes, which is the most here; send less."
        raise Refused(413, replies.error(message))
    return bytes(found)


def _check_host(request: Request, limits: Limits) -> None:
    try:
        host = urlsplit("//" + request.headers.get("host", "")).hostname
    except ValueError:
        host = None
    if limits.hosts is not None and host not in limits.hosts:
        message = f"The request is for the host {host!r}, this server is for {', '.join(sorted(limits.hosts))} only."
        raise Refused(403, replies.error(message))


def _refused(error: Exception) -> Refused:
    if isinstance(error, Refused):
        return error
    if isinstance(error, UnknownModel):
        return Refused(404, replies.error(str(error), code="model_not_found"))
    if isinstance(error, PocketdraftError):
        return Refused(400, replies.error(" ".join(str(error).splitlines())))
    if isinstance(error, Busy):
        message = f"Too many requests wait; try again in {RETRY_AFTER_S} seconds."
        return Refused(429, replies.error(message, "rate_limit_error"), {"Retry-After": str(RETRY_AFTER_S)})
    log.error("pocketdraft: A request failed: %r", error)
    message = f"The server failed ({type(error).__name__}); this is a fault of its own."
    return Refused(500, replies.error(message, "server_error"))


async def _refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return JSONResponse(error.body, error.status, headers=error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}."
    return JSONResponse(replies.error(message), error.status_code, headers=error.headers)


async def _fault(_: Request, error: Exception) -> Response:
    return JSONResponse(_refused(error).body, 500)
