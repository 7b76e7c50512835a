"""Evaluation and predictions after a training: numbers for the result, and a file that plain NumPy reads.

| what the network gives | file |
|---|---|
| one array | `predictions.npy` |
| several, in a dict, a list or a tuple | `predictions.npz`, an array an output, by its name |
| rows of different lengths | `predictions.npz`: `NAME_values`, all rows in one, and `NAME_row_lengths` |
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from truba_runner.language import _
from truba_runner.training import full_disk
from truba_runner.training.backend import Context
from truba_runner.training.keras.batches.epochs import evaluated
from truba_runner.training.keras.batches.plan import Plan
from truba_runner.training.keras.devices.own_methods import has_call, has_own
from truba_runner.training.keras.loop.logs import Logs
from truba_runner.training.keras.loop.reporter import loss_first
from truba_runner.training.keras.loop.resume import Resume
from truba_runner.training.notes import note, noted


def can_evaluate(model: Any) -> bool:
    """Whether a step of evaluation has something to call: a GAN often has training steps alone."""
    return has_call(model) or has_own(model, "test_step")


def evaluate_and_predict(
    context: Context, model: Any, plans: dict[str, Plan], result: dict[str, Any], resume: Resume
) -> dict[str, Any] | None:
    """On `test`, else on `validation`: metrics, named after the split, join the result's; predictions go to a file.

    Returns them by the outputs' names; None where there is no such split, or the config wants none. What cannot be made
    is left out, with a note.
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
    context: Context,
    model: Any,
    plan: Plan,
    split: str,
    result: dict[str, Any],
    resume: Resume,
    callbacks: list[Any],
) -> None:
    if not can_evaluate(model):
        note(context, _("the network has neither call() nor test_step(): it is not evaluated"))
        return
    if "evaluation" not in resume.result:
        metrics = Logs(model.evaluate(plan.dataset, verbose=0, return_dict=True, callbacks=callbacks))
        resume.result["evaluation"] = {name: metrics[name] for name in sorted(metrics, key=loss_first)}
    prefix = {"test": "test", "validation": "val"}[split]
    result["metrics"].update({f"{prefix}_{name}": value for name, value in resume.result["evaluation"].items()})


def _predict(context: Context, model: Any, plan: Plan, callbacks: list[Any]) -> dict[str, Any] | None:
    if not has_call(model) and not has_own(model, "predict_step"):
        note(context, _("the network has neither call() nor predict_step(): there are no predictions"))
        return None
    # For prediction Keras unrolls all steps of an execution, and would compile for longer than it predicts.
    model.steps_per_execution, model.jit_compile = 1, False
    return by_name(model.predict(plan.dataset, verbose=0, callbacks=callbacks), getattr(model, "output_names", None))


def by_name(predictions: Any, names: list[str] | None) -> dict[str, Any]:
    """Each output by its name; one alone is called `predictions`. `names`: those of a list of outputs."""
    if not isinstance(predictions, (Mapping, list, tuple)):
        return {"predictions": predictions}
    if isinstance(predictions, Mapping):
        return dict(_flat("", predictions))
    named = names if names and len(names) == len(predictions) and len(set(names)) == len(names) else None
    numbered = [f"output_{index}" for index in range(len(predictions))]
    return dict(_flat("", dict(zip(named or numbered, predictions, strict=True))))


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The arrays of a structure: `decoder/mean`, `decoder/0`."""
    if isinstance(value, (list, tuple)):
        value = {str(index): item for index, item in enumerate(value)}
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _flat(f"{path}/{name}" if path else str(name), item)
    elif value is not None:
        yield path, value


def save(folder: Path, predictions: dict[str, Any]) -> str:
    """Writes the file and returns its name."""
    import numpy as np

    arrays = {name: array for output, value in predictions.items() for name, array in _arrays(output, value)}
    alone = list(predictions) == list(arrays) == ["predictions"]
    name = "predictions.npy" if alone else "predictions.npz"
    with full_disk.whole(folder / name) as beside:
        if alone:
            np.save(beside, arrays["predictions"])
        else:
            _save_npz(beside, arrays)
    return name


def _save_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """As numpy.savez, which has parameters of its own that an output may be called like."""
    import numpy as np

    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _arrays(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What NumPy alone can read back."""
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
    """An array of NumPy's own types: bfloat16 is none, and text would need pickle."""
    import numpy as np

    array = np.asarray(value)
    if array.dtype.kind == "V":
        return array.astype(np.float32)
    return array.astype("S") if array.dtype.kind == "O" else array
