"""`train.lr_find` with fastai: a rate that is found before all stages, here or in a run before, and no other trace."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from fastai_resume_runs import Ask
from test_fastai_ranks import COMPARABLE

from truba_runner.runs.events import Event, Kind
from truba_runner.runs.run_directory import RunDir

# The first takes the rate as its only one, the second as the head's and, a hundredth of half of it, the first layers'.
RECIPE = [{"fit_one_cycle": {"epochs": 1}}, {"fine_tune": {"epochs": 1}}]
RAMP = {"num_it": 30, "start_lr": 1e-4, "end_lr": 1.0}


def log(folder: Path) -> str:
    return (folder / "log").read_text()


def curve(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "lr_find_find.json").read_text()))


def test_a_training_after_the_finder_is_the_one_without_it_at_the_same_rate(start: Ask, tmp_path: Path) -> None:
    def trained(name: str, **train: Any) -> RunDir:
        sections = {"train": {"recipe": RECIPE, **train}}
        assert start(tmp_path / name, sections=sections)["status"] == 0, log(tmp_path / name)
        return RunDir(tmp_path / name)

    asked = {"rate": "valley/2", **RAMP}
    with_finder = trained("with", lr_find=asked)
    taken = with_finder.result()["lr_find"]
    assert taken["learning_rate"] == taken["suggestions"]["valley"] / 2
    without = trained("without", learning_rate=taken["learning_rate"])
    assert with_finder.result()["weights_sha256"] == without.result()["weights_sha256"]

    sections = {"train": {"recipe": [], "lr_find": RAMP}, "sweep": {"kind": "lr_find"}}
    assert start(tmp_path / "finder", sections=sections)["status"] == 0, log(tmp_path / "finder")
    assert curve(tmp_path / "finder") == curve(with_finder.path)
    assert RunDir(tmp_path / "finder").result()["suggestions"] == taken["suggestions"]
    assert not (tmp_path / "finder" / "checkpoints").exists()
    after = RunDir(tmp_path / "after")
    after.create()
    after.append_submission(Event(Kind.LOCAL, time=time.time(), job_id="1", finder="finder"))
    trained("after", lr_find=asked)
    assert after.result()["weights_sha256"] == without.result()["weights_sha256"]
    assert after.result()["lr_find"] == {**taken, "finder": "finder"} and not after.rate_curve("find")


def test_two_ranks_find_what_one_process_finds(start: Ask, tmp_path: Path) -> None:
    sections = {"job": {"options": {"dropout": 0.0}}, "train": {"recipe": [], "epochs": 1, "callbacks": []}}
    sections["train"]["lr_find"] = {"rate": "valley", **RAMP}
    for tasks in (1, 2):
        folder = tmp_path / f"{tasks}"
        assert start(folder, tasks=tasks, sections=sections, job=COMPARABLE)["statuses"] == [0] * tasks, log(folder)
    one, two = curve(tmp_path / "1"), curve(tmp_path / "2")
    assert one["losses"] == pytest.approx(two["losses"], rel=1e-4)
    rates = [RunDir(tmp_path / name).result()["lr_find"]["learning_rate"] for name in ("1", "2")]
    assert rates[0] == pytest.approx(rates[1], rel=1e-6)
