"""Turn the exception that ended a run into a record and a sentence."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from truba_runner.errors import Failed
from truba_runner.runs import restarts
from truba_runner.runs.record_shapes import ErrorRecord


def describe(error: BaseException, job_folder: Path, own: Callable[[str], str] = str) -> ErrorRecord:
    """Return an exception as a record, with the innermost line of its traceback that is in `job_folder`.

    `own` replaces paths of unpacked code in a text by the user's own paths.
    """
    kind = Failed.__name__ if isinstance(error, Failed) else type(error).__name__
    record = ErrorRecord(kind, own(str(error)).strip()[:2000], isinstance(error, restarts.GaveUp))
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) and error.filename:
        frames.append(traceback.FrameSummary(error.filename, error.lineno or 0, "", line=error.text or ""))
    for frame in reversed(frames):
        if Path(file := own(frame.filename)).is_relative_to(job_folder):
            return replace(record, file=file, line=frame.lineno, code=(frame.line or "").strip())
    return record


def in_one_line(record: ErrorRecord) -> str:
    """Return a record of `describe` as one sentence."""
    return record.at_its_line(f"{record.type}: {record.message}")


def print_traceback(error: BaseException, own: Callable[[str], str]) -> None:
    """Print the traceback to the log, with the user's own paths by `own`."""
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    print(own("".join(lines)), file=sys.stderr, end="", flush=True)
