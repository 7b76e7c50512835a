"""What could not be made of a run and stopped nothing: told in the log, and named under `notes` in its result."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from truba_runner import full_disk
from truba_runner.backends import Context
from truba_runner.language import _

_LONGEST = 300


def note(context: Context, text: str) -> None:
    """Tells it now, and in the result; the same twice is told once there."""
    print(text, file=sys.stderr, flush=True)
    if text not in context.notes:
        context.notes.append(text)


@contextmanager
def spared(context: Context, what: str, but: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    """What is made in here is not worth a run that has trained: where it cannot be made, that is noted.

    A full disk goes through, as the run goes on from its checkpoint once there is room; so does `but`.
    """
    try:
        yield
    except Exception as error:
        if full_disk.reason(error) or isinstance(error, but):
            raise
        kind, reason = type(error).__name__, " ".join(str(error).split())[:_LONGEST]
        note(context, _("{what} could not be made ({kind}: {error})", what=what, kind=kind, error=reason))
