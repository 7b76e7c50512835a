from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from truba_runner.errors import Failed
from truba_runner.runs.record_shapes import progress_from
from truba_runner.runs.run_directory import RunDir
from truba_runner.search.leases import Lease
from truba_runner.search.worker.trainer import _failure
from truba_runner.storage.files import written_by_path
from truba_runner.training.full_disk import explained


def test_a_file_has_its_name_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), written_by_path(path) as beside:
        assert beside.suffix == ".keras", "Keras goes by it"
        beside.write_text("half")
        raise OSError(errno.ENOSPC, "full")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["model.keras"]
    with written_by_path(path) as beside:
        beside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["model.keras"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_recognized_behind_what_a_framework_makes_of_it(tmp_path: Path, number: int) -> None:
    run = RunDir(tmp_path / "mnist-0")

    def raised() -> BaseException:
        try:
            try:
                raise OSError(number, os.strerror(number), "model.keras")
            finally:
                raise ValueError("Can't close the ZIP file")
        except ValueError as error:
            return error

    told = str(explained(raised(), run))
    assert "the disk is full" in told and f"model.keras: {os.strerror(number)}" in told
    assert str(run.path) in told and "starts again from the beginning" in told
    in_words = RuntimeError(f"events.out; {os.strerror(number)}")
    run.checkpoints.mkdir(parents=True)
    (run.checkpoints / "checkpoint-000002-000000005.ckpt").touch()
    assert "resumes from epoch 3, step 5" in str(explained(in_words, run))


def test_other_errors_are_left_as_they_are(tmp_path: Path) -> None:
    for error in (OSError(errno.EACCES, "no"), ValueError("full"), KeyboardInterrupt()):
        assert explained(error, RunDir(tmp_path)) is error


def test_a_full_disk_is_no_fault_of_a_trial(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "0000")
    run.create()
    for message in (
        str(explained(OSError(errno.ENOSPC, "No space left on device"), run)),
        "[Errno 122] Disk quota exceeded",
    ):
        run.write_progress(progress_from({"error": {"type": "Failed", "message": message}}))
        with pytest.raises(Failed, match="trial 0000 could not continue"):
            _failure(run, Lease("0000", 1))
