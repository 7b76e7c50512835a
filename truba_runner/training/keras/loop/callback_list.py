"""A CallbackList that calls Resume after all callbacks, and hides from them the steps that are already done."""

from __future__ import annotations

from typing import Any

from truba_runner.training.keras.batches.plan import Plan
from truba_runner.training.keras.loop import logs as keras_logs
from truba_runner.training.keras.loop.resume import Resume, plain


def callback_list(resume: Resume, plan: Plan, callbacks: list[Any], model: Any, **params: Any) -> Any:
    """Return a `CallbackList` to pass to `fit`: Resume runs after all callbacks, whatever their order."""
    import keras

    converter = keras_logs.Names(model, keras_logs.watched("checkpoint.monitor", resume.monitor, callbacks))

    class Hooks(keras.callbacks.CallbackList):  # type: ignore[misc]
        # The first step of the current execution.
        first = 0

        def on_train_begin(self, logs: Any = None) -> None:
            super().on_train_begin(logs)
            resume.train_begin(self.callbacks)

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            super().on_epoch_begin(epoch, logs)
            resume.epoch_begin(epoch)

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self.first = batch
            if not resume.skipping and plan.comes_to(batch):
                super().on_train_batch_begin(batch, logs)

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if resume.skipping:
                resume.skipped()
            else:
                # `batch` is the execution's last step in Keras 3.15, and its first in Keras 3.10.
                last = self.first + model.steps_per_execution - 1
                super().on_train_batch_end(last, converter.read(logs))
                resume.steps_end(last + 1, logs)

        def on_test_begin(self, logs: Any = None) -> None:
            resume.test_begin()
            super().on_test_begin(logs)

        def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
            super().on_test_batch_end(batch, converter.read(logs))
            resume.test_steps_end()

        def on_test_end(self, logs: Any = None) -> None:
            super().on_test_end(converter.read(logs))

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            numbers = converter.read(logs)
            super().on_epoch_end(epoch, numbers)
            resume.epoch_end(epoch, plain(numbers))

        def on_train_end(self, logs: Any = None) -> None:
            super().on_train_end(converter.read(logs))
            resume.train_end()

    return Hooks(callbacks, add_history=True, model=model, **params)
