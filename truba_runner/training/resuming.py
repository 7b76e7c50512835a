"""Report a resume from a checkpoint, and refuse one from a checkpoint of another training."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NoReturn

from truba_runner.errors import Failed
from truba_runner.language import _, marked
from truba_runner.runs.checkpoints import Position
from truba_runner.runs.events import Event, Kind
from truba_runner.training.backend import Context

# The keys of a checkpoint's signature, in words.
_NAMES = {
    "batch_size": marked("batch size"),
    "devices": marked("number of devices"),
    "examples": marked("examples"),
    "names_of_the_examples": marked("names of the examples"),
    "nodes": marked("nodes"),
    "precision": marked("precision"),
    "recipe": marked("recipe"),
    "seed": marked("seed"),
}


def tell(context: Context, position: Position, steps: int, since: float, trained: bool = False) -> None:
    """Record a restored position, and print it.

    `steps`: steps in an epoch, 0 if unknown. `since`: `time.perf_counter()` when restoring began. `trained`: all epochs
    are done, but not what follows them, such as the evaluation.
    """
    seconds = round(time.perf_counter() - since, 3)
    context.progress.stand_at(position, steps)
    context.progress.update()
    print(_resumed_from(position, steps, trained, seconds), flush=True)
    if context.rank == 0:
        at = (position.epoch, position.step)
        # A full disk must not stop the run for this one record.
        with suppress(OSError):
            context.run.append_submission(Event(Kind.RESTORED, time.time(), seconds=seconds, position=at))


def _resumed_from(position: Position, steps: int, trained: bool, seconds: float) -> str:
    if trained:
        return _("resumes from the end of the training; restored in {seconds} s", seconds=seconds)
    where = {"epoch": position.epoch + 1, "step": position.step, "seconds": seconds}
    if not steps:
        return _("resumes from epoch {epoch}, step {step}; restored in {seconds} s", **where)
    return _("resumes from epoch {epoch}, step {step} of {steps}; restored in {seconds} s", steps=steps, **where)


def check_format(context: Context, found: object, known: int) -> None:
    """Check that this version can read the newest checkpoint, by its format number.

    Raises:
        truba_runner.errors.Failed: another version of truba_runner wrote it.
    """
    if found != known:
        _refuse(context, _("its format is {found}, but this version of truba_runner reads {known}",
                           found=found, known=known))  # fmt: skip


def check_same(context: Context, then: Mapping[str, Any], now: Mapping[str, Any], variables: str) -> None:
    """Compare signatures of the newest checkpoint and of this training; their key `variables` has the model's.

    Raises:
        truba_runner.errors.Failed: the two signatures differ.
    """
    for name, value in now.items():
        if name != variables and value != then.get(name):
            word = _(_NAMES.get(name, name))
            _refuse(context, _("{name} was {then} then and is {now} now", name=word, then=then.get(name), now=value))
    for index in range(max(len(then[variables]), len(now[variables]))):
        saved, own = (
            ", ".join(map(str, side[variables][index])) if index < len(side[variables]) else _("nothing")
            for side in (then, now)
        )
        if saved != own:
            _refuse(context, _("it has {saved}, where the model has {own} (name, shape, dtype)", saved=saved, own=own))


def _refuse(context: Context, reason: str) -> NoReturn:
    raise Failed(
        "The newest checkpoint in {folder} belongs to another training: {reason}. Undo the change and submit "
        "again, or start a new run with fresh=true (the old one is kept).",
        folder=context.run.checkpoints,
        reason=reason,
    )
