"""Execute a recipe stage by stage, starting where the checkpoint ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from truba_runner.config.recipe import Find, Fit, Freeze, Rate, Rates, Resize, Stage, can_grow
from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.log import info, print_error
from truba_runner.training.backend import Context
from truba_runner.training.fastai.learner.data import Data
from truba_runner.training.fastai.loop import Loop
from truba_runner.training.fastai.lr_finder import find_rates
from truba_runner.training.fastai.reporter import Reporter
from truba_runner.training.fastai.resume import Resume


class Course:
    """The execution of a recipe's stages."""

    def __init__(
        self, context: Context, learner: Any, data: Data, loop: Loop, reporter: Reporter, resume: Resume
    ) -> None:
        """Store the parts; the caller of `run` installs the loop."""
        self._context, self._learner, self._data = context, learner, data
        self._loop, self._reporter, self._resume = loop, reporter, resume
        self._first_epoch = self._last = 0

    def check(self, stages: Sequence[Stage]) -> None:
        """Check before training that each stage has at least one batch, and that there is a validation set to evaluate.

        Raises:
            Failed: a stage has no batch or a size that its data cannot have, or the validation set is empty.
        """
        loaders, ranks = self._learner.dls, self._loop.ranks.tasks
        train, validation = len(loaders.train_ds), len(loaders.valid_ds)
        wanted = {loaders.train.bs: "train.batch_size"}
        for stage in stages:
            if isinstance(stage, Resize):
                self._data.source(stage.batch_size, size=stage.size)
                wanted[self._data.batch_size(stage.batch_size)] = _("batch_size of the stage resize")
        for size, where in wanted.items():
            if loaders.train.drop_last and train < size * ranks:
                raise _too_few(train, size * ranks, ranks, where)
        if not validation and self._context.experiment.finish.evaluate:
            raise Failed(
                "The validation set is empty: the DataBlock's splitter gives all {train} items to training. Change "
                "it to hold some out, or set finish.evaluate=false, which trains on all of them.",
                train=train,
            )

    def run(self, stages: Sequence[Stage]) -> None:
        """Execute the stages that are not finished yet."""
        self._last = len(stages) - 1
        try:
            for index, stage in enumerate(stages):
                self._do(index, stage)
        finally:
            self._resume.wait()

    def _do(self, index: int, stage: Stage) -> None:
        if isinstance(stage, Freeze):
            self._freeze(stage)
            return
        if isinstance(stage, Resize):
            self._learner.dls = self._data.loaders(stage.size, stage.batch_size)
            return
        epochs = stage.epochs if isinstance(stage, Fit) else 0
        if not self._resume.is_done(index):
            self._resume.stage_begins(index, self._first_epoch)
            if isinstance(stage, Fit):
                self._fit(index, stage)
            else:
                self._find(index, stage)
            self._resume.stage_ends(epochs, may_grow=index == self._last and can_grow(stage))
        self._first_epoch += epochs

    def _freeze(self, stage: Freeze) -> None:
        learner = self._learner
        if stage.frozen and not getattr(learner, "pretrained", True):
            print_error("WARNING: this stage freezes layers that are not pretrained")
        if not stage.frozen:
            learner.unfreeze()
            return
        learner.freeze()
        for parameter in learner.model.parameters():
            if not parameter.requires_grad:
                # fastai's optimizer also steps and decays a frozen parameter that has a gradient.
                parameter.grad = None

    def _find(self, index: int, stage: Find) -> None:
        steps = self._steps(index)
        if self._context.rank == 0:
            info(
                "stage {number}: lr_find {name}, {steps} steps at most",
                number=index + 1,
                name=stage.name,
                steps=stage.ramp[-1],
            )
        with self._loop.on_trial(index):
            self._resume.answers[stage.name] = find_rates(self._context, self._learner, stage, steps)

    def _fit(self, index: int, stage: Fit) -> None:
        steps = self._steps(index)
        self._reporter.stage_begins(index, self._first_epoch, steps)
        if self._context.rank == 0:
            info(
                "stage {number}: {method}, {epochs} epochs of {steps} steps",
                number=index + 1,
                method=stage.method,
                epochs=stage.epochs,
                steps=steps,
            )
        name = "lr_max" if stage.method == "fit_one_cycle" else "lr"
        rates = {} if stage.lr is None else {name: self._rates(stage.lr)}
        with self._loop.watched_by(self._resume, index):
            getattr(self._learner, stage.method)(stage.epochs, **rates, **stage.options)

    def _steps(self, index: int) -> int:
        with self._loop.watched_by(self._loop.watcher, index):
            return steps_of(self._loop)

    def _rates(self, rates: Rates) -> Any:
        high = self._rate(rates.high)
        if rates.low is not None:
            return slice(self._rate(rates.low), high)
        return slice(high) if rates.falling else high

    def _rate(self, rate: Rate) -> float:
        value = rate.resolve(self._resume.answers)
        if value is None:
            raise Failed(
                "train.recipe: {rate} has no value: lr_find {find} has no suggestion of that kind (its curve is in "
                "lr_find_{find}.json). Use another of its suggestions, or a number.",
                rate=rate,
                find=rate.find,
            )
        return value


def steps_of(loop: Loop) -> int:
    """Return the number of steps of a training epoch.

    Raises:
        Failed: the training set has less than one batch.
    """
    if not (steps := loop.steps()):
        loaders, ranks = loop.learner.dls, loop.ranks.tasks
        raise _too_few(len(loaders.train_ds), loaders.train.bs * ranks, ranks, "train.batch_size")
    return steps


def _too_few(items: int, batch: int, ranks: int, where: str) -> Failed:
    """Return the error for a training set of less than one batch; `where`: the setting of the batch size."""
    values = {"items": items, "batch": batch, "where": where}
    if ranks == 1:
        return Failed(
            "The training set has {items} items, but a batch needs {batch}: there is not one full batch. Set "
            "{where} lower.",
            **values,
        )
    return Failed(
        "The training set has {items} items, but a batch of {ranks} processes needs {batch}: there is not one full "
        "batch. Set {where} lower.",
        ranks=ranks,
        **values,
    )
