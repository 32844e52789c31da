"""The one exception that users see: a plain sentence, exit status 2, never a traceback."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class PocketdraftError(Exception):
    """Bad input. The message names the offender, the two values that differ and the mend."""


def first_fault(error: ValidationError) -> str:
    """Where a file's first fault is and what it is: graphs.0.role (what is wrong there)."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the top level'} ({first['msg']})"
