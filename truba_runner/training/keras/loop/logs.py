"""Turn the logs of training and validation into numbers by name, for callbacks, records and curves.

A metric whose value is an array, with a value for each class, becomes `NAME_0`, `NAME_1` and so on. Two values of the
same name are refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from truba_runner.errors import Failed, nearest
from truba_runner.log import warn
from truba_runner.training.keras.internals.private_names import loss_tracker
from truba_runner.training.summaries.history import History

# A confusion matrix of thousands of classes would need as many columns in history.csv.
_MOST_VALUES = 100
# Prefixes of other splits' metrics.
_SPLITS = ("val_", "test_")


class Logs(dict[str, float]):
    """Numbers by name; each value of an array has its own name."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        """`given`: Keras' logs."""
        super().__init__()
        self.arrays: list[str] = []
        self.left_out: list[str] = []
        for name, value in given.items():
            self._take(name, value)

    def _take(self, name: str, value: Any) -> None:
        import numpy as np

        if type(value) is float:
            self[name] = value
            return
        array = np.asarray(value)
        if array.dtype.kind == "V":  # bfloat16, which NumPy does not know by itself.
            array = array.astype(np.float32)
        if array.dtype.kind not in "biuf" or array.size > _MOST_VALUES:
            self.left_out.append(name)
        elif not array.ndim:
            self[name] = float(array)
        if array.ndim:
            self.arrays.append(name)
        for index in np.ndindex(array.shape) if array.ndim and name not in self.left_out else ():
            self._add(name, "_".join([name, *map(str, index)]), float(array[index]))

    def _add(self, name: str, part: str, value: float) -> None:
        if part in self:
            raise Failed(
                "{name} is reported for each class, and {part} is already the name of a metric. Give one "
                "of them another name.",
                name=name,
                part=part,
            )
        self[part] = value


class Names:
    """A converter of logs that checks the metrics' names at the first step, and warns of values that it leaves out."""

    def __init__(self, model: Any, watched: Iterable[tuple[str, str]]) -> None:
        """`watched`: pairs of a setting and the metric that it names."""
        self._model, self._watched = model, list(watched)
        self._looked = False
        self._warned_of: set[str] = set()

    def read(self, logs: Any) -> Any:
        """Convert Keras' logs for the callbacks.

        Raises:
            truba_runner.errors.Failed: two values have the same name, or a watched metric is not a number.
        """
        if not isinstance(logs, Mapping):
            return logs
        if not self._looked:
            self._looked = True
            _check(self._model, logs)
        values = Logs(logs)
        if values.arrays or values.left_out:
            self._tell(values)
        return values

    def _tell(self, values: Logs) -> None:
        for setting, monitor in self._watched:
            name = next((one for one in values.arrays if monitor in (one, f"val_{one}")), None)
            if name is not None:
                parts = [one for one in values if one.startswith(f"{name}_")]
                # Validation has not run yet: derive its names from the training's.
                valid = [monitor.replace(name, one, 1) for one in parts]
                raise Failed(
                    "{setting}={monitor}: its value is an array, which is neither better nor worse than another. "
                    "{nearest}",
                    setting=setting,
                    monitor=monitor,
                    nearest=nearest(monitor, valid),
                )
        for name in values.left_out:
            if name not in self._warned_of:
                self._warned_of.add(name)
                warn(
                    "the metric {name} is not recorded: it is neither a number nor an array of at most {most}",
                    name=name,
                    most=_MOST_VALUES,
                )


def watched(setting: str, monitor: str, callbacks: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Yield the metrics that checkpoints and callbacks monitor, each after the setting that names it."""
    yield setting, monitor
    for callback in callbacks:
        if isinstance(name := getattr(callback, "monitor", None), str):
            yield f"{type(callback).__name__} monitor", name


def _check(model: Any, logs: Mapping[str, Any]) -> None:
    for name in logs:
        if name in History.COLUMNS or name.startswith(_SPLITS):
            raise Failed(
                "a metric is called {name}, a name that history.csv or result.json already uses: the columns "
                "{columns}, and the metrics of validation (val_…) and test (test_…). Give it another name.",
                name=name,
                columns=", ".join(History.COLUMNS),
            )
    twice = [name for name, count in Counter(_names_of(model)).items() if count > 1 and name in logs]
    if twice:
        raise Failed(
            "two metrics are called {name}, and Keras would report one value for both. Give one of them another "
            "name, as in {{class_name: Mean, config: {{name: other}}}}; loss is the name of the training loss.",
            name=twice[0],
        )


def _names_of(model: Any) -> Iterator[str]:
    """Yield the name of each value of the model's metrics; a name that two values share comes twice."""
    import keras

    loss = loss_tracker(model)
    for metric in model.metrics:
        if metric is loss and not float(keras.ops.convert_to_numpy(metric.count)):
            continue  # Never updated: the job's own train_step tracks its loss itself.
        if not getattr(metric, "built", True):
            continue
        result = metric.result()
        if not isinstance(result, Mapping):
            yield metric.name
            continue
        for name, value in result.items():
            yield from value if isinstance(value, Mapping) else (name,)
        if len(getattr(metric, "metrics", result)) > len(result):
            # Keras added a number to the second metric of a name, and a third had that very name.
            yield from (
                name for name in result if name.rpartition("_")[0] in result and name.rpartition("_")[2].isdigit()
            )
