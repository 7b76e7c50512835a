"""Save a model after each epoch and the best one, as the config asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from truba_runner.log import print_error
from truba_runner.training.backend import Context
from truba_runner.training.keras.saving import Saving
from truba_runner.training.saver import Best


def kept_models(context: Context, saving: Saving) -> Any:
    """Return a callback like Keras' ModelCheckpoint that writes its files atomically."""
    import keras

    wanted, folder, best = context.experiment.checkpoint, context.run.models, Best(context.experiment.checkpoint)

    class KeptModels(keras.callbacks.Callback):  # type: ignore[misc]
        """Callback that saves to `checkpoints/models/`; a failed write does not stop the training."""

        def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
            """Save this epoch's model as the config asks."""
            names = [f"model_{epoch + 1}"] if wanted.model_each_epoch else []
            if wanted.best_model:
                best.print_if_missing(logs or {})
                names += ["best"] if best.improved_by(logs or {}) else []
            for name in names:
                try:
                    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                    saving.save(folder, name)
                except Exception as error:  # A full disk may raise an error of Keras' own.
                    print_error("{name} could not be saved ({error}); training continues", name=name, error=error)

        def get_state(self) -> dict[str, Any]:
            """Return the state that a checkpoint needs: the best metric so far."""
            return {"best": best.value}

        def set_state(self, state: Mapping[str, Any]) -> None:
            """Restore what `get_state` returned."""
            best.value = state["best"]

    return KeptModels()
