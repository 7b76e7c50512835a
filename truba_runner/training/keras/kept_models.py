"""Save a model after each epoch and the best one, as the config asks."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from truba_runner.config.schema import Checkpoint
from truba_runner.errors import nearest
from truba_runner.language import _
from truba_runner.runs.checkpoints import is_better
from truba_runner.training.backend import Context
from truba_runner.training.keras.saving import Saving


def kept_models(context: Context, saving: Saving) -> Any:
    """Return a callback like Keras' ModelCheckpoint that writes its files atomically."""
    import keras

    kept = _Kept(context.experiment.checkpoint, saving, context.run.models)

    class KeptModels(keras.callbacks.Callback):  # type: ignore[misc]
        """Callback that saves to `checkpoints/models/`; a failed write does not stop the training."""

        def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
            """Save this epoch's model as the config asks."""
            kept.epoch_ended(epoch, logs or {})

        def get_state(self) -> dict[str, Any]:
            """Return the state that a checkpoint needs: the best metric so far."""
            return {"best": kept.best}

        def set_state(self, state: Mapping[str, Any]) -> None:
            """Restore what `get_state` returned."""
            kept.best = state["best"]

    return KeptModels()


class _Kept:
    def __init__(self, wanted: Checkpoint, saving: Saving, folder: Path) -> None:
        self._wanted, self._saving, self._folder = wanted, saving, folder
        self.best: float | None = None

    def epoch_ended(self, epoch: int, logs: Mapping[str, float]) -> None:
        names = [f"model_{epoch + 1}"] if self._wanted.model_each_epoch else []
        if self._wanted.best_model and self._is_better(logs):
            names.append("best")
        for name in names:
            self._save(name)

    def _is_better(self, logs: Mapping[str, float]) -> bool:
        monitor = self._wanted.monitor
        if monitor not in logs:
            _tell(
                _(
                    "checkpoint.monitor={monitor}: no such metric. {nearest}",
                    monitor=monitor,
                    nearest=nearest(monitor, logs),
                )
            )
            return False
        if not is_better(logs[monitor], self.best, self._wanted.mode):
            return False
        self.best = float(logs[monitor])
        return True

    def _save(self, name: str) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._saving.save(self._folder, name)
        except Exception as error:  # A full disk may raise an error of Keras' own.
            _tell(_("{name} could not be saved ({error}); training goes on", name=name, error=error))


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
