"""Report a full disk or an exceeded quota (ENOSPC, EDQUOT) as such, with a remedy."""

from __future__ import annotations

import errno
import os

from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.runs.checkpoints import CheckpointStore, Position
from truba_runner.runs.run_directory import RunDir

_FULL = (errno.ENOSPC, errno.EDQUOT)


def explained(error: BaseException, run: RunDir) -> BaseException:
    """Return the error; if a full disk caused it, a Failed that says so and names the position to resume from."""
    if isinstance(error, Failed) or (cause := reason(error)) is None:
        return error  # A Failed has its own remedy, and may be about another disk.
    position = CheckpointStore(run.checkpoints).position()
    if position == Position(0, 0):
        where = _("the run starts again from the beginning.")
    else:
        where = _("the run resumes from epoch {epoch}, step {step}.", epoch=position.epoch + 1, step=position.step)
    failed = Failed(
        "the disk is full ({cause}): it holds {folder}. Free space there (or delete files, if their number is at "
        "its limit) and submit again: {where}",
        cause=cause,
        folder=run.path,
        where=where,
    )
    failed.__cause__ = error
    return failed


def reason(error: BaseException) -> str | None:
    """Return the full-disk message of an error or of its causes (frameworks raise their own errors); else None."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        if isinstance(one, OSError) and one.errno in _FULL:
            return f"{one.filename}: {one.strerror}" if one.filename else str(one.strerror)
        if said := full_disk_words(str(one)):
            return said
        one = one.__cause__ or one.__context__
    return None


def full_disk_words(text: str) -> str | None:
    """Return the system's full-disk message if an error's text contains it."""
    return next((said for said in map(os.strerror, _FULL) if said in text), None)
