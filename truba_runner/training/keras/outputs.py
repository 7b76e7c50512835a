"""Evaluate and predict after training: metrics for the result, and predictions in a file that plain NumPy reads.

| output of the network | file |
|---|---|
| one array | `predictions.npy` |
| several, in a dict, list or tuple | `predictions.npz`, one array per output, by its name |
| rows of different lengths | `predictions.npz`: `NAME_values`, all rows concatenated, and `NAME_row_lengths` |
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from truba_runner.language import _
from truba_runner.older_python import zip_equal
from truba_runner.storage.files import written_by_path
from truba_runner.training.backend import Context
from truba_runner.training.keras.batches.epochs import evaluated
from truba_runner.training.keras.batches.plan import Plan
from truba_runner.training.keras.internals.own_methods import has_call, has_own
from truba_runner.training.keras.loop.logs import Logs
from truba_runner.training.keras.loop.reporter import loss_first
from truba_runner.training.keras.loop.resume import Resume
from truba_runner.training.notes import note, noted


def can_evaluate(model: Any) -> bool:
    """Whether the model has call() or test_step(); a GAN often has only a training step."""
    return has_call(model) or has_own(model, "test_step")


def evaluate_and_predict(
    context: Context, model: Any, plans: dict[str, Plan], result: dict[str, Any], resume: Resume
) -> dict[str, Any] | None:
    """Evaluate and predict `test`, else `validation`: add metrics named after the split to `result`, write predictions.

    Return the predictions by output name; None if there are none, no such split, or `finish.evaluate` is off. What
    fails is left out, with a note.
    """
    split = "test" if "test" in plans else "validation"
    if split not in plans or not context.experiment.finish.evaluate:
        return None
    kept = None
    first, last = evaluated(plans[split])
    with resume.after_training() as attentive:
        callbacks = [*first, *attentive, *last]
        with noted(context, _("the network could not be evaluated on {split}", split=split)):
            _evaluate(context, model, plans[split], split, result, resume, callbacks)
        with noted(context, _("there are no predictions of {split}", split=split)):
            predictions = _predict(context, model, plans[split], callbacks)
            if predictions is not None:
                result["predictions"], result["predicted"] = save(context.run.path, predictions), split
                kept = predictions
    return kept


def _evaluate(
    context: Context, model: Any, plan: Plan, split: str, result: dict[str, Any], resume: Resume, callbacks: list[Any]
) -> None:
    if not can_evaluate(model):
        note(context, "the network has neither call() nor test_step(): it is not evaluated")
        return
    if "evaluation" not in resume.result:
        metrics = Logs(model.evaluate(plan.dataset, verbose=0, return_dict=True, callbacks=callbacks))
        resume.result["evaluation"] = {name: metrics[name] for name in sorted(metrics, key=loss_first)}
    prefix = {"test": "test", "validation": "val"}[split]
    result["metrics"].update({f"{prefix}_{name}": value for name, value in resume.result["evaluation"].items()})


def _predict(context: Context, model: Any, plan: Plan, callbacks: list[Any]) -> dict[str, Any] | None:
    if not has_call(model) and not has_own(model, "predict_step"):
        note(context, "the network has neither call() nor predict_step(): there are no predictions")
        return None
    # For prediction Keras unrolls all steps of an execution, and compiling would take longer than predicting.
    model.steps_per_execution, model.jit_compile = 1, False
    return by_name(model.predict(plan.dataset, verbose=0, callbacks=callbacks), getattr(model, "output_names", None))


def by_name(predictions: Any, names: list[str] | None) -> dict[str, Any]:
    """Return predictions by output name, `predictions` for a single output; `names`: names for a list of outputs."""
    if not isinstance(predictions, (Mapping, list, tuple)):
        return {"predictions": predictions}
    if isinstance(predictions, Mapping):
        return dict(_flat("", predictions))
    named = names if names and len(names) == len(predictions) and len(set(names)) == len(names) else None
    numbered = [f"output_{index}" for index in range(len(predictions))]
    return dict(_flat("", dict(zip_equal(named or numbered, predictions))))


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield path and array of each array in a structure; paths are like `decoder/mean` or `decoder/0`."""
    if isinstance(value, (list, tuple)):
        value = {str(index): item for index, item in enumerate(value)}
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _flat(f"{path}/{name}" if path else str(name), item)
    elif value is not None:
        yield path, value


def save(folder: Path, predictions: dict[str, Any]) -> str:
    """Write the predictions to a file in `folder` and return its name."""
    import numpy as np

    arrays = {name: array for output, value in predictions.items() for name, array in _arrays(output, value)}
    alone = list(predictions) == list(arrays) == ["predictions"]
    name = "predictions.npy" if alone else "predictions.npz"
    with written_by_path(folder / name) as temporary:
        if alone:
            np.save(temporary, arrays["predictions"])
        else:
            _save_npz(temporary, arrays)
    return name


def _save_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write an .npz file without numpy.savez, one of whose parameters may have the name of an output."""
    import numpy as np

    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _arrays(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the names and arrays that store a value so that NumPy alone can read them."""
    import tensorflow as tf

    if isinstance(value, tf.RaggedTensor):
        yield f"{name}_values", _plain(value.flat_values)
        for depth, lengths in enumerate(value.nested_row_lengths()):
            yield f"{name}_row_lengths" if not depth else f"{name}_row_lengths_{depth + 1}", _plain(lengths)
    elif isinstance(value, tf.SparseTensor):
        yield name, _plain(tf.sparse.to_dense(value))
    else:
        yield name, _plain(value)


def _plain(value: Any) -> Any:
    """Return an array of NumPy's own types: bfloat16 is not one, and text objects would need pickle."""
    import numpy as np

    array = np.asarray(value)
    if array.dtype.kind == "V":
        return array.astype(np.float32)
    return array.astype("S") if array.dtype.kind == "O" else array
