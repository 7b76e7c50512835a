"""What could not be made of a training and stopped nothing: a warning in the log, and named in the run's result."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.training import full_disk
from truba_runner.training.backend import Context

_LONGEST = 500


def note(context: Context, text: str) -> None:
    """Puts on record what is missing from a result, once; the log has it as a warning."""
    if text not in context.notes:
        context.notes.append(text)
        print(_("WARNING: {text}", text=text), file=sys.stderr, flush=True)


@contextmanager
def noted(context: Context, what: str, but: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    """What fails in here is left out of a result that is worth more, with a note.

    `what`: a sentence, behind which the reason is put. A full disk goes through, as the run resumes from its checkpoint
    once there is room; so does `but`.
    """
    try:
        yield
    except Exception as error:
        if full_disk.reason(error) or isinstance(error, but):
            raise
        reason = " ".join(str(error).split())[:_LONGEST]
        note(context, f"{what}: {reason}" if isinstance(error, Failed) else f"{what}: {type(error).__name__}: {reason}")
