"""Notes on outputs that could not be made: a warning in the log and an entry in the result, but no failure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.log import warn
from truba_runner.training import full_disk
from truba_runner.training.backend import Context

_LONGEST = 500


def note(context: Context, message: str, /, **values: object) -> None:
    """Record once what is missing from the result, translated as by `language._`, and print it as a warning."""
    if (text := _(message, **values)) not in context.notes:
        context.notes.append(text)
        warn(text)


def one_line(error: BaseException) -> str:
    """Return an error's text on one line."""
    return " ".join(str(error).split())


@contextmanager
def noted(context: Context, what: str, but: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    """Turn an exception of the block into a note: one missing output must not lose the result.

    `what`: the sentence before the reason. A full disk is raised, as the run can resume from its checkpoint once there
    is space; so are exceptions of type `but`.
    """
    try:
        yield
    except Exception as error:
        if full_disk.reason(error) or isinstance(error, but):
            raise
        reason = one_line(error)[:_LONGEST]
        note(context, f"{what}: {reason}" if isinstance(error, Failed) else f"{what}: {type(error).__name__}: {reason}")


@contextmanager
def noted_graph(context: Context) -> Iterator[None]:
    """Note why TensorBoard has no graph of the network if the block fails."""
    try:
        yield
    except Exception as error:
        reason = str(error).partition("\n")[0]
        note(context, "no graph for TensorBoard ({kind}: {reason})", kind=type(error).__name__, reason=reason)
