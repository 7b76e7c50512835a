"""Turn the exception that ended a run into a record and a sentence."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.runs import restarts


def describe(error: BaseException, job_folder: Path, own: Callable[[str], str] = str) -> dict[str, Any]:
    """Return an exception as a record, with the innermost line of the user's code in its traceback.

    Keys: `type`, `message`, `gave_up` if the run was given up, and `file`, `line`, `code` if the traceback passes
    through `job_folder`. `own` replaces paths of unpacked code in a text by the user's own paths.
    """
    kind = Failed.__name__ if isinstance(error, Failed) else type(error).__name__
    record: dict[str, Any] = {"type": kind, "message": own(str(error)).strip()[:2000]}
    if isinstance(error, restarts.GaveUp):
        record["gave_up"] = True
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) and error.filename:
        frames.append(traceback.FrameSummary(error.filename, error.lineno or 0, "", line=error.text or ""))
    for frame in reversed(frames):
        if Path(file := own(frame.filename)).is_relative_to(job_folder):
            return {**record, "file": file, "line": frame.lineno, "code": (frame.line or "").strip()}
    return record


def in_one_line(record: Mapping[str, Any]) -> str:
    """Return a record of `describe` as one sentence."""
    error = f"{record['type']}: {record['message']}"
    if "file" not in record:
        return error
    place = {key: record[key] for key in ("file", "line", "code")}
    return _("{error} at {file}:{line}: {code}", error=error, **place)


def print_traceback(error: BaseException, own: Callable[[str], str]) -> None:
    """Print the traceback to the log, with the user's own paths by `own`."""
    print(own("".join(traceback.format_exception(error))), file=sys.stderr, end="", flush=True)
