"""What a Keras job's `load_data` may return, and what is trained on it: real TensorFlow on small arrays."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from forked_starts import INTERRUPTED
from test_keras import context, train

from truba_runner.backends.keras import weights_sha256
from truba_runner.backends.keras_order import DRAWS, SHUFFLES, UNORDERED, other_order
from truba_runner.errors import Failed
from truba_runner.rundir import RunDir

SPARSE = "sparse_categorical_crossentropy"


def dense(units: int = 3, inputs: int = 6, **settings: Any) -> Callable[[], Any]:
    """A job's `build_model`: one layer."""

    def build_model() -> Any:
        import keras

        return keras.Sequential(
            [keras.Input((inputs,), **settings), keras.layers.Dense(units, activation="softmax" if units > 1 else None)]
        )

    return build_model


def convolution() -> Any:
    import keras

    given = keras.Input((8, 8, 1))
    return keras.Model(given, keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid")(given))


def run(folder: Path, splits: dict[str, Any], build_model: Callable[[], Any], **settings: Any) -> dict[str, Any]:
    """The result of a training, with what it printed under `log`."""
    job = SimpleNamespace(__file__="job.py", build_model=build_model, load_data=lambda name, folder: splits)
    sections = {"train": {"loss": SPARSE, "metrics": [], "batch_size": 16, **settings}}
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        result = train(context(folder, job, **sections))
    return {**result, "log": told.getvalue()}


def plain(build_model: Callable[[], Any], *data: Any, compiled: dict[str, Any] | None = None, **settings: Any) -> str:
    """The hash of the weights that Keras itself trains."""
    import keras

    keras.utils.set_random_seed(0)
    model = build_model()
    model.compile(**{"optimizer": "adam", "loss": SPARSE, **(compiled or {})})
    model.fit(*data, verbose=0, **settings)
    return weights_sha256(model)


def numbers(examples: int = 96) -> tuple[Any, Any]:
    import numpy as np

    x = np.random.default_rng(0).normal(size=(examples, 6)).astype("float32")
    return x, x[:, :3].argmax(1)


# -- steps that are an epoch -----------------------------------------------------------------------------------


def counted_up(batches: int | None = None) -> Any:
    """A Dataset of shuffled batches, endless or of so many."""
    import keras
    import tensorflow as tf

    # TensorFlow makes an order of both seeds, the one that is set when the Dataset is made included.
    keras.utils.set_random_seed(0)
    values = tf.data.Dataset.range(60).shuffle(20, seed=1)
    batched = values.map(lambda i: (tf.cast(i, tf.float32)[None] / 60, tf.cast(i, tf.float32)[None])).batch(5)
    return batched.repeat() if batches is None else batched.take(batches)


@pytest.mark.parametrize("batches", [None, 12])
def test_steps_per_epoch_trains_what_keras_trains_and_goes_on_across_epochs(
    tmp_path: Path, batches: int | None
) -> None:
    build = dense(1, 1)
    settings = {"steps_per_epoch": 4, "epochs": 7}
    ours = run(tmp_path, {"train": counted_up(batches)}, build, loss="mse", batch_size=None, **settings)
    assert ours["weights_sha256"] == plain(
        build, counted_up(batches), compiled={"loss": "mse"}, shuffle=False, **settings
    )
    assert ours["steps"] == 28 and "epoch 7/7  step 4/4  " in ours["log"]


def test_an_endless_generator_goes_on_across_epochs_and_a_function_is_called_for_each_pass(tmp_path: Path) -> None:
    import numpy as np

    seen: list[int] = []

    def passes(number: int) -> Iterator[Any]:
        for batch in range(5):
            seen.append(10 * number + batch)
            yield np.full((4, 1), batch / 5, "float32"), np.zeros((4, 1), "float32")

    settings = {"loss": "mse", "batch_size": None, "steps_per_epoch": 3, "epochs": 4}
    result = run(tmp_path, {"train": passes}, dense(1, 1), **settings)
    # Two were read for their shapes; some are read in advance.
    assert seen[2:14] == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14, 20, 21] and result["steps"] == 12


def test_arrays_give_so_many_steps_an_epoch_out_of_one_shuffled_pass_after_another() -> None:
    import numpy as np

    from truba_runner.backends.keras_data import DataPlan, epoch_order

    plan = DataPlan((np.arange(10),), examples=10, batch_size=4, devices=1, seed=5, steps=2)
    given = []
    for epoch in range(3):
        plan.begin(epoch)
        given += [batch.tolist() for batch in plan.dataset.as_numpy_iterator()]
    first, second = (epoch_order(5, number, 10).tolist() for number in (0, 1))
    assert given == [first[:4], first[4:8], first[8:], second[:4], second[4:8], second[8:]]
    plan.begin(1)
    assert [batch.tolist() for batch in plan.from_step(1).as_numpy_iterator()] == [second[:4]]


# -- a PyDataset's own epochs ----------------------------------------------------------------------------------


def telling(told: list[str], growing: bool = False) -> Any:
    """A PyDataset that notes what it is told."""
    import keras

    x, y = numbers()

    class Telling(keras.utils.PyDataset):
        length = 3

        def __len__(self) -> int:
            return self.length

        def __getitem__(self, number: int) -> Any:
            told.append("batch")
            return x[number * 16 : number * 16 + 16], y[number * 16 : number * 16 + 16]

        def on_epoch_begin(self) -> None:
            told.append("begin")

        def on_epoch_end(self) -> None:
            told.append("end")
            self.length += growing

    return Telling()


def told_by(callbacks_told: list[str]) -> Any:
    import keras

    class Tells(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            callbacks_told.append("callback begin")

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            callbacks_told.append("batch begin")

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            callbacks_told.append("trained")

        def on_test_begin(self, logs: Any = None) -> None:
            callbacks_told.append("test begin")

        def on_test_end(self, logs: Any = None) -> None:
            callbacks_told.append("test end")

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            callbacks_told.append("callback end")

    return Tells


def without_batches(told: list[str]) -> list[str]:
    return [one for one in told if one not in ("batch",)]


def test_a_pydataset_is_told_of_its_epochs_when_keras_tells_it(tmp_path: Path) -> None:
    told: list[str] = []
    held_out: list[str] = []
    job = SimpleNamespace(
        __file__="job.py",
        build_model=dense(),
        load_data=lambda name, folder: {"train": telling(told), "validation": telling(held_out)},
        Tells=told_by(told),
    )
    settings = {"loss": SPARSE, "metrics": [], "batch_size": None, "epochs": 2, "callbacks": ["Tells"]}
    train(context(tmp_path, job, train=settings, finish={"evaluate": False}))
    keras_told: list[str] = []
    keras_held_out: list[str] = []
    model = dense()()
    model.compile("adam", SPARSE)
    model.fit(
        telling(keras_told),
        validation_data=telling(keras_held_out),
        epochs=2,
        verbose=0,
        shuffle=False,
        callbacks=[told_by(keras_told)()],
    )
    assert without_batches(told) == without_batches(keras_told)
    assert without_batches(held_out) == without_batches(keras_held_out)
    assert told.count("begin") == 2 and told.count("end") == 3


def test_a_pydataset_that_grows_is_trained_on_as_long_as_it_is(tmp_path: Path) -> None:
    told: list[str] = []
    result = run(tmp_path, {"train": telling(told, growing=True)}, dense(), batch_size=None, epochs=2)
    # Once it grows before the first epoch, as Keras tells of an end there too.
    assert result["steps"] == 4 + 5 and "epoch 1/2  step 4/4  " in result["log"] and "step 5/5  " in result["log"]


def test_a_pydataset_without_a_length_needs_steps_and_is_asked_for_any_number(tmp_path: Path) -> None:
    import keras

    x, y = numbers()
    asked: list[int] = []

    class Endless(keras.utils.PyDataset):
        @property
        def num_batches(self) -> None:
            return None

        def __getitem__(self, number: int) -> Any:
            asked.append(number)
            return x[:16], y[:16]

    with pytest.raises(Failed, match=r"does not say how many.*train\.steps_per_epoch=N"):
        run(tmp_path, {"train": Endless()}, dense(), batch_size=None)
    asked.clear()
    run(tmp_path, {"train": Endless()}, dense(), batch_size=None, steps_per_epoch=3, epochs=2)
    assert asked[2:] == [0, 1, 2, 3, 4, 5]


# -- steps are batches -----------------------------------------------------------------------------------------


def test_steps_are_batches_whatever_the_optimizer_counts(tmp_path: Path) -> None:
    import keras
    import tensorflow as tf

    x, y = numbers(90)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(16).filter(lambda x, y: True)

    def accumulating() -> Any:
        model = dense()()
        model.compile(keras.optimizers.Adam(gradient_accumulation_steps=4), SPARSE)
        return model

    result = run(tmp_path, {"train": dataset}, accumulating, batch_size=None, epochs=3, steps_per_execution=4)
    assert (result["steps"], result["optimizer_steps"]) == (18, 4)
    assert all(f"epoch {epoch}/3  step 6/6  " in result["log"] for epoch in (1, 2, 3))


def test_epochs_of_a_function_may_be_longer_and_shorter_than_the_first(tmp_path: Path) -> None:
    x, y = numbers()

    def batches(epoch: int) -> Iterator[Any]:
        for _ in range((3, 5, 2)[epoch]):
            yield x[:16], y[:16]

    result = run(tmp_path, {"train": batches}, dense(), batch_size=None, epochs=3)
    assert result["steps"] == 10 and "epoch 2/3  step 5/5  " in result["log"] and "epoch 3/3  step 2/2" in result["log"]


# -- arrays of every kind --------------------------------------------------------------------------------------


def in_the_order_of_the_first_epoch(*arrays: Any) -> Any:
    from truba_runner.backends.keras_data import epoch_order

    order = epoch_order(0, 0, len(arrays[0]))
    return [array[order] for array in arrays]


def test_sample_weights_beside_x_and_y_train_what_keras_trains(tmp_path: Path) -> None:
    import numpy as np

    x, y = numbers()
    weights = np.where(y == 0, 5.0, 1.0)
    result = run(tmp_path, {"train": (x, y, weights), "test": (x[:8], y[:8], weights[:8])}, dense())
    a, b, c = in_the_order_of_the_first_epoch(x, y, weights)
    assert result["weights_sha256"] == plain(dense(), a, b, batch_size=16, shuffle=False, sample_weight=c)
    assert "test_loss" in result["metrics"]


def test_x_alone_reaches_a_train_step_as_in_keras(tmp_path: Path) -> None:
    import keras
    import tensorflow as tf

    class Auto(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.inner = keras.layers.Dense(6)

        def call(self, x: Any) -> Any:
            return self.inner(x)

        def train_step(self, x: Any) -> dict[str, Any]:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((self(x) - x) ** 2)
            self.optimizer.apply_gradients(
                zip(tape.gradient(loss, self.trainable_weights), self.trainable_weights, strict=True)
            )
            return {"loss": loss}

    def build_model() -> Any:
        model = Auto()
        model.compile(keras.optimizers.Adam())
        return model

    x, _ = numbers()
    (ordered,) = in_the_order_of_the_first_epoch(x)
    wanted = plain(build_model, ordered, compiled={"loss": None}, batch_size=16, shuffle=False)
    dataset = tf.data.Dataset.from_tensor_slices(ordered).batch(16)
    for name, split, size in (
        ("arrays", (x,), 16),
        ("None", (x.astype("float64"), None), 16),
        ("Dataset", dataset, None),
        ("function", lambda: (ordered[start : start + 16] for start in range(0, 96, 16)), None),
    ):
        result = run(tmp_path / name, {"train": split}, build_model, batch_size=size)
        assert result["weights_sha256"] == wanted, name
    with pytest.raises(Failed, match=r"class_weight weighs labels.*x alone"):
        run(tmp_path / "weights", {"train": (x,)}, build_model, class_weight="balanced")


def test_sparse_matrices_pandas_and_lists_train_what_arrays_train(tmp_path: Path) -> None:
    import keras
    import numpy as np
    import tensorflow as tf

    scipy_sparse, pandas = pytest.importorskip("scipy.sparse"), pytest.importorskip("pandas")
    x, y = numbers()
    x[x < 0.5] = 0
    wanted = run(tmp_path / "dense", {"train": (x, y), "test": (x, y)}, dense())
    frame = pandas.DataFrame(x.astype("float64"), columns=list("abcdef"))
    for name, split, settings in (
        ("csr", (scipy_sparse.csr_matrix(x), y), {"sparse": True}),
        ("SparseTensor", (tf.sparse.from_dense(x), y), {"sparse": True}),
        ("pandas", (frame, pandas.Series(y)), {}),
        ("objects", (np.array(x.tolist(), dtype=object), y), {}),
    ):
        result = run(tmp_path / name, {"train": split, "test": split}, dense(**settings))
        np.testing.assert_allclose(result["metrics"]["test_loss"], wanted["metrics"]["test_loss"], rtol=1e-5)

    def two() -> Any:
        inputs = [keras.Input((6,)), keras.Input((6,))]
        return keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(keras.layers.Add()(inputs)))

    halves = run(tmp_path / "list", {"train": ([x / 2, x / 2], y)}, two)
    assert halves["metrics"]["loss"] == pytest.approx(wanted["metrics"]["loss"], rel=1e-5)


def test_ragged_rows_reach_a_network_that_takes_them(tmp_path: Path) -> None:
    import keras
    import tensorflow as tf

    x = tf.ragged.constant([[1] * (1 + i % 5) for i in range(64)], dtype=tf.int32)
    y = numbers(64)[1]

    def padded() -> Any:
        given = keras.Input((None,), dtype="int32")
        hidden = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(20, 8, mask_zero=True)(given))
        return keras.Model(given, keras.layers.Dense(3, activation="softmax")(hidden))

    class Sums(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.last = keras.layers.Dense(3, activation="softmax")

        def call(self, x: Any) -> Any:
            sums = tf.reduce_sum(tf.cast(x, tf.float32), axis=1)
            return self.last(tf.reshape(sums, [-1, 1]))

    for name, split, size in (
        ("arrays", (x, y), 16),
        ("Dataset", tf.data.Dataset.from_tensor_slices((x, y)).batch(16), None),
    ):
        with pytest.raises(Failed, match=r"ragged x.*x\.to_tensor\(\).*ragged=True"):
            run(tmp_path / name, {"train": split}, padded, batch_size=size)
        assert run(tmp_path / name, {"train": split}, Sums, batch_size=size)["steps"] == 4
    assert run(tmp_path / "padded", {"train": (x.to_tensor(), y)}, padded)["steps"] == 4


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda np: [np.zeros(2), np.zeros(3)], r"x a list of 2 arrays that are not equally long.*np\.stack"),
        (lambda np: [1.0, 2.0], r"something else than NumPy arrays for train: x\. Wrap lists"),
        (lambda np: np.array([np.zeros(2), np.zeros(3)], dtype=object), "Python objects.*pad_sequences"),
        (lambda np: np.array(["2020-01-01", "2020-01-02"], dtype="datetime64[D]"), "datetime64.*Turn it into numbers"),
        (lambda np: None, "None among the parts of train"),
    ],
)
def test_what_stands_for_no_array_is_told_with_what_to_do(tmp_path: Path, part: Any, message: str) -> None:
    import numpy as np

    with pytest.raises(Failed, match=message):
        run(tmp_path, {"train": (part(np), np.zeros(2))}, dense())


# -- batches and single examples -------------------------------------------------------------------------------


def test_images_for_images_are_examples_or_batches_as_they_were_made(tmp_path: Path) -> None:
    import numpy as np
    import tensorflow as tf

    x = np.random.default_rng(0).normal(size=(32, 8, 8, 1)).astype("float32")
    y = (x > 1).astype("float32")
    examples = tf.data.Dataset.from_tensor_slices((x, y))
    settings: dict[str, Any] = {"loss": "binary_crossentropy"}
    wanted = run(tmp_path / "1", {"train": examples.batch(16)}, convolution, batch_size=None, **settings)
    splits = {
        "examples": (examples, 16),
        "full batches": (examples.batch(16, drop_remainder=True), None),
        "yielded": (lambda: zip(x, y, strict=True), 16),
    }
    for name, (split, size) in splits.items():
        result = run(tmp_path / name, {"train": split}, convolution, batch_size=size, **settings)
        assert result["weights_sha256"] == wanted["weights_sha256"], name
    with pytest.raises(Failed, match=r"shape \(8, 8, 1\).*single examples and no batches\. Set train\.batch_size"):
        run(tmp_path, {"train": examples}, convolution, batch_size=None, **settings)
    with pytest.raises(Failed, match="returned batches for train"):
        run(tmp_path, {"train": examples.batch(16, drop_remainder=True)}, convolution, **settings)
    batches = lambda: ((x[i : i + 16], y[i : i + 16]) for i in (0, 16))  # noqa: E731
    with pytest.raises(Failed, match=r"are batches already\. Set train\.batch_size=null"):
        run(tmp_path, {"train": batches}, convolution, **settings)


@pytest.mark.parametrize("kind", ["function", "Dataset", "PyDataset"])
def test_the_arrays_that_batches_are_parts_of_stay_as_they_are(kind: str, tmp_path: Path) -> None:
    import keras
    import numpy as np
    import tensorflow as tf

    # TensorFlow takes an array as it is where it begins at a multiple of 64 bytes.
    store = np.zeros(96 * 16 + 16, "float32")
    offset = -store.ctypes.data % 64 // 4
    x = store[offset : offset + 96 * 16].reshape(96, 16)
    x[:] = np.random.default_rng(0).normal(size=x.shape)
    before, y = x.copy(), x[:, :3].argmax(1)

    class Halves(keras.Sequential):
        def train_step(self, data: Any) -> Any:
            x, y = data
            return super().train_step((x[8:] * 2.0, y[8:]))

    class Batches(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 6

        def __getitem__(self, number: int) -> Any:
            return x[number * 16 : number * 16 + 16], y[number * 16 : number * 16 + 16]

    def fetched(number: Any) -> Any:
        parts = tf.numpy_function(lambda number: Batches()[number], [number], [tf.float32, tf.int64])
        return tf.ensure_shape(parts[0], (16, 16)), tf.ensure_shape(parts[1], (16,))

    splits = {
        "function": lambda: (Batches()[number] for number in range(6)),
        "Dataset": tf.data.Dataset.range(6).map(lambda number: fetched(number)),
        "PyDataset": Batches(),
    }

    def build_model() -> Any:
        return Halves([keras.Input((16,)), keras.layers.Dense(3, activation="softmax")])

    run(tmp_path, {"train": splits[kind]}, build_model, batch_size=None, epochs=6)
    np.testing.assert_array_equal(x, before)


def test_elements_whose_rank_is_not_known_get_that_of_the_first(tmp_path: Path) -> None:
    import numpy as np
    import tensorflow as tf

    x, y = numbers()

    def row(index: Any) -> Any:
        return tf.numpy_function(lambda i: (x[i], np.int64(y[i])), [index], [tf.float32, tf.int64])

    rows = tf.data.Dataset.range(96).map(lambda index: row(index))
    pairs = tf.data.Dataset.from_tensor_slices((x, y))
    wanted = run(tmp_path / "known", {"train": pairs.batch(16)}, dense(), batch_size=None)["weights_sha256"]
    batched = rows.batch(16).map(lambda x, y: (x, y))
    examples = rows.map(lambda x, y: (x, y))
    assert run(tmp_path / "1", {"train": batched}, dense(), batch_size=None)["weights_sha256"] == wanted
    assert run(tmp_path / "2", {"train": examples}, dense(), batch_size=16)["weights_sha256"] == wanted


# -- interruptions ---------------------------------------------------------------------------------------------

JOB = """
import keras, numpy as np, tensorflow as tf

def build_model():
    return keras.Sequential([keras.Input((6,)), keras.layers.Dropout(0.2), keras.layers.Dense(3, activation="softmax")])

x = np.random.default_rng(0).normal(size=(120, 6)).astype("float32")
y = x[:, :3].argmax(1)

def passes(number):
    for start in np.random.default_rng(number).permutation(9):
        yield x[start * 10 : start * 10 + 10], y[start * 10 : start * 10 + 10]

class Sequence(keras.utils.PyDataset):
    def __len__(self):
        return 6

    def __getitem__(self, number):
        return x[number * 16 : number * 16 + 16], y[number * 16 : number * 16 + 16]

    def on_epoch_begin(self):
        tell("begin")

    def on_epoch_end(self):
        tell("end")

def tell(what):
    with open("told", "a") as file:
        file.write(what + " ")

def load_data(name, folder, kind):
    shuffled = tf.data.Dataset.range(12).shuffle(12, seed=3)
    kinds = {
        "endless": lambda: shuffled.map(lambda i: (x[:120].reshape(12, 10, 6), y.reshape(12, 10), i)).map(
            lambda x, y, i: (tf.gather(x, i), tf.gather(y, i))).repeat(),
        "passes": lambda: passes,
        "told": Sequence,
    }
    return {"train": kinds[kind](), "validation": (x[:20], y[:20])}
"""
# Of each kind: what the config adds to train, on how many devices, and at which look for a signal each start is
# interrupted: in the first epoch, in its validation, in the second epoch, and then by a kill.
KINDS: dict[str, tuple[dict[str, Any], int, tuple[int, int, int, int]]] = {
    "endless": ({"steps_per_epoch": 5}, 1, (3, 3, 5, 6)),
    # Nobody knows its length: two steps are an execution, and the last one has one.
    "passes": ({}, 1, (3, 3, 5, 6)),
    "told": ({}, 1, (3, 4, 4, 6)),
    "endless on two devices": ({"steps_per_epoch": 5}, 2, (3, 3, 5, 6)),
    "told on two devices": ({}, 2, (2, 2, 3, 4)),
}


def sections(kind: str) -> dict[str, Any]:
    added, devices, _ = KINDS[kind]
    train_settings = {"loss": SPARSE, "metrics": [], "batch_size": None, "epochs": 3, "callbacks": [], **added}
    return {
        "data": {"options": {"kind": kind.split()[0]}},
        "train": train_settings,
        "checkpoint": {"every_steps": 2, "save_model": False},
        "tensorboard": {"enabled": False},
        "resources": {"gpus": devices if devices > 1 else 0},
    }


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_interrupted_stream_ends_like_one_that_is_not(
    kind: str, start_keras: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    order = {"sections": sections(kind), "job": JOB}
    assert start_keras(tmp_path / "whole", **order)["status"] == 0, (tmp_path / "whole/log").read_text()
    folder = tmp_path / "broken"
    for stop, look in zip(("SIGUSR2", "SIGUSR2", "SIGUSR2", "SIGKILL"), KINDS[kind][2], strict=True):
        status = start_keras(folder, **order, stop=stop, look=look)["status"]
        assert status == (-9 if stop == "SIGKILL" else INTERRUPTED), (folder / "log").read_text()
    assert start_keras(folder, **order)["status"] == 0, (folder / "log").read_text()
    broken, whole = RunDir(folder).result(), RunDir(tmp_path / "whole").result()
    for key in ("weights_sha256", "metrics", "steps", "epochs"):
        assert broken[key] == whole[key], key
    log = (folder / "log").read_text()
    assert re.search(r"goes on from epoch 1, step [1-9]", log) and re.search(r"goes on from epoch 2, step [1-9]", log)
    if kind.startswith("told"):
        # In the validation of an epoch that it has been told the end of, it is not told so again.
        assert (folder / "told").read_text().startswith("end begin end begin end end begin begin ")


def test_what_gives_a_dataset_another_order_in_each_start_is_found() -> None:
    import tensorflow as tf

    plain = tf.data.Dataset.range(12)
    shuffled = plain.shuffle(12, seed=3).batch(2).prefetch(1)
    assert other_order(shuffled, one_iteration=False) == SHUFFLES
    assert other_order(plain.concatenate(shuffled.unbatch()), one_iteration=False) == SHUFFLES
    assert not other_order(shuffled, one_iteration=True)
    assert not other_order(plain.shuffle(12, seed=3, reshuffle_each_iteration=False), one_iteration=False)
    assert not other_order(plain.map(lambda i: i, num_parallel_calls=4), one_iteration=False)
    for once in (False, True):
        unordered = plain.map(lambda i: i, num_parallel_calls=4, deterministic=False).batch(3)
        assert other_order(unordered, one_iteration=once) == UNORDERED
        options = tf.data.Options()
        options.deterministic = False
        assert other_order(plain.with_options(options).batch(3), one_iteration=once) == UNORDERED
    redrawn = tf.data.Dataset.random(seed=1, rerandomize_each_iteration=True).take(3)
    assert other_order(redrawn, one_iteration=False) == DRAWS
    assert not other_order(tf.data.Dataset.random(seed=1).take(3), one_iteration=False)
