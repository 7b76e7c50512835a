"""Shorten an experiment for its verification, and plan where to interrupt it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from truba_runner.config import recipe
from truba_runner.config.schema import Checkpoint, Experiment, Finish, TensorBoard, Train

TRAINING, VALIDATION, EPOCH_END = "training", "validation", "end"
# Executions in each epoch and validation, and the number after which a checkpoint is saved.
_EXECUTIONS, _SAVED_AFTER = 5, 2
_EPOCHS, _EPOCHS_OF_A_STAGE = 3, 2
# Enough to keep all checkpoints from the first break on, and the one from which that break resumes.
_CHECKPOINTS = 6


@dataclass(frozen=True)
class Break:
    """Where a training is interrupted; epochs and steps count from 1.

    Within an epoch's training steps it is killed, once the checkpoint of the position `saved` is written. In a
    validation and at an epoch's end it gets the signal that Slurm sends before a time limit.
    """

    kind: str
    epoch: int
    step: int = 0
    saved: tuple[int, int] = (0, 0)


def most_steps(train: Train) -> int:
    """Return the limit on the steps of an epoch and of a validation."""
    return _EXECUTIONS * train.steps_per_execution


def shortened(experiment: Experiment) -> Experiment:
    """Return the experiment with few epochs, checkpoints within them, and no other output."""
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
    """Return a short epoch length, in whole executions, that divides `steps`; so whole passes over the data remain."""
    least = (_SAVED_AFTER + 1) * execution
    return next((few for few in range(least, steps, execution) if steps % few == 0), steps)


def breaks(train: Train, steps: Mapping[int, Sequence[int]], saves: bool, validated: Sequence[int]) -> list[Break]:
    """Return the breaks, in the last epoch but one, so that an epoch ends before the first and after the last.

    `steps`: the reported steps of each epoch, all counted from 1; `saves`: whether there are checkpoints within
    epochs; `validated`: the epochs with a validation.
    """
    last = max(steps, default=0)
    epoch = max(1, last - 1)
    epoch_steps = steps.get(epoch, [])
    saved = next((step for step in epoch_steps if step >= _SAVED_AFTER * train.steps_per_execution), 0) if saves else 0
    later = [step for step in epoch_steps if step > saved]
    planned = []
    if later and (saved or epoch > 1):
        planned.append(Break(TRAINING, epoch, later[0] if saved else later[-1], (epoch - 1, saved)))
    if epoch in validated:
        planned.append(Break(VALIDATION, epoch, epoch_steps[-1]))
    if epoch < last:
        planned.append(Break(EPOCH_END, epoch))
    return planned
