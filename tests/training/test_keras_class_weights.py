"""Class weights where the loss has values: examples, positions, outputs; and labels that have no classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_keras_inputs import SPARSE, dense, in_the_order_of_the_first_epoch, numbers, plain, run

from truba_runner.errors import Failed


def weights_of(wanted: Any, y: Any, predicted: tuple[int | None, ...] | None, loss: Any, stream: bool = False) -> Any:
    """The weights of these labels as one batch, and those of the classes."""
    import tensorflow as tf

    from truba_runner.training.keras.labels.labels import Labels, Weighing

    spec = tf.TensorSpec((None, *y.shape[1:]), tf.as_dtype(y.dtype))
    weighing = Weighing(Labels("", spec, None if stream else y, predicted, loss), wanted)
    return weighing.of_batch(tf.constant(y)).numpy(), weighing.weights


def test_examples_weigh_what_keras_has_them_weigh_bit_for_bit(tmp_path: Path) -> None:
    import numpy as np
    from keras.src.trainers.data_adapters.data_adapter_utils import class_weight_to_sample_weights

    x, y = numbers()
    weights = {0: 0.3, 2: 7.0}
    for labels, loss in (
        (y, SPARSE),
        (y[:, None], SPARSE),
        (y.astype("float32"), SPARSE),
        (np.eye(3, dtype="float32")[y], "categorical_crossentropy"),
    ):
        given, _ = weights_of(weights, labels, (None, 3), loss)
        np.testing.assert_array_equal(given, class_weight_to_sample_weights(labels, weights))
    a, b = in_the_order_of_the_first_epoch(x, y)
    ours = run(tmp_path, {"train": (x, y)}, dense(), class_weight=weights)
    assert ours["weights_sha256"] == plain(dense(), a, b, batch_size=16, shuffle=False, class_weight=weights)
    assert "class weights: 0: 0.3, 2: 7" in ours["log"]


def test_weights_of_classes_and_of_examples_are_multiplied(tmp_path: Path) -> None:
    import numpy as np

    x, y = numbers()
    own = np.linspace(0.5, 2, len(y)).astype("float32")
    a, b, c = in_the_order_of_the_first_epoch(x, y, own)
    ours = run(tmp_path, {"train": (x, y, own)}, dense(), class_weight={0: 3.0})
    both = c * np.where(b == 0, np.float32(3), np.float32(1))
    assert ours["weights_sha256"] == plain(dense(), a, b, batch_size=16, shuffle=False, sample_weight=both)


def test_positions_weigh_as_their_class_in_masks_and_in_texts() -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    mask = (rng.random((4, 5, 5)) < 0.2).astype("int64")
    counts = np.bincount(mask.reshape(-1))
    balanced = {label: mask.size / (2 * int(count)) for label, count in enumerate(counts)}
    for labels, predicted, loss in (
        (mask, (None, 5, 5, 2), SPARSE),
        (mask[..., None], (None, 5, 5, 2), SPARSE),
        (mask[..., None].astype("float32"), (None, 5, 5, 1), "binary_crossentropy"),
        (np.eye(2)[mask], (None, 5, 5, 2), "categorical_crossentropy"),
        # A network that is not built yet has no output to try the loss on.
        (mask, None, SPARSE),
    ):
        given, weights = weights_of("balanced", labels, predicted, loss)
        assert weights == balanced
        np.testing.assert_array_equal(given, np.vectorize(balanced.get)(mask).astype("float32"))
    tokens = np.array([[0, 1, 3], [3, 3, 0]])
    given, weights = weights_of("balanced", tokens, (None, 3, 4), SPARSE)
    assert weights == {0: 1.0, 1: 2.0, 3: 6 / 9} and given.shape == (2, 3)
    # As long as wide: a batch's own axis is no class.
    given, _ = weights_of({1: 9.0}, np.eye(3, dtype="int64"), (None, 3, 4), SPARSE)
    np.testing.assert_array_equal(given, np.where(np.eye(3) == 1, 9, 1))


def test_labels_that_the_loss_ignores_are_no_class() -> None:
    import keras
    import numpy as np

    for ignored in (-1, 255):
        labels = np.array([[0, 1, ignored], [1, 1, ignored]])
        loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=ignored)
        given, weights = weights_of("balanced", labels, (None, 3, 2), loss)
        assert weights == {0: 2.0, 1: 2 / 3} and given[0].tolist() == [2.0, np.float32(2 / 3), 1.0]
        with pytest.raises(Failed, match=f"have {ignored}, which is not a class.*ignore_class: {ignored}"):
            weights_of("balanced", labels, (None, 3, 2), SPARSE)


@pytest.mark.parametrize(
    ("labels", "predicted", "loss", "message"),
    [
        ([[1, 0, 1], [0, 0, 0]], (None, 3), "binary_crossentropy", "not one-hot.*several or none"),
        ([[1, 0, 0], [0, 0, 0]], (None, 3), "categorical_crossentropy", "not one-hot"),
        ([[[0, 1], [1, 1]]], (None, 2, 2, 1), "binary_crossentropy", r"not one-hot.*y\[\.\.\., None\]"),
        ([0.5, 1.7], (None, 1), "mse", "no classes: 0.5 is among them"),
        ([[0.2, 3.1], [1.0, 2.0]], (None, 2), "mse", "not one-hot"),
        (["cat", "dog"], (None, 2), SPARSE, "text, and have no classes"),
        ([[[[0.0], [1.0]]]], (None, 1, 2, 1), "dice", "no weight for each.*sample_weight"),
    ],
)
def test_labels_without_classes_are_refused_with_what_to_do(
    labels: Any, predicted: Any, loss: Any, message: str
) -> None:
    import numpy as np

    with pytest.raises(Failed, match=message):
        weights_of({0: 1.0, 1: 2.0}, np.array(labels), predicted, loss)


def test_rows_without_a_tag_in_a_stream_end_the_training_in_words(tmp_path: Path) -> None:
    import numpy as np
    import tensorflow as tf

    x, y = numbers()
    tags = np.eye(3, dtype="float32")[y]
    tags[40] = 0
    dataset = tf.data.Dataset.from_tensor_slices((x, tags)).batch(16)
    settings = {"loss": "categorical_crossentropy", "batch_size": None, "class_weight": {0: 2.0}}
    with pytest.raises(tf.errors.InvalidArgumentError, match="are not one-hot"):
        run(tmp_path, {"train": dataset}, dense(), **settings)


def two_outputs() -> Any:
    import keras

    given = keras.Input((6,))
    kind = keras.layers.Dense(3, activation="softmax", name="kind")(given)
    return keras.Model(given, {"price": keras.layers.Dense(1, name="price")(given), "kind": kind})


def test_outputs_are_weighed_by_name(tmp_path: Path) -> None:
    import numpy as np

    x, y = numbers()
    splits = {"train": (x, {"price": x[:, :1], "kind": y})}
    loss = {"price": "mse", "kind": SPARSE}
    ours = run(tmp_path / "1", splits, two_outputs, loss=loss, class_weight={"kind": {0: 4.0}})
    a, b = in_the_order_of_the_first_epoch(x, y)
    weights = {"price": np.ones(len(a), "float32"), "kind": np.where(b == 0, 4, 1).astype("float32")}
    data = (a, {"price": a[:, :1], "kind": b})
    compiled = {"loss": loss}
    settings = {"batch_size": 16, "shuffle": False, "sample_weight": weights}
    assert ours["weights_sha256"] == plain(two_outputs, *data, compiled=compiled, **settings)
    assert "class weights of kind: 0: 4" in ours["log"]
    for wanted in ({0: 1.0, 1: 2.0}, "balanced", {"sort": {0: 1.0}}):
        with pytest.raises(Failed, match=r"several outputs \((price, kind|kind, price)\).*name the output"):
            run(tmp_path / "2", splits, two_outputs, loss=loss, class_weight=wanted)
    with pytest.raises(Failed, match="is given by output, but there is only one output"):
        run(tmp_path / "3", {"train": (x, y)}, dense(), class_weight={"kind": {0: 1.0}})
