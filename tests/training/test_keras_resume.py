"""Interrupted and killed runs end like undisturbed ones, to the bit: real TensorFlow, real processes, real signals.

A start looks for a signal after every execution of training, validation, evaluation and prediction, and at every
epoch's end: with one step an execution 13 + 4 + 1 times an epoch, and 4 + 4 times after four of them.
"""

from __future__ import annotations

import os
import random
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras_resume_runs as runs
import numpy as np
import pytest
from event_files_read import seen, told
from forked_starts import INTERRUPTED

from truba_runner.runs.checkpoints import BEST, CheckpointStore
from truba_runner.runs.run_directory import RunDir
from truba_runner.training.keras.loop.encoding import decode

TRAINING, VALIDATION, EPOCHS = 13, 4, 4
EPOCH = TRAINING + VALIDATION + 1

# No loss falls by 100: after the second epoch the rate is halved and left alone for an epoch, after the third it stops.
STOPS_EARLY = [
    {"class_name": "EarlyStopping", "config": {"patience": 2, "min_delta": 100, "restore_best_weights": True}},
    {
        "class_name": "ReduceLROnPlateau",
        "config": {"factor": 0.5, "patience": 1, "min_delta": 100, "cooldown": 2},
    },
    {
        "class_name": "ModelCheckpoint",
        "config": {"filepath": "mine.weights.h5", "mode": "max", "save_best_only": True, "save_weights_only": True},
    },
]
CONFIGS: dict[str, dict[str, Any]] = {
    "one device": {},
    "32 steps an execution": {"train": {"steps_per_execution": 32, "callbacks": STOPS_EARLY}},
    "two devices, 4 steps an execution": {"train": {"steps_per_execution": 4}, "resources": {"gpus": 2}},
    "XLA, 4 steps an execution": {
        "train": {"steps_per_execution": 4, "jit_compile": True},
        # It cannot compile every augmentation, and takes long for others.
        "job": {"options": {"augment": False}},
        # Three executions an epoch: a last one of fewer steps would have to be compiled too.
        "data": {"options": {"train": 192}},
    },
}
# Two processes with two devices each. A validation on several devices has as many steps as on one.
NODES = {"sections": {"resources": {"gpus": 2}, "checkpoint": {"every_steps": 3}, "train": {"epochs": 2}}, "tasks": 2}

Start = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def start(start_keras: Start) -> Start:
    return start_keras


@pytest.fixture(scope="module")
def undisturbed(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run without interruption, trained when it is first asked for."""
    done: dict[str, Path] = {}

    def get(config: str = "one device") -> Path:
        if config not in done:
            done[config] = tmp_path_factory.mktemp("undisturbed") / "run"
            assert start(done[config], sections=CONFIGS[config])["status"] == 0, log(done[config])
        return done[config]

    return get


def log(folder: Path) -> str:
    return (folder / "log").read_text()


def newest(folder: Path) -> tuple[tuple[int, int], dict[str, Any]]:
    found = CheckpointStore(folder / "checkpoints").newest(decode)
    assert found
    return (found[0].epoch, found[0].step), found[1]


def history(folder: Path) -> list[dict[str, str]]:
    header, *rows = [line.split(",") for line in (folder / "history.csv").read_text().splitlines()]
    return [{name: cell for name, cell in zip(header, row, strict=True) if name != "seconds"} for row in rows]


def seconds(folder: Path) -> list[float]:
    header, *rows = [line.split(",") for line in (folder / "history.csv").read_text().splitlines()]
    return [float(row[header.index("seconds")]) for row in rows]


def told_to_tensorboard(folder: Path) -> list[tuple[str, str, int, bytes]]:
    """Folder, tag, step and value of every summary."""
    return sorted((kind, value.tag, step, value.SerializeToString()) for kind, step, value in told(folder))


def restored(folder: Path) -> list[tuple[int, int]]:
    events = [event for event in RunDir(folder).submissions() if event.kind == "restored"]
    assert all(0 < event.seconds < 600 for event in events)
    return [tuple(event.position or ()) for event in events]


def assert_same_results(folder: Path, reference: Path) -> None:
    ended, expected = RunDir(folder).result(), RunDir(reference).result()
    assert sum(seconds(folder)) <= ended["seconds_training"] + 0.01, "the time of all starts together"
    for key in ("weights_sha256", "metrics", "epochs", "steps"):
        assert ended[key] == expected[key], key
    assert history(folder) == history(reference)
    for name in ("predictions.npy", *(file.name for file in reference.glob("*.h5"))):
        assert (folder / name).read_bytes() == (reference / name).read_bytes(), name
    assert told_to_tensorboard(folder) == told_to_tensorboard(reference)


def assert_same_end(folder: Path, reference: Path) -> None:
    assert_same_results(folder, reference)
    assert_same_state(folder, reference)


def assert_same_state(folder: Path, reference: Path) -> None:
    (position, state), (expected_position, expected_state) = newest(folder), newest(reference)
    assert position == expected_position
    parts = ("signature", "pieces", "streams", "values", "links", "data", "seeds", "callbacks", "stop", "best")
    for key in (*parts, "random", "numpy"):
        np.testing.assert_equal(state[key], expected_state[key], key)


# -- signals ---------------------------------------------------------------------------------------------------


def test_the_reference_uses_all_that_is_to_be_restored(undisturbed: Callable[[str], Path]) -> None:
    state = newest(undisturbed("one device"))[1]
    assert set(state["callbacks"]) == {"EarlyStopping", "ReduceLROnPlateau", "Averaging", "TensorBoard", "History"}
    rates = [float(row["learning_rate"]) for row in history(undisturbed("one device"))]
    assert rates[-1] < 0.5 * rates[0], "ReduceLROnPlateau has reduced the rate"
    names = " ".join(name for name, _, _ in state["signature"]["variables"])
    for part in ("seed_generator.state", "moving_mean", "optimizer._momentums[0]", "_metrics", "iterations", "common"):
        assert part in names
    written = told_to_tensorboard(undisturbed("one device"))
    assert {kind for kind, *_ in written} == {"train", "validation"}
    # Ours, and those of the job's own callback, whose folders have the same names.
    assert len(state["event_files"]) == 4


AT_EVALUATION = EPOCH - 7 + EPOCH + 2
Stops = list[tuple[str, int, tuple[int, int]]]
# The signal, the check that brings it, counted from the start before it, and where the training stands then.
STOPS: Stops = [
    # In training, in validation, between two epochs, at the first step after the restart, in the third epoch.
    ("SIGUSR2", 5, (0, 5)),
    ("SIGTERM", TRAINING - 5 + 2, (0, TRAINING)),
    ("SIGINT", VALIDATION + 1, (1, 0)),
    ("SIGUSR2", 1, (1, 1)),
    ("SIGUSR2", EPOCH - 1 + 7, (2, 7)),
    # In the evaluation and in the prediction after the training.
    ("SIGTERM", AT_EVALUATION, (4, 0)),
    ("SIGTERM", VALIDATION + 2, (4, 0)),
]
STOPS_OF_CONFIGS: dict[str, Stops] = {
    # In the second epoch's validation, at its end, and at that of the third, with which the training ends.
    "32 steps an execution": [("SIGTERM", 3 + 2, (1, TRAINING)), ("SIGUSR2", 2, (2, 0)), ("SIGTERM", 3, (3, 0))],
    "two devices, 4 steps an execution": [("SIGUSR2", 2, (0, 8))],
    "XLA, 4 steps an execution": [("SIGUSR2", 2, (0, 8))],
}


def test_signals_cost_neither_a_step_nor_an_epoch_nor_a_bit(
    start: Start, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    for name, look, position in STOPS:
        assert start(tmp_path, stop=name, look=look)["status"] == INTERRUPTED, log(tmp_path)
        # No step was executed twice: then another one would have been reached.
        assert newest(tmp_path)[0] == position
        if position == (0, TRAINING):
            assert_first_epoch_is_not_done(tmp_path)
        elif look == AT_EVALUATION:
            assert_same_state(tmp_path, undisturbed("one device"))
    assert start(tmp_path)["status"] == 0, log(tmp_path)
    assert restored(tmp_path) == [position for _, _, position in STOPS]
    assert f"resumes from epoch 1, step {TRAINING} of {TRAINING}; restored in " in log(tmp_path)
    assert log(tmp_path).count("resumes from the end of the training") == 2
    # Evaluated by the start before it, predicted by the last.
    assert RunDir(tmp_path).result()["looks"] == VALIDATION
    assert_same_results(tmp_path, undisturbed("one device"))


def assert_first_epoch_is_not_done(folder: Path) -> None:
    """A signal in its validation has come."""
    assert not history(folder) and "epoch 1/4" not in log(folder)
    assert not [tag for _, tag, _, _ in told_to_tensorboard(folder) if tag == "epoch_loss"]
    assert RunDir(folder).progress().step == TRAINING


@pytest.mark.parametrize("config", STOPS_OF_CONFIGS)
def test_a_run_that_signals_interrupt_ends_like_one_that_they_do_not(
    config: str, start: Start, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    stops = STOPS_OF_CONFIGS[config]
    for name, look, position in stops:
        assert start(tmp_path, sections=CONFIGS[config], stop=name, look=look)["status"] == INTERRUPTED, log(tmp_path)
        assert newest(tmp_path)[0] == position
    assert start(tmp_path, sections=CONFIGS[config])["status"] == 0, log(tmp_path)
    assert len(restored(tmp_path)) == len(stops)
    assert_same_end(tmp_path, undisturbed(config))


# -- kills -----------------------------------------------------------------------------------------------------


def test_a_run_that_is_killed_at_random_moments_ends_like_one_that_is_not(
    start: Start, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    """Its event files are written on the node's own disk, and no kill leaves time to copy them."""
    dice = random.Random(2)
    (tmp_path / "node").mkdir()
    cluster = {"scheduler": "slurm", "partitions": {"gpu": {"local_scratch": str(tmp_path / "node")}}}
    sections = {"checkpoint": {"every_steps": 1}, "cluster": cluster, "resources": {"partition": "gpu"}}
    moments = [{"look": dice.randint(2, 10), "kill_after": 0.06 * dice.random()} for _ in range(8)]
    # One of them falls into a save for certain, the third of its start.
    moments[3] = {"held_save": 3, "kill_after": 0.0}
    killed = [start(tmp_path, sections=sections, slow_save=0.06, **moment) for moment in moments]
    assert {ended["status"] for ended in killed} == {-signal.SIGKILL}, "it was done too early"
    assert killed[3]["half_saved"]
    assert start(tmp_path, sections=sections)["status"] == 0
    assert len(set(restored(tmp_path))) > 2, "it came further from start to start"
    assert_same_end(tmp_path, undisturbed("one device"))
    every_step, every_epoch = [*range(1, EPOCHS * TRAINING + 1)], [*range(1, EPOCHS + 1)]
    curves = seen(tmp_path)
    for tag in ("batch_loss", "batch_accuracy", "learning_rate", "examples_per_second"):
        assert curves[f"train/{tag}"] == every_step
    for tag in ("train/epoch_loss", "train/epoch_learning_rate", "validation/epoch_loss", "validation/epoch_accuracy"):
        assert curves[tag] == every_epoch
    assert len([*tmp_path.glob("tensorboard/train/*"), *tmp_path.glob("tensorboard/validation/*")]) == 2
    assert not list((tmp_path / "node").iterdir())


@pytest.mark.parametrize(
    ("settings", "look", "positions"),
    [
        ({"every_steps": 4}, 11, {(0, 4), (0, 8)}),
        ({"every_minutes": 1e-9}, 11, {(0, 9), (0, 10)}),
        # What is written in the course of validation says that it is still to come.
        ({"every_minutes": 1e-9}, TRAINING + 3, {(0, TRAINING)}),
        ({}, EPOCH + EPOCH + 5, {(1, 0), (2, 0)}),
    ],
)
def test_a_kill_costs_no_more_than_what_is_not_yet_saved(
    settings: dict[str, Any], look: int, positions: set[Any], start: Start, tmp_path: Path
) -> None:
    sections = {"checkpoint": settings}
    assert start(tmp_path, sections=sections, stop="SIGKILL", look=look)["status"] == -signal.SIGKILL
    assert newest(tmp_path)[0] in positions


# -- several nodes ---------------------------------------------------------------------------------------------


def test_nodes_that_are_interrupted_and_killed_end_like_nodes_that_are_not(start: Start, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(whole, **NODES)["status"] == 0, log(whole)
    # One rank alone is asked to stop, in mid-epoch; both do, after the same step.
    assert start(cut, **NODES, stop="SIGUSR2", stop_rank=1, look=5)["statuses"] == [INTERRUPTED] * 2, log(cut)
    assert newest(cut)[0] == (0, 5)
    assert RunDir(cut).progress().step == 5
    # Killed in the second epoch, two steps after a save; then asked to stop in the validation.
    look = EPOCH - 5 + 8
    assert start(cut, **NODES, stop="SIGKILL", stop_rank=1, look=look)["statuses"] == [-signal.SIGKILL] * 2, log(cut)
    assert newest(cut)[0] in {(1, 3), (1, 6)}
    look = TRAINING - newest(cut)[0][1] + 2
    assert start(cut, **NODES, stop="SIGTERM", stop_rank=0, look=look)["statuses"] == [INTERRUPTED] * 2, log(cut)
    assert newest(cut)[0] == (1, TRAINING)
    # In the evaluation, which rank 0 does alone: the other waits, and cannot be asked.
    assert start(cut, **NODES, stop="SIGUSR2", look=VALIDATION + 1 + 2)["status"] == INTERRUPTED, log(cut)
    assert start(cut, **NODES)["statuses"] == [0, 0], log(cut)
    assert len(restored(cut)) == 4 and "resumes from the end of the training" in log(cut)
    assert_same_results(cut, whole)


# A signal while the first rank could train already, and the second still gets ready for it.
PARTED = (
    runs.JOB
    + """
import json, os, signal, time
from pathlib import Path

class Parted(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        ready = Path("ready")
        if json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 0:
            ready.with_suffix(".new").write_text(str(os.getpid()))
            ready.with_suffix(".new").rename(ready)
            return
        while not ready.exists():
            time.sleep(0.01)
        time.sleep(1)
        for process in (int(ready.read_text()), os.getpid()):
            os.kill(process, signal.SIGUSR2)
"""
)


def test_a_signal_before_all_nodes_can_save_ends_all_alike(start: Start, tmp_path: Path) -> None:
    sections = {**NODES["sections"], "train": {"epochs": 2, "callbacks": ["Parted"]}}
    ended = start(tmp_path, tasks=2, sections=sections, job=PARTED)
    assert ended["statuses"] == [INTERRUPTED] * 2, log(tmp_path)
    assert log(tmp_path).count("nothing to save yet") == 2


# -- files that are not as they should be ----------------------------------------------------------------------


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    start: Start, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    assert start(tmp_path, stop="SIGUSR2", look=2 * EPOCH + 6)["status"] == INTERRUPTED
    damaged = tmp_path / "checkpoints" / "checkpoint-000002-000000006.ckpt"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    assert start(tmp_path)["status"] == 0
    assert f"{damaged.name} is damaged and is skipped" in log(tmp_path)
    assert restored(tmp_path) == [(2, 0)]
    assert_same_end(tmp_path, undisturbed("one device"))


def test_without_any_checkpoint_it_begins_anew_and_tells_nothing_twice(
    start: Start, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    assert start(tmp_path, stop="SIGUSR2", look=EPOCH + 6)["status"] == INTERRUPTED
    for file in (tmp_path / "checkpoints").iterdir():
        os.truncate(file, 100)
    assert start(tmp_path)["status"] == 0
    assert_same_end(tmp_path, undisturbed("one device"))


def test_a_checkpoint_of_another_training_is_refused_with_the_reason(start: Start, tmp_path: Path) -> None:
    assert start(tmp_path, stop="SIGUSR2", look=3)["status"] == INTERRUPTED
    changed: list[tuple[str, dict[str, Any]]] = [
        (
            r"it has model\.layers\[.\]\.\w*kernel, .3, 3, 1, 8., float32, where the model has .*3, 3, 1, 9",
            {"job": "units=9"},
        ),
        ("examples was 200 then and is 190 now", {"job": "train=190"}),
        ("devices was 1 then and is 2 now", {"sections": {"resources": {"gpus": 2}}}),
    ]
    for reason, order in changed:
        if "job" in order:
            name = order["job"].split("=")[0]
            order["job"] = runs.JOB.replace({"units": "units=8", "train": "train=200"}[name], order["job"])
        (tmp_path / "log").write_text("")
        assert start(tmp_path, **order)["status"] == 1
        (message,) = [line for line in log(tmp_path).splitlines() if line.startswith("Failed: ")]
        assert re.search(reason, message), message
        assert "fresh=true" in message
    assert newest(tmp_path)[0] == (0, 3), "it is still there, for whom it belongs to"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_stops_no_training(start: Start, undisturbed: Callable[[str], Path], tmp_path: Path) -> None:
    assert start(tmp_path, disk_kb=84)["status"] == 0, log(tmp_path)
    assert re.search(
        r"could not be written \(\[Errno 28\] No space left on device.*\); training continues", log(tmp_path)
    )
    expected = RunDir(undisturbed("one device")).result()
    assert RunDir(tmp_path).result()["weights_sha256"] == expected["weights_sha256"]


# -- kernels ---------------------------------------------------------------------------------------------------


def test_deterministic_kernels_are_asked_for_before_anything_is_computed(start: Start, tmp_path: Path) -> None:
    # The first of a job's functions that is called. TensorFlow refuses this where results have to be the same.
    unruly = runs.JOB.replace("    rng =", "    tf.random.Generator.from_non_deterministic_state()\n    rng =")
    sections = {"train": {"deterministic": True, "jit_compile": True, "epochs": 1}}
    assert start(tmp_path / "unruly", job=unruly, sections=sections)["status"] == 1
    assert "when determinism is enabled" in log(tmp_path / "unruly")
    assert start(tmp_path / "orderly", sections=sections)["status"] == 0, log(tmp_path / "orderly")
    assert "train.jit_compile is off: Keras does not compile" in log(tmp_path / "orderly")


# -- what is kept, and callbacks -------------------------------------------------------------------------------


def test_the_newest_two_and_the_best_stay_after_the_end(undisturbed: Callable[[str], Path]) -> None:
    folder = undisturbed("one device")
    names = sorted(file.name for file in (folder / "checkpoints").iterdir())
    assert names == [BEST, "checkpoint-000003-000000000.ckpt", "checkpoint-000004-000000000.ckpt"]
    best = CheckpointStore(folder / "checkpoints").best(decode)
    assert best and best["best"] == min(float(row["val_loss"]) for row in history(folder))


def test_the_best_is_what_the_config_says(start: Start, tmp_path: Path) -> None:
    sections = {"checkpoint": {"monitor": "val_accuracy", "mode": "max", "keep": 1}}
    assert start(tmp_path, sections=sections)["status"] == 0
    best = CheckpointStore(tmp_path / "checkpoints").best(decode)
    values = [float(row["val_accuracy"]) for row in history(tmp_path)]
    assert best and best["best"] == max(values)
    assert len(best["reporter"]["rows"]) == 1 + values.index(max(values))
    (tmp_path / "log").write_text("")
    assert start(tmp_path, sections={"checkpoint": {"mode": "least"}})["status"] == 1
    assert "checkpoint.mode=least is neither min nor max" in log(tmp_path)


def test_a_callback_that_does_not_say_its_state_goes_on_all_the_same(
    start: Start, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    silent = runs.JOB.replace("def get_state", "def forget_state")
    assert start(tmp_path, job=silent, stop="SIGUSR2", look=3)["status"] == INTERRUPTED
    state = newest(tmp_path)[1]
    assert "Averaging" not in state["callbacks"] and "callbacks[2].total" in state["values"]
    assert start(tmp_path, job=silent)["status"] == 0, log(tmp_path)
    assert "WARNING" not in log(tmp_path)
    assert_same_results(tmp_path, undisturbed("one device"))


def test_a_callback_whose_state_cannot_be_saved_is_refused_before_it_is_missed(start: Start, tmp_path: Path) -> None:
    odd = runs.JOB.replace('{"total": self.total}', '{"total": object()}')
    assert start(tmp_path, job=odd)["status"] == 1
    assert "Failed: get_state of the callback Averaging returned a object, which a checkpoint cannot" in log(tmp_path)


STREAMING = (
    runs.JOB
    + """
arrays = load_data

def load_data(name, folder):
    (x, y), validation = arrays(name, folder).values()

    def batches(epoch):
        for start in range(0, 192, 16):
            yield x[start : start + 16], y[start : start + 16]

    return {"train": batches, "validation": validation}
"""
)


def test_an_epoch_of_unknown_length_is_told_as_such_and_blames_no_callback(start: Start, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"sections": {"train": {"batch_size": None, "epochs": 2}}, "job": STREAMING}
    assert start(tmp_path, **settings, stop="SIGUSR2", look=12)["status"] == INTERRUPTED, log(tmp_path)
    assert start(tmp_path, **settings)["status"] == 0, log(tmp_path)
    assert "resumes from epoch 2, step 8; restored" in log(tmp_path)
    assert "started anew" not in log(tmp_path), "every callback of it has its state in the checkpoint, or has none"
    assert RunDir(tmp_path).progress().steps_per_epoch == 12
