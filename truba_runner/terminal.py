"""Print to the terminal: tables, and everything with control characters escaped, so that it is not obeyed.

Names, logs and error texts of a run may come from others: a log line, a metric's name, a comment in Slurm. Escape codes
in them could rename the window, hide lines or type for the user.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any
from unicodedata import combining, east_asian_width

from truba_runner.older_python import zip_equal

if TYPE_CHECKING:
    from rich.console import Console

# C0 (but tab and newline), DEL, C1, marks that change the text direction, and lone surrogates.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# In UTF-8 each of these characters has one of these bytes; searching bytes is thirty times as fast.
_SUSPECT = bytes({*range(32), 127, 0xC2, 0xE2} - {9, 10})
# Width of a table that is not printed to a terminal.
_WIDTH = 250


def shown(text: str) -> str:
    r"""Return `text` with control characters escaped as in Python, `\x1b`; `\r\n` becomes `\n`."""
    try:
        content = text.encode()
    except UnicodeEncodeError:
        return _spelt(text)
    return text if len(content.translate(None, _SUSPECT)) == len(content) else _spelt(text)


def _spelt(text: str) -> str:
    return _OBEYED.sub(lambda found: ascii(found[0])[1:-1], text.replace("\r\n", "\n"))


class _Shown:
    """A text stream that escapes control characters with `shown`."""

    def __init__(self, stream: IO[str]) -> None:
        self.unguarded = stream

    def write(self, text: str) -> int:
        self.unguarded.write(shown(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unguarded, name)


@contextmanager
def guarded() -> Iterator[None]:
    """Escape control characters on standard output and error in the block, and in an uncaught exception's traceback."""
    before = sys.stdout, sys.stderr
    # A stream is None if it was closed before Python started.
    sys.stdout, sys.stderr = (one and _Shown(getattr(one, "unguarded", one)) for one in before)
    sys.excepthook = _tell
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(shown("".join(traceback.format_exception(kind, error, trace))))


def agreed(question: str) -> bool:
    """Ask a yes-or-no question and return whether the answer is yes, in either language."""
    return input(question).strip().lower() in {"y", "yes", "e", "evet"}


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; if it is wider than the terminal, its widest columns are wrapped.

    Rich's tables take 2 ms a row, and 60 ms to import.
    """
    table = [[shown(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(map(_width, column)) for column in zip_equal(*table)]
    stream = getattr(sys.stdout, "unguarded", sys.stdout)
    _narrow(widths, shutil.get_terminal_size().columns if stream.isatty() else _WIDTH)
    bold, plain = ("\x1b[1m", "\x1b[0m") if stream.isatty() and os.environ.get("TERM") != "dumb" else ("", "")
    for number, row in enumerate(table):
        lines = [_lines(cell, width) for cell, width in zip_equal(row, widths)]
        for parts in zip_longest(*lines, fillvalue=""):
            padded = (part + " " * (width - _width(part)) for part, width in zip_equal(parts, widths))
            line = "  ".join(padded).rstrip()
            stream.write(f" {line}\n" if number else f" {bold}{line}{plain}\n")


def _narrow(widths: list[int], most: int) -> None:
    """Make the widest columns equally narrow, until all fit with a space before and two between them."""
    while (excess := sum(widths) + 2 * len(widths) - 1 - most) > 0 and (widest := max(widths)) > 1:
        wide = [index for index, width in enumerate(widths) if width == widest]
        below = max((width for width in widths if width < widest), default=1)
        for index in wide:
            widths[index] = max(below, widest - -(-excess // len(wide)), 1)


def _lines(cell: str, width: int) -> list[str]:
    if _width(cell) <= width and "\n" not in cell:
        return [cell]
    return [line for part in cell.split("\n") for line in textwrap.wrap(part, width, break_on_hyphens=False) or [""]]


def _width(text: str) -> int:
    """Return how many columns of the terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def console() -> Console:
    """Return Rich's console on standard output: its own codes reach the terminal, those in texts are escaped.

    Texts are printed without markup.
    """
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class Showing(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for one in super().render(renderable, options):
                yield one if one.control else one._replace(text=shown(one.text))

    stream = getattr(sys.stdout, "unguarded", sys.stdout)
    return Showing(file=stream, markup=False, emoji=False, highlight=False)
