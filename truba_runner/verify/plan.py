"""What is tried of an experiment: how it is shortened, and where it is broken off. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from truba_runner.config import recipe
from truba_runner.config.schema import Checkpoint, Experiment, Finish, TensorBoard, Train

TRAINING, VALIDATION, EPOCH_END = "training", "validation", "end"
# Executions of each epoch and validation, and after how many of them a checkpoint is saved.
_EXECUTIONS, _SAVED_AFTER = 5, 2
_EPOCHS, _EPOCHS_OF_A_STAGE = 3, 2
# All from the first break on, and that which is saved for the sake of it.
_CHECKPOINTS = 6


@dataclass(frozen=True)
class Break:
    """Where a training is broken off; epochs and steps count from 1.

    In the midst of an epoch's training it is killed, once the checkpoint of the position `saved` is written. In its
    validation and at its end it gets the signal that Slurm sends before a time limit.
    """

    kind: str
    epoch: int
    step: int = 0
    saved: tuple[int, int] = (0, 0)


def most_steps(train: Train) -> int:
    """Of an epoch, and of a validation."""
    return _EXECUTIONS * train.steps_per_execution


def shortened(experiment: Experiment) -> Experiment:
    """The same with few epochs, and saved within them; nothing else is kept of it."""
    train, checkpoint = experiment.train, experiment.checkpoint
    if train.recipe:
        train = replace(train, recipe=recipe.shortened(train.recipe, _EPOCHS_OF_A_STAGE))
    else:
        train = replace(train, epochs=min(train.epochs, _EPOCHS))
    if length := getattr(train, "steps_per_epoch", None):
        shorter: dict[str, Any] = {"steps_per_epoch": _few(length, train.steps_per_execution)}
        train = replace(train, **shorter)
    saved = Checkpoint(
        save_model=False,
        every_steps=_SAVED_AFTER * train.steps_per_execution,
        every_minutes=None,
        keep=_CHECKPOINTS,
        monitor=checkpoint.monitor,
        mode=checkpoint.mode,
        strict=checkpoint.strict,
    )
    return replace(
        experiment,
        train=train,
        checkpoint=saved,
        finish=Finish(evaluate=False, plots=False),
        tensorboard=TensorBoard(enabled=False),
    )


def _few(steps: int, execution: int) -> int:
    """A length for epochs that divides `steps`: what is gone through in whole epochs still is. Executions are whole."""
    least = (_SAVED_AFTER + 1) * execution
    return next((few for few in range(least, steps, execution) if steps % few == 0), steps)


def breaks(train: Train, steps: Mapping[int, Sequence[int]], saves: bool, validated: Sequence[int]) -> list[Break]:
    """In the last epoch but one, so that epochs end before the first break and after the last.

    `steps`: of each epoch those that were told of, all counted from 1; `saves`: whether there are checkpoints in the
    midst of an epoch; `validated`: the epochs with a validation.
    """
    last = max(steps, default=0)
    epoch = max(1, last - 1)
    told_of = steps.get(epoch, [])
    saved = next((step for step in told_of if step >= _SAVED_AFTER * train.steps_per_execution), 0) if saves else 0
    later = [step for step in told_of if step > saved]
    found = []
    if later and (saved or epoch > 1):
        found.append(Break(TRAINING, epoch, later[0] if saved else later[-1], (epoch - 1, saved)))
    if epoch in validated:
        found.append(Break(VALIDATION, epoch, told_of[-1]))
    if epoch < last:
        found.append(Break(EPOCH_END, epoch))
    return found
