"""Write the outputs of a fastai run: pictures, tables, predictions and models."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from truba_runner.storage.files import write_atomically, written_by_path
from truba_runner.training import full_disk, plots
from truba_runner.training.backend import Context
from truba_runner.training.fastai import state
from truba_runner.training.fastai.learner import loaders as fastai_loaders
from truba_runner.training.fastai.learner import private_names
from truba_runner.training.fastai.reporter import validation_metrics
from truba_runner.training.notes import note
from truba_runner.training.summaries.writer import SummaryWriter

_SHOWN = 9
_CONFUSION_INCHES = (12.0, 12.0)


def show_batch(context: Context, loaders: Any, writer: SummaryWriter) -> None:
    """Draw a few examples as the network gets them, to `plots/show_batch.png` and TensorBoard."""
    if path := _pyplot(context, "show_batch.png", lambda: loaders.show_batch(max_n=_SHOWN)):
        writer.image("train", "show_batch", 0, path.read_bytes())


def _pyplot(context: Context, name: str, draw: Callable[[], Any]) -> Path | None:
    """Save what fastai draws with pyplot, the only way it draws; None if plots are off or drawing fails (noted)."""
    if not context.experiment.finish.plots:
        return None
    from matplotlib import pyplot

    try:
        draw()
    except Exception as error:
        note(context, "{name} could not be drawn ({kind}: {error})", name=name, kind=type(error).__name__, error=error)
        return None
    finally:
        figure = pyplot.gcf()
        pyplot.close("all")
    return plots.save_png(context.run.plots, name, lambda: figure)


def evaluate(context: Context, learner: Any, result: dict[str, Any]) -> Any:
    """Run once over the validation set; set final metrics, write `predictions.npy` (a classifier's rows sum to 1).

    Return predictions before and after the loss' activation, and labels, for `interpret`; None for a language model.

    Raises:
        truba_runner.training.interrupt.Interrupted: the run was asked to stop.
    """
    import numpy as np
    from fastcore.basics import getcallable, noop

    if fastai_loaders.continues(learner.dls.valid):
        learner.validate()
        result["metrics"].update(validation_metrics(learner))
        note(
            context,
            "predictions.npy is not written: for each word, a language model predicts a value for every word "
            "of its vocabulary",
        )
        return None
    raw, labels = learner.get_preds(dl=learner.dls.valid, act=noop, reorder=False)
    predictions = getcallable(learner.loss_func, "activation")(raw)
    result["metrics"].update(validation_metrics(learner))
    if context.rank == 0:
        with written_by_path(context.run.path / "predictions.npy") as temporary:
            np.save(temporary, np.asarray(predictions.float()))
    result["predictions"], result["predicted"] = "predictions.npy", "validation"
    return raw, predictions, labels


def interpret(context: Context, learner: Any, evaluated: Any, result: dict[str, Any], writer: SummaryWriter) -> None:
    """Draw confusion matrix and top losses, and write the most confused classes, for a single-label classifier.

    fastai's `ClassificationInterpretation` is given the matrix: it would run over the data again to compute it.
    """
    import torch
    from fastai.interpret import ClassificationInterpretation

    raw, _, labels = evaluated
    classes = result.get("vocab")
    if classes is None or raw.ndim != 2 or raw.shape[1] != len(classes) or labels.ndim != 1:
        return
    with learner.loss_not_reduced():
        losses = learner.loss_func(raw, labels)
    loader = learner.dls.valid.new(shuffle=False, drop_last=False)
    interpretation = ClassificationInterpretation(learner, loader, losses)
    matrix = torch.zeros(len(classes), len(classes), dtype=torch.int64)
    matrix.index_put_((labels.long(), raw.argmax(1)), torch.tensor(1), accumulate=True)
    interpretation.confusion_matrix = lambda: matrix.numpy().copy()
    size = max(6.0, min(_CONFUSION_INCHES[0], len(classes) / 2))
    if path := _pyplot(
        context, "confusion_matrix.png", lambda: interpretation.plot_confusion_matrix(figsize=(size, size), dpi=60)
    ):
        writer.image("validation", "confusion_matrix", result["epochs"], path.read_bytes())
    _pyplot(context, "top_losses.png", lambda: interpretation.plot_top_losses(min(_SHOWN, len(losses))))
    confused = [(str(one), str(other), int(count)) for one, other, count in interpretation.most_confused()]
    _write_table(context.run.path / "most_confused.csv", ("actual", "predicted", "count"), confused)
    result["most_confused"] = "most_confused.csv"


def _write_table(path: Path, header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode(errors="backslashreplace"))


# -- models for use --------------------------------------------------------------------------------------------


def architecture(learner: Any) -> str:
    """Return the name of the architecture given to `vision_learner`, else that of the network's class."""
    arch = getattr(learner, "arch", None) or type(learner.model)
    return arch if isinstance(arch, str) else str(getattr(arch, "__name__", arch))


def vocab(learner: Any) -> dict[str, list[str]]:
    """Return the classes in order under the key `vocab`; empty if there are none, or for a language model's words."""
    found = _vocabularies(learner)
    return {"vocab": found[-1]} if found and not fastai_loaders.continues(learner.dls.train) else {}


def _vocabularies(learner: Any) -> list[list[str]]:
    """Return all vocabularies, the classes' last, after those of inputs (a text's words)."""
    found = fastai_loaders.names(learner.dls)["classes"] or []
    return found if found and isinstance(found[0], list) else [found] if found else []


def safe_model(learner: Any) -> dict[str, Any]:
    """Return what prediction needs, readable by `torch.load(weights_only=True)`; docs/fastai.md lists the keys."""
    found, loss = _vocabularies(learner), state.weights_of_loss(learner)
    about: dict[str, Any] = {"vocab": found[-1] if found else [], "arch": architecture(learner)}
    if len(found) > 1:
        about["input_vocab"] = found[:-1]
    if loss:
        about["loss"] = state.plain(loss)
    if columns := fastai_loaders.columns(learner.dls):
        about["columns"] = state.plain(columns)
    return {"model": state.plain(learner.model.state_dict()), **about}


def save_safely(path: Path, learner: Any) -> None:
    """Write `safe_model` to `path` atomically."""
    import torch

    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with written_by_path(path) as temporary, temporary.open("wb") as file:
        torch.save(safe_model(learner), file)


def keep_models(context: Context, learner: Any, epoch: int, best: bool) -> None:
    """Save an epoch's model to `checkpoints/models/` if the config asks for it; note a failed write and continue."""
    wanted = context.experiment.checkpoint
    names = [f"model_{epoch}.pt"] if wanted.model_each_epoch else []
    names += ["best.pt"] if wanted.best_model and best else []
    for name in names if context.rank == 0 else ():
        try:
            save_safely(context.run.models / name, learner)
        except Exception as error:
            note(context, "{name} could not be saved ({error}); training continues", name=name, error=error)


def save_models(context: Context, learner: Any, result: dict[str, Any]) -> None:
    """Write `model.pt`, safe to load anywhere, and `export.pkl` for fastai's `load_learner`, which runs code."""
    import cloudpickle

    if not context.experiment.checkpoint.save_model:
        return
    result["model"] = "model.pt"
    save_safely(context.run.path / "model.pt", learner)
    # Include the job's own functions: whoever loads the file has no module of that name.
    cloudpickle.register_pickle_by_value(context.job)
    try:
        _export(context.run.path / "export.pkl", learner)
        result["export"] = "export.pkl"
    except Exception as error:
        if full_disk.reason(error):
            raise
        # A callback or a transform cannot be pickled; model.pt is written already.
        kind = type(error).__name__
        note(context, "export.pkl could not be written ({kind}: {error})", kind=kind, error=error)
    finally:
        cloudpickle.unregister_pickle_by_value(context.job)


def _export(path: Path, learner: Any) -> None:
    """Do what fastai's `Learner.export` does, but restore data and optimizer if it fails, which fastai does not."""
    import cloudpickle
    import torch

    loaders, optimizer = learner.dls, learner.opt
    private_names.drop_batch(learner)
    learner.dls, learner.opt = loaders.new_empty(), None
    try:
        with warnings.catch_warnings(), written_by_path(path) as temporary, temporary.open("wb") as file:
            warnings.simplefilter("ignore")
            torch.save(learner, file, pickle_module=cloudpickle, pickle_protocol=2)
    finally:
        learner.dls, learner.opt = loaders, optimizer
