"""What tests of other machines are held against, and the Android build's own commands."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pocketdraft.runtime.session import open_session
from pocketdraft.runtime.target import Target

ROOT = Path(__file__).parents[1]


def plain_tokens(target: Target, prompts: Sequence[Sequence[int]], budget: int) -> list[list[int]]:
    """What this machine's Python runtime generates after each prompt, without drafts."""
    streams = [open_session(target.engine, "none", target=target).generate(prompt, budget) for prompt in prompts]
    return [[token for emitted in stream for token in emitted.tokens] for stream in streams]


def android_tool(*arguments: str) -> str:
    """Standard output of a command of `android_demo.tools`."""
    command = [sys.executable, "-m", f"android_demo.tools.{arguments[0]}", *arguments[1:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
