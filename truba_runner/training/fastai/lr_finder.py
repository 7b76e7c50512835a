"""fastai's learning-rate finder without its temporary file; restores the learner and draws the curve."""

from __future__ import annotations

from typing import Any

from truba_runner.config.recipe import Find
from truba_runner.training import rate_suggestions
from truba_runner.training.backend import Context


def find_rates(context: Context, learner: Any, stage: Find, steps: int) -> dict[str, float | None]:
    """Run the finder and return its suggestions, as `rate_suggestions.keep` does. `steps`: steps an epoch."""
    first, end, number = stage.ramp
    with learner.no_logging():
        learner.fit(number // steps + 1, cbs=_finder_class()(first, end, number))
    rates, losses = list(learner.recorder.lrs), [float(loss) for loss in learner.recorder.losses]
    return rate_suggestions.keep(context, stage, rates, losses)


def _finder_class() -> Any:
    from fastai.callback.schedule import LRFinder, ParamScheduler

    from truba_runner.training.fastai import state

    class Finder(LRFinder):  # type: ignore[misc]
        """LRFinder that keeps weights in memory: only rank 0 has fastai's file, and other ranks would wait forever."""

        # Other callbacks recognise by this name that this is no training.
        name = "lr_finder"

        def before_fit(self) -> None:
            ParamScheduler.before_fit(self)
            self.before, self.best_loss = state.weights(self.learn), float("inf")

        def after_fit(self) -> None:
            self.learn.opt.zero_grad()
            state.give_weights(self.learn, self.before)
            del self.before

    return Finder
