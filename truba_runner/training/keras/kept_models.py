"""Save a model after each epoch and the best one, as the config asks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from truba_runner.config.schema import Checkpoint
from truba_runner.log import print_error
from truba_runner.training.backend import Context
from truba_runner.training.keras.saving import Saving
from truba_runner.training.saver import Best


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
            return {"best": kept.best.value}

        def set_state(self, state: Mapping[str, Any]) -> None:
            """Restore what `get_state` returned."""
            kept.best.value = state["best"]

    return KeptModels()


class _Kept:
    def __init__(self, wanted: Checkpoint, saving: Saving, folder: Path) -> None:
        self._wanted, self._saving, self._folder = wanted, saving, folder
        self.best = Best(wanted)

    def epoch_ended(self, epoch: int, logs: Mapping[str, float]) -> None:
        names = [f"model_{epoch + 1}"] if self._wanted.model_each_epoch else []
        if self._wanted.best_model:
            self.best.print_if_missing(logs)
            names += ["best"] if self.best.improved_by(logs) else []
        for name in names:
            self._save(name)

    def _save(self, name: str) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._saving.save(self._folder, name)
        except Exception as error:  # A full disk may raise an error of Keras' own.
            print_error("{name} could not be saved ({error}); training goes on", name=name, error=error)
