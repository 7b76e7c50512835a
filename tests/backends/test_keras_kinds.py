"""Networks of every kind resume where they were, to the bit: what a training depends on is found, saved and restored.

Each job holds state in places that no list of known places has. After two interruptions the last checkpoint holds the
same as that of a run without any, path by path.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked_starts import INTERRUPTED

from truba_runner.backends.keras_state import decode
from truba_runner.checkpoint import CheckpointStore
from truba_runner.rundir import RunDir

Start = Callable[..., dict[str, Any]]

DATA = """
import collections, functools, random
import keras, numpy as np, tensorflow as tf

def arrays(shape=(6,)):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, *shape)).astype("float32")
    return x, x.reshape(96, -1)[:, :3].argmax(1)

def load_data(name, folder):
    x, y = arrays()
    return {"train": (x[:64], y[:64]), "validation": (x[64:], y[64:])}
"""

# A second optimizer that is made in the first step, a variable of TensorFlow's, a plain number that the step of an
# eager model counts, and a seed.
TWO_OPTIMIZERS = (
    DATA
    + """
class Two(keras.Model):
    def __init__(self):
        super().__init__()
        self.body = keras.layers.Dense(8, activation="relu")
        self.head = keras.layers.Dense(3)
        self.beta = tf.Variable(1.0, trainable=False)
        self.noise = keras.random.SeedGenerator(3)
        self.parts = {"teacher": keras.layers.Dense(3, kernel_initializer="ones")}
        self.head_optimizer = None

    def call(self, x):
        return self.head(self.body(x)) + 0.01 * self.parts["teacher"](x)

    def train_step(self, data):
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        if self.head_optimizer is None:
            self.head_optimizer = keras.optimizers.Adam(1e-2)
        with tf.GradientTape() as tape:
            predicted = self(x + keras.random.normal(keras.ops.shape(x), seed=self.noise, stddev=0.1), training=True)
            loss = self.beta * self.compute_loss(x, y, predicted)
        body, head = self.body.trainable_variables, self.head.trainable_variables
        gradients = tape.gradient(loss, body + head)
        self.optimizer.apply_gradients(zip(gradients[: len(body)], body))
        self.head_optimizer.apply_gradients(zip(gradients[len(body) :], head))
        self.beta.assign(self.beta * 0.9)
        return self.compute_metrics(x, y, predicted)

def build_model():
    model = Two()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model
"""
)

# A GAN as keras.io writes it: it has no call, so nobody ever builds it.
GAN = """
import keras, numpy as np, tensorflow as tf

class GAN(keras.Model):
    def __init__(self):
        super().__init__()
        dense = keras.layers.Dense
        self.critic = keras.Sequential([keras.Input((6,)), dense(8, activation="relu"), dense(1)])
        self.maker = keras.Sequential([keras.Input((4,)), dense(8, activation="relu"), dense(6)])
        self.seed = keras.random.SeedGenerator(7)
        self.critics_loss = keras.metrics.Mean(name="critics_loss")

    def compile(self, critics, makers, loss):
        super().compile()
        self.critics_optimizer, self.makers_optimizer, self.loss_fn = critics, makers, loss

    @property
    def metrics(self):
        return [self.critics_loss]

    def _train(self, part, optimizer, loss):
        with tf.GradientTape() as tape:
            value = loss()
        optimizer.apply_gradients(zip(tape.gradient(value, part.trainable_weights), part.trainable_weights))
        return value

    def train_step(self, data):
        x = keras.utils.unpack_x_y_sample_weight(data)[0]
        count = tf.shape(x)[0]
        made = self.maker(keras.random.normal((count, 4), seed=self.seed))
        labels = tf.concat([tf.ones((count, 1)), tf.zeros((count, 1))], 0)
        both = tf.concat([made, x], 0)
        loss = self._train(self.critic, self.critics_optimizer, lambda: self.loss_fn(labels, self.critic(both)))
        draw = keras.random.normal((count, 4), seed=self.seed)
        fooled = lambda: self.loss_fn(tf.zeros((count, 1)), self.critic(self.maker(draw)))
        self._train(self.maker, self.makers_optimizer, fooled)
        self.critics_loss.update_state(loss)
        return {"critics_loss": self.critics_loss.result()}

def build_model():
    model = GAN()
    adam = keras.optimizers.Adam
    model.compile(adam(1e-2), adam(1e-2), keras.losses.BinaryCrossentropy(from_logits=True))
    return model

def load_data(name, folder):
    x = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    return {"train": (x, x)}
"""

# The states of a stateful RNN, a variable in a loss that a callback anneals, averages of the weights that Keras swaps
# in, a teacher and all kinds of plain values in a callback, a global of the module, and a closure.
HOLDERS = (
    DATA
    + """
class Annealed(keras.losses.Loss):
    def __init__(self):
        super().__init__(name="annealed")
        self.weight = keras.Variable(1.0, trainable=False, name="weight")

    def call(self, y_true, y_pred):
        return self.weight * keras.losses.sparse_categorical_crossentropy(y_true, y_pred)

seen = {"batches": 0}
stream = np.random.default_rng(9)

def forgetting(rate):
    kept = [1.0]
    def forget(batch, logs=None):
        kept.append(kept[-1] * rate)
        del kept[:-3]
    forget.kept = kept
    return forget

def steps(kept=forgetting(0.9)):
    return kept

class Teacher(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.losses, self.queue = [], collections.deque(maxlen=3)
        self.teacher, self.phase = None, "cold"
        self.dice, self.chance = random.Random(4), np.random.RandomState(5)

    def on_train_begin(self, logs=None):
        self.teacher = network()
        self.teacher.set_weights(self.model.get_weights())

    def on_train_batch_end(self, batch, logs=None):
        seen["batches"] += 1
        forget = steps()
        forget(batch)
        self.losses.append(logs["loss"])
        self.queue.append(np.float32(logs["loss"]))
        ours, theirs = self.model.trainable_variables, self.teacher.trainable_variables
        rate = 0.9 + 0.01 * self.dice.random() + 0.01 * self.chance.random_sample() + 0.001 * stream.random()
        for one, other in zip(ours, theirs):
            other.assign(rate * other + (1 - rate) * one)
            one.assign(one + 0.01 * forget.kept[-1] * (other - one))
        self.model.loss.weight.assign(0.99 * self.model.loss.weight + 0.001 * len(self.queue))

    def on_epoch_end(self, epoch, logs=None):
        self.phase = "warm"

class Swap(keras.callbacks.SwapEMAWeights):
    def __init__(self):
        super().__init__(swap_on_epoch=True)

def network():
    x = inputs = keras.Input(batch_shape=(8, 3, 2))
    x = keras.layers.LSTM(4, stateful=True)(x)
    return keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))

def build_model():
    model = network()
    model.compile(keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.9), Annealed(), metrics=["accuracy"])
    return model

def load_data(name, folder):
    x, y = arrays((3, 2))
    def batches(low, high):
        return tf.data.Dataset.from_tensor_slices((x[low:high], y[low:high])).batch(8, drop_remainder=True)
    return {"train": batches(0, 64), "validation": batches(64, 96)}
"""
)

# A data set that is shuffled by random numbers of its own as it is read, and whose last read example is a number in it.
OWN_STREAM = (
    DATA
    + """
def build_model():
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(8), keras.layers.Dense(3, activation="softmax")])

def load_data(name, folder):
    x, y = arrays()
    stream, read = np.random.default_rng(4), [0]
    def batches():
        for _ in range(8):
            rows = stream.integers(0, 64, 8)
            read[0] += 8
            yield x[rows] * (1 + 1e-3 * read[0]), y[rows]
    return {"train": batches, "validation": (x[64:], y[64:])}
"""
)

PLAIN = {"callbacks": [], "batch_size": 8, "optimizer": "adam", "metrics": ["accuracy"], "epochs": 3}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "two optimizers": (TWO_OPTIMIZERS, {}),
    "a GAN": (GAN, {"learning_rate": None}),
    "holders": (HOLDERS, {"batch_size": None, "callbacks": ["Teacher", "Swap"]}),
    "two optimizers, eager": (
        TWO_OPTIMIZERS.replace('metrics=["accuracy"])', 'metrics=["accuracy"], run_eagerly=True)'),
        {"epochs": 2},
    ),
}

TWO_DEVICES = {"resources": {"gpus": 2}}


def sections(train: dict[str, Any], **more: Any) -> dict[str, Any]:
    settings = {"checkpoint": {"every_steps": 2, "every_minutes": None, "save_model": False}, **more}
    return {**settings, "train": {**PLAIN, **train}, "finish": {"plots": False, "evaluate": False}}


def log(folder: Path) -> str:
    return (folder / "log").read_text()


def last_state(folder: Path) -> dict[str, Any]:
    found = CheckpointStore(folder / "checkpoints").newest(decode)
    assert found is not None
    position, state = found
    assert position.step == 0, "the training has come to its end"
    return state


def assert_same_state(folder: Path, reference: Path) -> None:
    one, other = last_state(folder), last_state(reference)
    for part in ("pieces", "streams", "values", "links", "data", "seeds", "callbacks"):
        np.testing.assert_equal(one[part], other[part], err_msg=part)


@pytest.fixture
def start(start_keras: Start) -> Start:
    return start_keras


def rows(folder: Path) -> list[list[str]]:
    return [row.split(",")[:-1] for row in (folder / "history.csv").read_text().splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_every_kind_ends_as_if_nothing_had_interrupted_it(kind: str, start: Start, tmp_path: Path) -> None:
    job, train = KINDS[kind]
    order = {"job": job, "sections": sections(train)}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(whole, **order)["status"] == 0, log(whole)
    assert "WARNING" not in log(whole), log(whole)
    # In the middle of the first epoch, then in the validation of the second or, without one, in its training.
    assert start(cut, **order, stop="SIGKILL", look=6)["status"] == -9, log(cut)
    assert start(cut, **order, stop="SIGTERM", look=16)["status"] == INTERRUPTED, log(cut)
    assert start(cut, **order)["status"] == 0, log(cut)
    assert log(cut).count("; restored in") >= 1
    assert RunDir(cut).result()["weights_sha256"] == RunDir(whole).result()["weights_sha256"]
    assert rows(cut) == rows(whole)
    assert_same_state(cut, whole)


# Its second optimizer is made in the step, and the order of its examples goes on over the epochs.
SHUFFLED = TWO_OPTIMIZERS.replace('"train": (x[:64], y[:64])', '"train": shuffled(x[:64], y[:64])').replace(
    "def load_data",
    """def shuffled(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays).shuffle(64, seed=5).batch(8)

def load_data""",
)
# Texts, of which there is no mean over devices; the words of the last batch are not those of the first.
TEXTS = """
import keras, numpy as np, tensorflow as tf

WORDS = ["snow", "rain", "sun", "wind", "fog", "hail"]

def build_model():
    x = inputs = keras.Input((1,), dtype="string")
    words = keras.layers.TextVectorization(vocabulary=WORDS, output_sequence_length=4)
    x = keras.layers.Embedding(len(WORDS) + 2, 4)(words(x))
    x = keras.layers.Dropout(0.2)(keras.layers.GlobalAveragePooling1D()(x))
    return keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))

def load_data(name, folder):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(WORDS), (96, 4))
    x = np.array([[" ".join(WORDS[word] for word in row)] for row in rows], object)
    y = rows[:, 0] % 3
    def batches(low, high):
        return tf.data.Dataset.from_tensor_slices((x[low:high].astype(str), y[low:high])).batch(8)
    return {"train": batches(0, 64), "validation": batches(64, 96)}
"""
ON_TWO_DEVICES = {
    "two optimizers, eager": (
        SHUFFLED.replace('["accuracy"])', '["accuracy"], run_eagerly=True)'),
        {"batch_size": None, "steps_per_epoch": 8},
    ),
    "a GAN": KINDS["a GAN"],
    "texts": (TEXTS, {"batch_size": None, "loss": "sparse_categorical_crossentropy"}),
}


@pytest.mark.parametrize("kind", ON_TWO_DEVICES)
def test_a_network_of_every_kind_goes_on_bit_for_bit_on_two_devices(kind: str, start: Start, tmp_path: Path) -> None:
    job, train = ON_TWO_DEVICES[kind]
    order = {"job": job, "sections": sections({**train, "epochs": 2}, **TWO_DEVICES)}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(whole, **order)["status"] == 0, log(whole)
    assert start(cut, **order, stop="SIGKILL", look=6)["status"] == -9, log(cut)
    assert start(cut, **order)["status"] == 0, log(cut)
    assert log(cut).count("; restored in") == 1
    assert RunDir(cut).result()["weights_sha256"] == RunDir(whole).result()["weights_sha256"]
    assert_same_state(cut, whole)


def test_on_two_devices_what_no_later_start_could_make_is_refused_at_the_first(start: Start, tmp_path: Path) -> None:
    order = {"job": TWO_OPTIMIZERS, "sections": sections({"epochs": 1}, **TWO_DEVICES)}
    assert start(tmp_path, **order)["status"] == 1
    assert "Failed: The training step makes variables that cannot be made before it on several devices" in log(tmp_path)
    assert "Make them in build_model" in log(tmp_path) and "epoch 1" not in log(tmp_path)


# An optimizer that starts from the weights, and a step that does now this and now that, and counts.
IN_TURNS = (
    DATA
    + """
class InTurns(keras.Model):
    def __init__(self):
        super().__init__()
        self.body, self.noise, self.norm = (
            keras.layers.Dense(8), keras.layers.Dropout(0.2), keras.layers.BatchNormalization()
        )
        self.head = keras.layers.Dense(3)
        self.turn, self.taken = False, 0

    def call(self, x, training=False):
        return self.head(self.norm(self.noise(self.body(x), training=training), training=training))

    def train_step(self, data):
        self.turn, self.taken = not self.turn, self.taken + 1
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            predicted = self(x, training=True)
            loss = (1.0 if self.turn else 0.1) * self.compute_loss(x, y, predicted)
        weights = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights))
        return self.compute_metrics(x, y, predicted)

def build_model():
    optimizer = keras.optimizers.get({"class_name": "OPTIMIZER", "config": {"learning_rate": 0.02}})
    model = InTurns()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], run_eagerly=True)
    return model
"""
)


@pytest.mark.parametrize("optimizer", ["SGD", "ScheduleFreeAdamW"])
def test_an_eager_step_on_trial_leaves_nothing_behind(optimizer: str, start: Start, tmp_path: Path) -> None:
    order = {"job": IN_TURNS.replace("OPTIMIZER", optimizer), "sections": sections({"epochs": 2})}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(whole, **order)["status"] == 0, log(whole)
    assert "optimizer_steps" not in RunDir(whole).result(), "it took as many as there were batches"
    assert last_state(whole)["values"]["model.taken"][-1] == 16
    # After an even number of steps the turn is the one that the training began with.
    assert start(cut, **order, stop="SIGKILL", look=6)["status"] == -9, log(cut)
    assert start(cut, **order)["status"] == 0, log(cut)
    assert log(cut).count("; restored in") == 1
    assert RunDir(cut).result()["weights_sha256"] == RunDir(whole).result()["weights_sha256"]
    assert_same_state(cut, whole)


def test_the_state_is_found_where_it_is(start: Start, tmp_path: Path) -> None:
    job, train = KINDS["holders"]
    assert start(tmp_path, job=job, sections=sections({**train, "epochs": 1}))["status"] == 0, log(tmp_path)
    state = last_state(tmp_path)
    assert {"model.loss.weight", "model.optimizer.iterations", "model.layers[2].kernel"} <= set(state["pieces"])
    assert [path for path in state["pieces"] if path.startswith("callbacks[0].teacher.layers[1]")]
    assert {"callbacks[0].dice", "callbacks[0].chance", "job.stream"} <= set(state["streams"])
    assert {"callbacks[0].losses", "callbacks[0].queue", "callbacks[0].phase"} <= set(state["values"])
    assert [path for path in state["values"] if path.startswith("job.seen")]
    assert state["callbacks"]["Swap"] == {"_ema_weights_in_model": True}


def test_an_epoch_s_examples_are_read_again_from_where_their_random_numbers_were(start: Start, tmp_path: Path) -> None:
    order = {"job": OWN_STREAM, "sections": sections({"batch_size": None, "loss": "sparse_categorical_crossentropy"})}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(whole, **order)["status"] == 0, log(whole)
    # The second epoch: of the first one nobody knew how long it is.
    assert start(cut, **order, stop="SIGTERM", look=16)["status"] == INTERRUPTED, log(cut)
    assert start(cut, **order)["status"] == 0, log(cut)
    assert RunDir(cut).result()["weights_sha256"] == RunDir(whole).result()["weights_sha256"]


def test_the_finder_leaves_nothing_behind(start: Start, tmp_path: Path) -> None:
    ramp = {"rate": "valley", "num_it": 12}
    for kind in ("two optimizers", "holders"):
        job, train = KINDS[kind]
        found, typed = tmp_path / kind / "found", tmp_path / kind / "typed"
        assert start(found, job=job, sections=sections({**train, "lr_find": ramp}))["status"] == 0, log(found)
        rate = RunDir(found).result()["lr_find"]["learning_rate"]
        assert start(typed, job=job, sections=sections({**train, "learning_rate": rate}))["status"] == 0, log(typed)
        assert RunDir(found).result()["weights_sha256"] == RunDir(typed).result()["weights_sha256"], kind


UNSAVED = """
class Notes(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.file, self.late = open("notes", "w"), None

    def on_epoch_end(self, epoch, logs=None):
        self.late = keras.models.clone_model(self.model) if epoch == 0 else self.late
"""


def test_an_order_that_a_resumed_run_does_not_get_again_is_named_at_the_start_and_refused_where_the_config_is_strict(
    start: Start, tmp_path: Path
) -> None:
    train = {"batch_size": None, "loss": None, "metrics": [], "callbacks": []}
    named, strict, steps = tmp_path / "named", tmp_path / "strict", tmp_path / "steps"
    assert start(named, job=SHUFFLED, sections=sections(train))["status"] == 0, log(named)
    assert "WARNING: data.train is a Dataset whose order a resumed run does not get again: it shuffles" in log(named)
    refused = sections(train, checkpoint={"strict": True})
    assert start(strict, job=SHUFFLED, sections=refused)["status"] == 1
    assert "Failed: checkpoint.strict=true: data.train is a Dataset whose order" in log(strict)
    once = sections({**train, "steps_per_epoch": 8}, checkpoint={"strict": True})
    assert start(steps, job=SHUFFLED, sections=once)["status"] == 0, log(steps)
    assert "WARNING" not in log(steps)


def test_what_cannot_be_saved_is_named_at_the_start_and_refused_where_the_config_is_strict(
    start: Start, tmp_path: Path
) -> None:
    job = OWN_STREAM + UNSAVED
    train = {"batch_size": None, "loss": "sparse_categorical_crossentropy", "callbacks": ["TerminateOnNaN", "Notes"]}
    named, strict = tmp_path / "named", tmp_path / "strict"
    assert start(named, job=job, sections=sections(train))["status"] == 0, log(named)
    assert "WARNING: callbacks[1].file is an open file. A run that resumes" in log(named)
    assert log(named).count("callbacks[1].late was made after the training had begun") == 1
    refused = sections(train, checkpoint={"strict": True})
    assert start(strict, job=job, sections=refused)["status"] == 1
    assert "Failed: checkpoint.strict=true: callbacks[1].file is an open file" in log(strict)


AHEAD = (
    DATA
    + """
class Changing(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y, self.dice, self.order, self.level = x, y, np.random.default_rng(1), np.arange(len(x)), 0.0

    def __len__(self):
        return 8

    def __getitem__(self, index):
        rows = self.order[8 * index : 8 * index + 8]
        return self.x[rows] + self.level + DRAWN, self.y[rows]

    def on_epoch_end(self):
        self.dice.shuffle(self.order)

class Harder(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        data.level += 0.1

def build_model():
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(8), keras.layers.Dense(3, activation="softmax")])

def load_data(name, folder):
    global data
    x, y = arrays()
    data = Changing(x[:64], y[:64])
    return {"train": data, "validation": (x[64:], y[64:])}
"""
)


def test_a_data_set_is_as_it_was_and_one_that_is_drawn_from_as_it_is_fetched_is_named(
    start: Start, tmp_path: Path
) -> None:
    train = {"batch_size": None, "loss": "sparse_categorical_crossentropy", "callbacks": ["Harder"]}
    plain = {"job": AHEAD.replace("DRAWN", "0"), "sections": sections(train)}
    whole, cut, drawn = tmp_path / "whole", tmp_path / "cut", tmp_path / "drawn"
    assert start(whole, **plain)["status"] == 0, log(whole)
    assert start(cut, **plain, stop="SIGTERM", look=20)["status"] == INTERRUPTED, log(cut)
    assert start(cut, **plain)["status"] == 0, log(cut)
    assert RunDir(cut).result()["weights_sha256"] == RunDir(whole).result()["weights_sha256"]
    assert "WARNING" not in log(cut)
    draws = {"job": AHEAD.replace("DRAWN", "self.dice.normal()"), "sections": sections(train)}
    assert start(drawn, **draws)["status"] == 0, log(drawn)
    assert log(drawn).count("data.train.dice is drawn from while batches are fetched, ahead of the training") == 1
