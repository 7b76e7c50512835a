"""Write a run's TensorBoard curves, with the same names and steps in both frameworks and after any restart."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from truba_runner.training.backend import Context
from truba_runner.training.summaries import writer as writer
from truba_runner.training.summaries.gpu_use import GpuUse
from truba_runner.training.summaries.profiles import Profile, Profiler
from truba_runner.training.summaries.writer import SummaryWriter


class Curves:
    """The curves of a training, written to a SummaryWriter.

    | x axis | train | validation |
    |---|---|---|
    | a step, over all epochs | `batch_loss`, `learning_rate`, `examples_per_second`, with GPUs `gpu_…` | |
    | an epoch | `epoch_loss`, `epoch_METRIC`, `epoch_learning_rate` | `epoch_loss`, `epoch_METRIC` |
    """

    def __init__(
        self, writer: SummaryWriter, every_steps: int | None, gpu: GpuUse, profile: Profile | None = None
    ) -> None:
        """`every_steps`: steps between two points of the curves by step; None: no curves by step."""
        self.writer = writer
        self._every, self._gpu, self._profile = every_steps, gpu, profile
        # 0: unknown; then `steps_per_second` replaces `examples_per_second`.
        self.examples_per_step = 0
        self._steps = self._steps_since = 0
        self._since = 0.0

    def begins(self, steps: int) -> None:
        """Record the beginning of an epoch, or a resume within one; `steps`: trained so far, over all epochs."""
        self._steps = self._steps_since = steps
        self._since = time.perf_counter()

    def trained(self, steps: int, values: Callable[[], Mapping[str, float]]) -> None:
        """Write a point if one is due; call after each execution. `steps`: trained so far; `values`: called if due."""
        before, self._steps = self._steps, steps
        if self._profile:
            self._profile.trained(steps)
        if not self._every or steps // self._every == before // self._every or not self.writer.enabled:
            return
        now = time.perf_counter()
        speed = (steps - self._steps_since) / max(now - self._since, 1e-9)
        name = "examples_per_second" if self.examples_per_step else "steps_per_second"
        values_now = {**values(), name: speed * (self.examples_per_step or 1), **self._gpu.values()}
        self.writer.scalars("train", steps, values_now)
        self._steps_since, self._since = steps, time.perf_counter()

    def epoch_ends(self, epoch: int, metrics: Mapping[str, float], learning_rate: float) -> None:
        """Write the points of an epoch, counted from 1; `metrics` have the names of `history.csv`."""
        if not self.writer.enabled:
            return
        train = {f"epoch_{name}": value for name, value in metrics.items() if not name.startswith("val_")}
        self.writer.scalars("train", epoch, {**train, "epoch_learning_rate": learning_rate})
        validation = {
            f"epoch_{name.removeprefix('val_')}": value for name, value in metrics.items() if name.startswith("val_")
        }
        if validation:
            self.writer.scalars("validation", epoch, validation)


@contextmanager
def opened(context: Context, peak_bytes: Callable[[], float] | None, profiler: Profiler) -> Iterator[Curves]:
    """Yield the curves of a run; on exit, normal or not, all points are copied to the shared disk.

    `peak_bytes`: the parameter of `GpuUse`.
    """
    settings, gpu = context.experiment.tensorboard, GpuUse(peak_bytes)
    with writer.opened(context, gpu.look if gpu.watched else None) as made:
        profile = None
        if settings.profile_steps and made.enabled:
            profile = Profile(made.folder / "train", settings.profile_steps, profiler)
        try:
            yield Curves(made, settings.every_steps, gpu, profile)
        finally:
            if profile:
                profile.close()
