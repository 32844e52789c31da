"""build(plans) in a process of its own.

Converters abort on a full disk, get killed for want of memory, and swallow KeyboardInterrupt in their
callbacks. From outside each of these is one sentence, nothing is left behind, and Ctrl-C works at once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from pocketdraft.runtime.errors import PocketdraftError
from pocketdraft.runtime.manifest import Manifest

from .plan import Plan, Progress
from .staging import clear_abandoned


def build_isolated(plans: Sequence[Plan], progress: Progress) -> list[Manifest]:
    """As `pipeline.build`, and PocketdraftError also where the process behind it dies."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile() as log:
        child = context.Process(target=_work, args=(plans, sender, Path(log.name)))
        child.start()
        sender.close()
        try:
            while True:
                message = receiver.recv()
                if isinstance(message, tuple):
                    progress(*message)
                elif isinstance(message, list):
                    return message
                else:
                    raise message
        except EOFError:
            child.join()
            raise PocketdraftError(_obituary(child.exitcode or 0, Path(log.name))) from None
        finally:
            child.kill()
            child.join()
            for plan in plans:
                clear_abandoned(plan.out)


def _work(plans: Sequence[Plan], sender: Connection, log: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if not os.environ.get("POCKETDRAFT_VERBOSE"):
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
    sender.send(("Loading torch", 0, 1))
    try:
        from .estimate import check_plans
        from .pipeline import build

        check_plans(plans)
        sender.send(build(plans, lambda *state: sender.send(state)))
    except ModuleNotFoundError as error:
        mend = "pip install 'pocketdraft[export]'"
        sender.send(PocketdraftError(f"Export needs {error.name}, which is not installed: {mend}."))
    except PocketdraftError as error:
        sender.send(PocketdraftError(str(error)))  # without its cause, which may not travel


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _obituary(status: int, log: Path) -> str:
    """What can be said of a process that ended without a word of its own."""
    if status == -signal.SIGKILL:
        return "The converter was killed by the system, most likely for want of memory; close other programs."
    errors = [line.strip() for line in log.read_text(errors="replace").splitlines() if "rror:" in line.lower()]
    said = errors[-1][:300] if errors else "it gave no reason; a disk that is full does that"
    return f"The converter ended with status {status} ({said}); POCKETDRAFT_VERBOSE=1 shows all that it says."
