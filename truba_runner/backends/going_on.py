"""What a backend says when a run goes on from a checkpoint, and when it must not."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import NoReturn

from truba_runner.backends import Context
from truba_runner.checkpoint import Position
from truba_runner.errors import Failed


def tell(context: Context, position: Position, steps: int, since: float, trained: bool = False) -> None:
    """Puts a restored position on record, and in the log.

    `steps`: of an epoch, 0 where that is not known. `since`: `time.perf_counter()` when restoring began. `trained`: all
    epochs are done, and what comes after them is not.
    """
    seconds = round(time.perf_counter() - since, 3)
    context.progress.stand_at(position, steps)
    context.progress.update()
    where = f"epoch {position.epoch + 1}, step {position.step}" + (f" of {steps}" if steps else "")
    print(f"goes on from {'the end of the training' if trained else where}; restored in {seconds} s", flush=True)
    if context.rank == 0:
        event = {"event": "restored", "time": time.time(), "seconds": seconds}
        # Where the disk is full this one record is not worth the run.
        with suppress(OSError):
            context.run.append_submission({**event, "position": [position.epoch, position.step]})


def refuse(context: Context, reason: str) -> NoReturn:
    """Ends a run whose newest checkpoint is of another training.

    Raises:
        truba_runner.errors.Failed: always.
    """
    raise Failed(
        f"The newest checkpoint in {context.run.checkpoints} is of another training: {reason}. Take the "
        "change back and submit again, or start anew beside it with fresh=true."
    )
