"""The one place where text leaves for the terminal: control characters in it are shown, not obeyed.

What a run is called, prints and fails with may come from others: a log, a metric's name, a comment of Slurm's. In it
an escape code could rename the window, hide lines or type for the user.
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

# All but tab and newline: C0, DEL, C1, what turns the direction of a line's letters, and lone surrogates.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# In UTF-8 none of these has a character without one of these bytes; to look for bytes is thirty times as fast.
_SUSPECT = bytes({*range(32), 127, 0xC2, 0xE2} - {9, 10})
# For a table that goes to no terminal.
_WIDTH = 250


def shown(text: str) -> str:
    r"""`text` with each control character spelt as Python does, `\x1b`; a line that ends as in DOS ends as here."""
    try:
        content = text.encode()
    except UnicodeEncodeError:
        return _spelt(text)
    return text if len(content.translate(None, _SUSPECT)) == len(content) else _spelt(text)


def _spelt(text: str) -> str:
    return _OBEYED.sub(lambda found: ascii(found[0])[1:-1], text.replace("\r\n", "\n"))


class _Shown:
    """A stream of which all that is written to it is `shown`."""

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
    """Standard output and error show what is written to them, and so does the word for an exception at the very end."""
    before = sys.stdout, sys.stderr
    # None is one that was closed before Python began.
    sys.stdout, sys.stderr = (one and _Shown(getattr(one, "unguarded", one)) for one in before)
    sys.excepthook = _tell
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(shown("".join(traceback.format_exception(kind, error, trace))))


def console(width: int | None = _WIDTH) -> Console:
    """Rich's console on standard output: its own codes reach the terminal, those in a text are shown.

    What is printed is taken as it stands, without markup. `width` is for where there is no terminal; None: COLUMNS.
    """
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class Showing(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for one in super().render(renderable, options):
                yield one if one.control else one._replace(text=shown(one.text))

    stream = getattr(sys.stdout, "unguarded", sys.stdout)
    columns = None if stream.isatty() else width
    return Showing(file=stream, width=columns, markup=False, emoji=False, highlight=False)


def cells(texts: Iterable[str]) -> list[Text]:
    """The cells of a table's row, as wide as they will be shown."""
    from rich.text import Text

    return [Text(shown(text)) for text in texts]
