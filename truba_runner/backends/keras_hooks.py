"""Where Keras' loops give the exact resume its say: after all callbacks, and for steps that are done before them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from truba_runner.backends import keras_logs
from truba_runner.interrupt import Interrupted, Interruption
from truba_runner.language import _

if TYPE_CHECKING:
    from truba_runner.backends.keras_plan import Plan
    from truba_runner.backends.keras_resume import Resume


def callback_list(resume: Resume, plan: Plan, callbacks: list[Any], model: Any, **params: Any) -> Any:
    """What `fit` is given for `callbacks`: a list of Keras' own kind, so that no callback's place in it matters."""
    import keras

    told = keras_logs.Names(model, keras_logs.watched("checkpoint.monitor", resume.monitor, callbacks))

    class Hooks(keras.callbacks.CallbackList):  # type: ignore[misc]
        def on_train_begin(self, logs: Any = None) -> None:
            super().on_train_begin(logs)
            resume.train_begin(self.callbacks)

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            super().on_epoch_begin(epoch, logs)
            resume.epoch_begin(epoch)

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if not resume.skipping and plan.comes_to(batch):
                super().on_train_batch_begin(batch, logs)

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if resume.skipping:
                resume.skipped()
            else:
                super().on_train_batch_end(batch, told.read(logs))
                resume.steps_end(batch + 1, logs)

        def on_test_begin(self, logs: Any = None) -> None:
            resume.test_begin()
            super().on_test_begin(logs)

        def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
            super().on_test_batch_end(batch, told.read(logs))
            resume.test_steps_end()

        def on_test_end(self, logs: Any = None) -> None:
            super().on_test_end(told.read(logs))

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            numbers = told.read(logs)
            super().on_epoch_end(epoch, numbers)
            resume.epoch_end(epoch, plain(numbers))

        def on_train_end(self, logs: Any = None) -> None:
            super().on_train_end(told.read(logs))
            resume.train_end()

    return Hooks(callbacks, add_history=True, model=model, **params)


def attentive(interruption: Interruption) -> Any:
    """A callback for evaluation and prediction after training, which raises `Interrupted` once it is asked for."""
    import keras

    def look(batch: int, logs: Any = None) -> None:
        if interruption.requested:
            raise Interrupted

    callback = keras.callbacks.Callback()
    callback.on_test_batch_end = callback.on_predict_batch_end = look
    return callback


def plain(logs: Any) -> dict[str, Any]:
    """What a step returned, as numbers and arrays that a checkpoint can hold."""
    return {name: _plain(value) for name, value in (logs or {}).items()}


def _plain(value: Any) -> Any:
    import numpy as np

    if value is None or isinstance(value, str):
        return value
    array = np.asarray(value)
    return array if array.ndim else float(array)


def flush_event_files(callbacks: list[Any]) -> None:
    """Lets TensorBoard's callbacks write what they hold back; a full disk stops no training."""
    import keras
    import tensorflow as tf

    writers = [callback._writers for callback in callbacks if isinstance(callback, keras.callbacks.TensorBoard)]
    for writer in (writer for named in writers for writer in named.values()):
        try:
            writer.flush()
        except tf.errors.OpError as error:
            print(
                _("TensorBoard's event file could not be written ({message}); training goes on", message=error.message),
                flush=True,
            )
