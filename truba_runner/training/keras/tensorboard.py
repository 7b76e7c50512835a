"""Write a Keras training's graph, profile and confusion matrix for TensorBoard, and measure GPU memory."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from truba_runner.older_python import zip_equal
from truba_runner.training import plots
from truba_runner.training.backend import Context
from truba_runner.training.notes import noted_graph
from truba_runner.training.summaries.writer import SummaryWriter


def peak_bytes(devices: Sequence[str]) -> Callable[[], float] | None:
    """Return a function that returns the peak memory use in bytes of the fullest GPU; None without GPUs."""
    import tensorflow as tf

    gpus = [device for device in devices if device.startswith("GPU")]
    if not gpus:
        return None
    return lambda: max(float(tf.config.experimental.get_memory_info(gpu)["peak"]) for gpu in gpus)


def write_graph(context: Context, writer: SummaryWriter, model: Any) -> None:
    """Write the layers as Keras has them and the operations of a forward pass; note why a model has no graph."""
    import tensorflow as tf
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    with noted_graph(context):
        # The plugin's name for a Keras model; format version 1.
        metadata = SummaryMetadata(plugin_data={"plugin_name": "graph_keras_model", "content": b"1"})
        text = TensorProto(dtype=DT_STRING, tensor_shape={}, string_val=[model.to_json().encode()])
        layers = Summary.Value(tag="keras", metadata=metadata, tensor=text)
        writer.add("train", 0, summary=Summary(value=[layers]))
        inputs = [tf.TensorSpec(given.shape, given.dtype) for given in model.inputs]
        forward = tf.function(lambda given: model(given, training=False))
        graph = forward.get_concrete_function(inputs if len(inputs) > 1 else inputs[0]).graph
        writer.add("train", 0, graph_def=graph.as_graph_def().SerializeToString())


class StepProfiler:
    """TensorFlow's profiler, with a mark for each step."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._folder = ""
        self._number = 0
        self._mark: Any = None

    def start(self) -> None:
        """Profile from the next step on."""
        import tensorflow as tf

        # A temporary folder: the profiler also writes an empty event file, after which TensorBoard would not read ours.
        self._folder = tempfile.mkdtemp(prefix="truba-profile-")
        tf.profiler.experimental.start(self._folder)
        self.step()

    def step(self) -> None:
        """Mark the boundary between two steps."""
        import tensorflow as tf

        self._end_step()
        self._mark = tf.profiler.experimental.Trace("train", step_num=self._number, _r=1)
        self._mark.__enter__()
        self._number += 1

    def stop(self, folder: Path | None) -> None:
        """Stop and move the profile to `folder`; None discards it."""
        import tensorflow as tf

        self._end_step()
        try:
            tf.profiler.experimental.stop(save=folder is not None)
            for file in Path(self._folder).glob("plugins/profile/*/*.xplane.pb") if folder else ():
                shutil.move(file, str(folder))
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _end_step(self) -> None:
        if self._mark is not None:
            self._mark.__exit__(None, None, None)
        self._mark = None


def confusion_matrix(
    context: Context, writer: SummaryWriter, split: str, examples: Any, predictions: Mapping[str, Any], epochs: int
) -> None:
    """Draw the confusion matrix of each output that classifies, in `plots/` and for TensorBoard.

    `examples`: the split that was predicted, in the same order; without labels in memory nothing is drawn.
    """
    if not context.experiment.finish.plots or not isinstance(examples, tuple) or len(examples) < 2:
        return
    for output, labels in _labels(examples[1], list(predictions)).items():
        matrix = _matrix(labels, predictions[output])
        if matrix is None:
            continue
        name = "confusion_matrix" if len(predictions) == 1 else f"confusion_matrix_{output.replace('/', '_')}"
        path = plots.confusion_matrix(matrix, context.run.plots, name)
        if path is not None:
            writer.image(split, name, epochs, path.read_bytes())


def _labels(labels: Any, outputs: list[str]) -> dict[str, Any]:
    """Return the labels of each output that has some, given by name or in the order of the outputs."""
    if isinstance(labels, Mapping):
        return {name: labels[name] for name in outputs if name in labels}
    if isinstance(labels, (list, tuple)):
        return dict(zip_equal(outputs, labels)) if len(labels) == len(outputs) else {}
    return {outputs[0]: labels} if len(outputs) == 1 else {}


def _matrix(labels: Any, predictions: Any) -> Any:
    """Return how often each class (row) was predicted as each class (column); None if this is no classification."""
    import numpy as np

    if not hasattr(labels, "shape") or not isinstance(predictions, np.ndarray) or predictions.ndim != 2:
        return None
    labels, classes = np.asarray(labels), max(2, predictions.shape[1])
    if labels.shape == predictions.shape and predictions.shape[1] > 1:
        if not np.array_equal(labels.sum(axis=1), np.ones(len(labels))) or not np.isin(labels, (0, 1)).all():
            return None
        labels = labels.argmax(axis=1)
    labels = labels.reshape(-1)
    whole = len(labels) == len(predictions) and np.array_equal(labels, labels.astype(np.int64))
    if not whole or labels.min() < 0 or labels.max() >= classes:
        return None
    if predictions.shape[1] == 1:
        if predictions.min() < 0 or predictions.max() > 1:
            return None
        chosen = (predictions[:, 0] > 0.5).astype(np.int64)
    else:
        chosen = predictions.argmax(axis=1)
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (labels.astype(np.int64), chosen), 1)
    return matrix
