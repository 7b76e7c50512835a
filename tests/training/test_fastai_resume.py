"""Interrupted and killed fastai runs end like undisturbed ones, to the bit: real torch, real processes, real signals.

A start looks for a signal after every batch: 11 of the first finder, which ends in its twelfth; two epochs of 4 batches
of training and 2 of validation; 9 of the second finder; two epochs of 5 and 2; 2 of the final predictions.
"""

from __future__ import annotations

import csv
import os
import random
import re
import signal
from pathlib import Path
from typing import Any

import fastai_resume_runs as runs
import pytest
from event_files_read import curves, seen
from fastai_resume_runs import Ask
from forked_starts import INTERRUPTED

from truba_runner.runs.checkpoints import CheckpointStore, Position
from truba_runner.runs.run_directory import RunDir

FINDER, HEAD, VALIDATION, SECOND_FINDER, WHOLE = 11, 4, 2, 9, 5
AFTER = VALIDATION
FIRST_STAGE = FINDER + 2 * (HEAD + VALIDATION)
SECOND_STAGE = FIRST_STAGE + SECOND_FINDER + 2 * (WHOLE + VALIDATION)


@pytest.fixture(scope="module")
def undisturbed(start: Ask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("undisturbed") / "run"
    assert start(folder)["status"] == 0, log(folder)
    return folder


def log(folder: Path) -> str:
    return (folder / "log").read_text()


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def restored(folder: Path) -> list[tuple[int, int]]:
    events = [event for event in RunDir(folder).submissions() if event.kind == "restored"]
    assert all(0 < event.seconds < 600 for event in events)
    return [tuple(event.position or ()) for event in events]


def assert_same_end(start: Ask, folder: Path, reference: Path) -> None:
    ended, expected = RunDir(folder).result(), RunDir(reference).result()
    for key in ("weights_sha256", "metrics", "epochs", "steps"):
        assert ended[key] == expected[key], key
    assert history(folder) == history(reference)
    for name in ("predictions.npy", "lr_find_find.json", "lr_find_all.json"):
        assert (folder / name).read_bytes() == (reference / name).read_bytes(), name
    assert curves(folder) == curves(reference)
    one, other = (start(path, do="in_fork", function="checkpoint") for path in (folder, reference))
    for key in other:
        assert one[key] == other[key], key


def test_the_reference_uses_all_that_is_to_be_restored(start: Ask, undisturbed: Path) -> None:
    assert RunDir(undisturbed).result()["looks"] == SECOND_STAGE + AFTER
    assert "reducing lr to" in log(undisturbed) and "Better model found" in log(undisturbed)
    state = start(undisturbed, do="in_fork", function="checkpoint")
    assert state["position"] == [4, 0] and set(state["answers"]) == {"find", "all"}
    callbacks = {name: attributes for name, attributes in state["callbacks"]}
    (total,) = (value for path, value in state["walked"]["values"].items() if path.endswith(".total"))
    assert total[-1] > 0
    assert {"best", "wait"} <= set(callbacks["reduce_lr_on_plateau"])
    steps = [step for step, _ in curves(undisturbed)["train", "batch_loss"]]
    assert steps == list(range(1, 2 * HEAD + 2 * WHOLE + 1))


# -- signals ---------------------------------------------------------------------------------------------------

# Each look is counted from the start before it: in the finder, which begins anew; with the frozen body; in its
# validation; at the first step after that; in the second finder; with all layers and larger images; in that
# validation; in the predictions, twice.
STOPS = [
    ("SIGTERM", FINDER - 3, []),
    ("SIGUSR2", FINDER + 2, [0, 2]),
    ("SIGTERM", HEAD - 2 + 1, [0, HEAD]),
    ("SIGUSR2", VALIDATION + 1, [1, 1]),
    ("SIGINT", HEAD - 1 + VALIDATION + 4, [2, 0]),
    ("SIGUSR2", SECOND_FINDER + 3, [2, 3]),
    ("SIGTERM", WHOLE - 3 + VALIDATION, [2, WHOLE]),
    ("SIGUSR2", VALIDATION + WHOLE + VALIDATION + 1, [4, 0]),
    ("SIGTERM", 2, [4, 0]),
]


# With processes that read, which get the signals too: in the finder, after it, in the next validation and stage, in
# that one's validation.
STOPS_OF_READERS = [
    ("SIGTERM", FINDER - 3, []),
    ("SIGUSR2", FINDER + 2, [0, 2]),
    ("SIGTERM", HEAD - 2 + VALIDATION + HEAD + 1, [1, HEAD]),
    ("SIGUSR2", VALIDATION + SECOND_FINDER + WHOLE + VALIDATION + 2, [3, 2]),
    ("SIGINT", WHOLE - 2 + VALIDATION + 1, [4, 0]),
]


@pytest.mark.parametrize(("workers", "stops"), [(0, STOPS), (2, STOPS_OF_READERS)], ids=["none", "two"])
def test_a_run_that_signals_interrupt_ends_like_one_that_they_do_not(
    workers: int, stops: list[tuple[str, int, list[int]]], start: Ask, undisturbed: Path, tmp_path: Path
) -> None:
    sections = {"data": {"workers": workers}}
    for name, look, position in stops:
        ended = start(tmp_path, sections=sections, stop=name, look=look)
        assert ended["status"] == INTERRUPTED, (name, look, log(tmp_path)[-3000:])
        found = start(tmp_path, do="in_fork", function="checkpoint")
        assert found.get("position", []) == position, (name, look)
        assert "last_saved_path" not in str(found.get("callbacks")), "where that start wrote, if it did, is no state"
    assert start(tmp_path, sections=sections)["status"] == 0, log(tmp_path)
    # Nothing was there to be restored after the first.
    assert len(restored(tmp_path)) == len(stops) - 1
    assert RunDir(tmp_path).result()["looks"] == AFTER, "nothing but the predictions was left to do"
    assert_same_end(start, tmp_path, undisturbed)


def test_what_is_finished_is_not_repeated(start: Ask, tmp_path: Path) -> None:
    assert start(tmp_path, stop="SIGUSR2", look=FIRST_STAGE + 5)["status"] == INTERRUPTED
    assert start(tmp_path)["status"] == 0
    assert "resumes from epoch 3, step 0; restored in " in log(tmp_path)
    # The second finder anew, and whatever comes after it.
    assert RunDir(tmp_path).result()["looks"] == SECOND_STAGE - FIRST_STAGE + AFTER
    assert log(tmp_path).count("lr_find find:") == log(tmp_path).count("lr_find all:") == 1
    assert log(tmp_path).count("Setting-up type transforms pipelines") == 1


# -- kills -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_kills_at_random_moments(workers: int, start: Ask, undisturbed: Path, tmp_path: Path) -> None:
    """Twenty of them, ten with reading processes, half of the time while a checkpoint is written.

    Its event files are written on the node's own disk, and no kill leaves time to copy them.
    """
    dice = random.Random(workers)
    node = tmp_path / "node"
    node.mkdir()
    cluster = {"scheduler": "slurm", "partitions": {"gpu": {"local_scratch": str(node)}}}
    sections: dict[str, Any] = {"cluster": cluster, "resources": {"partition": "gpu"}}
    sections.update(checkpoint={"every_steps": 1}, data={"workers": workers})
    for _ in range(10):
        position = CheckpointStore(tmp_path / "checkpoints").position()
        at_a_finder = position in (Position(0, 0), Position(2, 0))
        # An interrupted finder starts over: some kills fall into it, the others after it.
        look = dice.choice([3, FINDER + 1, FINDER + 2]) if at_a_finder else dice.randint(1, 4)
        ended = start(tmp_path, sections=sections, slow_save=0.06, look=look, kill_after=0.12 * dice.random())
        assert ended["status"] == -signal.SIGKILL, "it was done too early"
    assert start(tmp_path, sections=sections)["status"] == 0, log(tmp_path)
    assert len(set(restored(tmp_path))) > 3, "it came further from start to start"
    assert_same_end(start, tmp_path, undisturbed)
    every_step, found = [*range(1, 2 * HEAD + 2 * WHOLE + 1)], seen(tmp_path)
    for tag in ("batch_loss", "learning_rate", "examples_per_second"):
        assert found[f"train/{tag}"] == every_step
    for tag in ("train/epoch_loss", "train/epoch_learning_rate", "validation/epoch_loss"):
        assert found[tag] == [1, 2, 3, 4]
    assert len([path for path in tmp_path.glob("tensorboard/*/*") if path.is_file()]) == 2
    assert not list(node.iterdir())


@pytest.mark.parametrize(
    ("settings", "look", "positions"),
    [
        ({"every_steps": 2}, FINDER + HEAD, [[0, 2]]),
        ({"every_minutes": 1e-9}, FINDER + HEAD, [[0, 2], [0, 3]]),
        # What is written in the course of validation says that it is still to come.
        ({"every_minutes": 1e-9}, FINDER + HEAD + VALIDATION, [[0, HEAD]]),
        ({}, FIRST_STAGE + SECOND_FINDER + 2, [[2, 0]]),
    ],
)
def test_a_kill_costs_no_more_than_what_is_not_yet_saved(
    settings: dict[str, Any], look: int, positions: list[Any], start: Ask, tmp_path: Path
) -> None:
    ended = start(tmp_path, sections={"checkpoint": settings}, stop="SIGKILL", look=look)
    assert ended["status"] == -signal.SIGKILL
    assert start(tmp_path, do="in_fork", function="checkpoint")["position"] in positions


# -- callbacks that end something early ------------------------------------------------------------------------

EARLY = (
    runs.JOB
    + '''
class Short(Callback):
    """Ends each epoch's training after its second batch, and the whole stage in its third epoch."""

    order = 80

    def after_batch(self):
        if self.training and self.iter == 1:
            raise CancelTrainException
        if not self.training and self.epoch == 2:
            raise CancelFitException
'''
)


def test_stages_that_callbacks_cut_short_and_gradients_that_are_gathered(start: Ask, tmp_path: Path) -> None:
    recipe = [{"fit_one_cycle": {"epochs": 5}}, {"fit": {"epochs": 2}}]
    gather = {"class_name": "GradientAccumulation", "config": {"n_acc": 15}}
    sections = {"train": {"recipe": recipe, "callbacks": ["Short", "Averaging", gather]}}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(whole, sections=sections, job=EARLY)["status"] == 0, log(whole)
    assert [row["epoch"] for row in history(whole)] == ["1", "2", "6", "7"]
    # After a batch whose gradients wait for the next; in a validation after a training that was cut; and in the stage
    # after the one that was ended.
    for look in (1, 2, 4, 7):
        ended = start(cut, sections=sections, job=EARLY, stop="SIGUSR2", look=look)
        assert ended["status"] == INTERRUPTED, (look, log(cut)[-2000:])
    assert start(cut, sections=sections, job=EARLY)["status"] == 0, log(cut)
    ended, expected = RunDir(cut).result(), RunDir(whole).result()
    assert ended["weights_sha256"] == expected["weights_sha256"] and history(cut) == history(whole)


# -- files that are not as they should be ----------------------------------------------------------------------


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(start: Ask, undisturbed: Path, tmp_path: Path) -> None:
    assert start(tmp_path, stop="SIGUSR2", look=FINDER + HEAD + VALIDATION + 2)["status"] == INTERRUPTED
    damaged = tmp_path / "checkpoints" / "checkpoint-000001-000000002.ckpt"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    assert start(tmp_path)["status"] == 0
    assert f"{damaged.name} is damaged and is skipped" in log(tmp_path)
    assert restored(tmp_path) == [(1, 0)]
    assert_same_end(start, tmp_path, undisturbed)


def test_without_any_checkpoint_it_begins_anew_and_tells_nothing_twice(
    start: Ask, undisturbed: Path, tmp_path: Path
) -> None:
    assert start(tmp_path, stop="SIGUSR2", look=FIRST_STAGE - 1)["status"] == INTERRUPTED
    for file in (tmp_path / "checkpoints").glob("*.ckpt"):
        os.truncate(file, 100)
    assert start(tmp_path)["status"] == 0
    assert_same_end(start, tmp_path, undisturbed)


def test_a_checkpoint_of_another_training_is_refused_with_the_reason(start: Ask, tmp_path: Path) -> None:
    assert start(tmp_path, stop="SIGUSR2", look=FINDER + 2)["status"] == INTERRUPTED
    recipe = [{"fit": {"epochs": 1}}]
    changed: list[tuple[str, dict[str, Any]]] = [
        (r"it has 0.0.0.weight, \[6, 3, 3, 3\], torch.float32, where the .*\[7", {"job": {"options": {"width": 7}}}),
        ("examples was 60 then and is 48 now", {"data": {"options": {"count": 48}}}),
        ("batch size was 10 then and is 9 now", {"train": {"batch_size": 9}}),
        ("seed was 0 then and is 1 now", {"train": {"seed": 1}}),
        ("recipe was .*Find.* then and is .*Fit.* now", {"train": {"recipe": recipe}}),
    ]  # fmt: skip
    for reason, sections in changed:
        (tmp_path / "log").write_text("")
        assert start(tmp_path, sections=sections)["status"] == 1
        (message,) = [line for line in log(tmp_path).splitlines() if line.startswith("Failed: ")]
        assert re.search(reason, message), message
        assert "fresh=true" in message
    found = start(tmp_path, do="in_fork", function="checkpoint")
    assert found["position"] == [0, 2], "it is still there, for whom it belongs to"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_stops_no_training(start: Ask, undisturbed: Path, tmp_path: Path) -> None:
    sections = {
        "train": {**runs.SECTIONS["train"], "callbacks": runs.SECTIONS["train"]["callbacks"][:2] + ["Averaging"]}
    }
    whole, full = tmp_path / "whole", tmp_path / "full"
    assert start(whole, sections=sections)["status"] == 0, log(whole)
    assert start(full, sections=sections, disk_kb=40)["status"] == 0, log(full)
    assert re.search(r"could not be written \(\[Errno 28\] No space left on device.*\); training continues", log(full))
    assert RunDir(full).result()["weights_sha256"] == RunDir(whole).result()["weights_sha256"]


def test_the_newest_two_and_the_best_stay_after_the_end(undisturbed: Path) -> None:
    names = sorted(file.name for file in (undisturbed / "checkpoints").glob("*.ckpt"))
    assert names == ["best.ckpt", "checkpoint-000003-000000000.ckpt", "checkpoint-000004-000000000.ckpt"]


def test_a_monitor_that_is_no_metric_is_told_of_once(start: Ask, tmp_path: Path) -> None:
    sections = {
        "train": {"recipe": [{"fit": {"epochs": 2}}], "callbacks": []},
        "checkpoint": {"monitor": "val_eror_rate"},
    }
    assert start(tmp_path, sections=sections)["status"] == 0
    assert log(tmp_path).count("checkpoint.monitor=val_eror_rate: no such metric. Did you mean val_error_rate") == 1
    assert not (tmp_path / "checkpoints" / "best.ckpt").exists()
