"""Print messages at once: a job's log is its standard output and standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from truba_runner.language import _


def info(message: str, /, **values: object) -> None:
    """Print a message, translated with its `{placeholders}` filled in, to standard output."""
    print(_(message, **values), flush=True)


def print_error(message: str, /, **values: object) -> None:
    """Print a message like `info`, to standard error."""
    print(_(message, **values), file=sys.stderr, flush=True)


def warn(message: str, /, **values: object) -> None:
    """Print a message like `print_error`, after WARNING."""
    print_error("WARNING: {text}", text=_(message, **values))


@contextmanager
def training_continues(file: str) -> Iterator[None]:
    """Print an OSError of the block, which writes `file`, instead of raising it."""
    try:
        yield
    except OSError as error:
        print_error("{file} could not be written ({error}); training continues", file=file, error=error)
