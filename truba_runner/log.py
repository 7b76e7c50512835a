"""Print warnings and errors to standard error, which in a job is its log."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from truba_runner.language import _


def print_error(text: str) -> None:
    """Print a line to standard error at once."""
    print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Print a line that begins with WARNING."""
    print_error(_("WARNING: {text}", text=text))


@contextmanager
def training_continues(file: str) -> Iterator[None]:
    """Print an OSError of the block, which writes `file`, instead of raising it."""
    try:
        yield
    except OSError as error:
        print_error(_("{file} could not be written ({error}); training goes on", file=file, error=error))
