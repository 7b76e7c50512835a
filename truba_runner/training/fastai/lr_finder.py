"""fastai's learning-rate finder without its temporary file: it leaves the learner as it was, and a picture behind."""

from __future__ import annotations

from typing import Any

from truba_runner.config.recipe import Find
from truba_runner.training import rate_suggestions
from truba_runner.training.backend import Context


def find_rates(context: Context, learner: Any, stage: Find, steps: int) -> dict[str, float | None]:
    """Runs the finder, and returns what each of fastai's four ways suggests; None where it finds nothing to suggest.

    `steps` is how many an epoch has. The curve goes to `lr_find_NAME.json` and `plots/lr_find_NAME.png`.
    """
    first, end, number = stage.ramp
    with learner.no_logging():
        learner.fit(number // steps + 1, cbs=_finder_class()(first, end, number))
    rates, losses = list(learner.recorder.lrs), [float(loss) for loss in learner.recorder.losses]
    return rate_suggestions.keep(context, stage, rates, losses)


def _finder_class() -> Any:
    from fastai.callback.schedule import LRFinder, ParamScheduler

    from truba_runner.training.fastai import state

    class Finder(LRFinder):  # type: ignore[misc]
        """Remembers the learner in memory: fastai's file is rank 0's alone, and the others wait for it for ever."""

        # By this other callbacks know that it is no training.
        name = "lr_finder"

        def before_fit(self) -> None:
            ParamScheduler.before_fit(self)
            self.before, self.best_loss = state.weights(self.learn), float("inf")

        def after_fit(self) -> None:
            self.learn.opt.zero_grad()
            state.give_weights(self.learn, self.before)
            del self.before

    return Finder
