"""Escape control characters in everything printed to the terminal, so that it shows them and does not obey them.

Names, logs and error texts of a run may come from others: a log line, a metric's name, a comment in Slurm. Escape codes
in them could rename the window, hide lines or type for the user.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

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


def console(width: int | None = _WIDTH) -> Console:
    """Return Rich's console on standard output: its own codes reach the terminal, those in texts are escaped.

    Texts are printed without markup. `width` is used if the output is no terminal; None: COLUMNS.
    """
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class Showing(Console):
        # Rich renders a table's cells by calls of their own: escaping in each of these takes a third of the time.
        _inside = False

        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            if self._inside:
                yield from super().render(renderable, options)
                return
            self._inside = True
            try:
                for one in super().render(renderable, options):
                    yield one if one.control else one._replace(text=shown(one.text))
            finally:
                self._inside = False

    stream = getattr(sys.stdout, "unguarded", sys.stdout)
    columns = None if stream.isatty() else width
    return Showing(file=stream, width=columns, markup=False, emoji=False, highlight=False)


def cells(texts: Iterable[str]) -> list[Text]:
    """Return the cells of a table row, escaped first so that their widths are right."""
    from rich.text import Text

    return [Text(shown(text)) for text in texts]
