"""`pocketdraft serve`: a bundle behind OpenAI's API."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from typing import Annotated

import typer

from . import terminal
from .errors import PocketdraftError
from .manifest import read
from .options import Quiet, at_least, start

GRACE_S = 3  # what requests have to end when the server is told to


def serve(
    bundle: Annotated[Path, typer.Argument(help="A bundle made by `pocketdraft export`.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any that is free.")] = 8080,
    public: Annotated[bool, typer.Option("--public", help="Let other machines in; nobody is asked for a key.")] = False,
    name: Annotated[str | None, typer.Option(help="The model's name; default: the bundle's folder.")] = None,
    drafter: Annotated[
        str | None, typer.Option(help="mtp, mtp_tree, prompt_lookup, hybrid or none; default: as tuned, or mtp.")
    ] = None,
    drafts: Annotated[str | None, typer.Option(help="Drafts per round, or auto; default: as tuned, or 4.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest output; 0 is what the context holds.")] = 0,
    at_once: Annotated[int, typer.Option(help="Requests that take turns, each with a K/V cache.")] = 4,
    waiting: Annotated[int, typer.Option(help="Requests that may wait; more are told to come again.")] = 16,
    threads: Annotated[int, typer.Option(help="Threads for the graphs; 0 leaves it to the backend.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Serve a bundle to OpenAI's clients until Ctrl-C: /v1/completions, /v1/chat/completions, /v1/models."""
    at_least(0, port=port, max_tokens=max_tokens, waiting=waiting, threads=threads)
    at_least(1, at_once=at_once)
    start(None, drafter, drafts)  # refused before anything is opened
    loopback = _is_loopback(host)
    if not loopback and not public:
        raise PocketdraftError(
            f"--host is {host}, which other machines reach, and nobody is asked for a key; add --public if they may, "
            "or leave it at 127.0.0.1."
        )
    try:
        import uvicorn

        from .serve.app import Limits, make_app
        from .serve.generation import open_model
    except ModuleNotFoundError as error:
        mend = "pip install 'pocketdraft[serve]'"
        raise PocketdraftError(f"serve needs {error.name}, which is not installed: {mend}.") from error

    with _listen(host, port) as listening:
        with terminal.progress(quiet) as advance:
            advance("Opening the bundle", 0, 1)
            named = name or bundle.resolve().name
            model = open_model(bundle, named, threads, *start(read(bundle), drafter, drafts), max_tokens)
        hosts = frozenset({host.strip("[]"), "localhost", "127.0.0.1", "::1"}) if loopback else None
        app = make_app(model, Limits(at_once, waiting, hosts=hosts))
        place = f"[{host}]" if ":" in host else host
        print(f"http://{place}:{listening.getsockname()[1]}/v1 serves {named}; Ctrl-C ends it.", flush=True)
        # uvicorn's own log has tracebacks, of requests that Ctrl-C ends too; faults are logged in a line by the app.
        config = uvicorn.Config(app, log_level="critical", access_log=False, timeout_graceful_shutdown=GRACE_S)
        uvicorn.Server(config).run(sockets=[listening])


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    """Open before the bundle is, which may take long. Raises PocketdraftError."""
    address = host.strip("[]")
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.create_server((address, port), family=family)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise PocketdraftError(
            f"Cannot listen on {host} port {port} ({why}); give another --host or --port."
        ) from error
