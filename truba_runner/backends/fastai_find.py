"""fastai's learning-rate finder without its temporary file: it leaves the learner as it was, and a picture behind."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

from truba_runner import plots
from truba_runner.backends import Context
from truba_runner.recipe import SUGGESTIONS, Find
from truba_runner.rundir import write_atomically

# fastai's own: so many of the last points are left out, as of a tenth of the first.
_SKIPPED_AT_THE_END = 5
# fastai's own; it stops before where the loss has grown to four times the best.
DEFAULT_STEPS = 100


def find_rates(context: Context, learner: Any, stage: Find, steps: int) -> dict[str, float | None]:
    """Runs the finder, and returns what each of fastai's four ways suggests; None where it finds nothing to suggest.

    `steps` is how many an epoch has. The curve goes to `lr_find_NAME.json` and `plots/lr_find_NAME.png`.
    """
    finder = _finder_class()(**stage.options)
    with learner.no_logging():
        learner.fit(finder.num_it // steps + 1, cbs=finder)
    rates, losses = list(learner.recorder.lrs), [float(loss) for loss in learner.recorder.losses]
    suggested = suggestions(rates, losses, finder.num_it)
    if context.rank == 0:
        told = "  ".join(f"{name} {'nothing' if rate is None else f'{rate:.2e}'}" for name, rate in suggested.items())
        print(f"lr_find {stage.name}: {told}", flush=True)
        curve = {"suggestions": suggested, "learning_rates": rates, "losses": losses}
        try:
            write_atomically(context.run.path / f"lr_find_{stage.name}.json", json.dumps(_finite(curve)).encode())
        except OSError as error:  # What it suggests is in the checkpoints too.
            print(f"lr_find_{stage.name}.json could not be written ({error}); training goes on", file=sys.stderr)
        plots.rate_curve(rates, losses, suggested, context.run.plots, f"lr_find_{stage.name}.png")
    return suggested


def suggestions(rates: list[float], losses: list[float], number: int) -> dict[str, float | None]:
    """What fastai's `lr_find(suggest_funcs=(minimum, steep, valley, slide))` makes of a finder's record."""
    import torch
    from fastai.callback import schedule

    x = torch.tensor(rates[number // 10 : -_SKIPPED_AT_THE_END])
    y = torch.tensor(losses[number // 10 : -_SKIPPED_AT_THE_END])
    broken = torch.nonzero(~torch.isfinite(y)).flatten().tolist()
    x, y = x[: broken[0]] if broken else x, y[: broken[0]] if broken else y
    found: dict[str, float | None] = {}
    for name in SUGGESTIONS:
        try:
            rate = float(getattr(schedule, name)(x, y, number)[0])
        except (IndexError, RuntimeError, ValueError):  # Too few points: the loss has grown at once.
            rate = math.nan
        found[name] = rate if math.isfinite(rate) and rate > 0 else None
    return found


def _finite(curve: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no nan."""
    return {**curve, "losses": [loss if math.isfinite(loss) else None for loss in curve["losses"]]}


def _finder_class() -> Any:
    from fastai.callback.schedule import LRFinder, ParamScheduler

    from truba_runner.backends import fastai_state

    class Finder(LRFinder):  # type: ignore[misc]
        """Remembers the learner in memory: fastai's file is rank 0's alone, and the others wait for it for ever."""

        # By this other callbacks know that it is no training.
        name = "lr_finder"

        def __init__(self, start_lr: float = 1e-7, end_lr: float = 10, num_it: int = DEFAULT_STEPS) -> None:
            super().__init__(start_lr=start_lr, end_lr=end_lr, num_it=num_it)

        def before_fit(self) -> None:
            ParamScheduler.before_fit(self)
            self.before, self.best_loss = fastai_state.weights(self.learn), float("inf")

        def after_fit(self) -> None:
            self.learn.opt.zero_grad()
            fastai_state.give_weights(self.learn, self.before)
            del self.before

    return Finder
