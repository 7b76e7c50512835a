"""Event files: what is written, what of it is on the shared disk when, and what a bad disk or a kill leaves of it."""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from truba_runner.config.schema import Cluster, Partition, TensorBoard, experiment_from
from truba_runner.errors import Refused
from truba_runner.rules.experiment import plan
from truba_runner.rules.tensorboard import problems
from truba_runner.runs.run_directory import RunDir
from truba_runner.training.summaries import event_files, writer
from truba_runner.training.summaries.curves import Curves
from truba_runner.training.summaries.gpu_use import GpuUse
from truba_runner.training.summaries.profiles import Profile
from truba_runner.training.summaries.sync import EventFile, whole_bytes
from truba_runner.training.summaries.writer import SummaryWriter

ROOT = Path(__file__).resolve().parents[3]


def events(file: Path) -> list[Any]:
    """Every whole event, read by TensorBoard's own reader, which stops before a part of one."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.tensorflow_stub import errors
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

    reader, found = PyRecordReader_New(str(file)), []
    while True:
        try:
            reader.GetNext()
        except errors.OutOfRangeError:
            return found
        found.append(Event.FromString(reader.record()))


def steps(folder: Path, kind: str = "train") -> list[int]:
    """Of every scalar, in the order in which they stand there."""
    (file,) = (folder / kind).iterdir()
    return [event.step for event in events(file) if event.HasField("summary")]


def tell(told: SummaryWriter, *numbers: int) -> None:
    for number in numbers:
        told.scalars("train", number, {"batch_loss": 1 / number})


def record(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + b"sums" + data + b"sums"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The file and size of each write, whichever disk it goes to."""
    found: list[tuple[str, int]] = []
    real = os.pwrite

    def pwrite(handle: int, data: bytes, offset: int) -> int:
        found.append((os.readlink(f"/proc/self/fd/{handle}"), len(data)))
        return real(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    return found


def given(folder: Path, **settings: Any) -> Any:
    """What `writer.opened` is given by a job on a cluster whose nodes' own disk is FOLDER/node."""
    partition = Partition(local_scratch=str(folder / "node"))
    cluster = Cluster(name="test", scheduler="slurm", partitions={"gpu": partition})
    resources = SimpleNamespace(partition="gpu", constraint="")
    experiment = SimpleNamespace(cluster=cluster, resources=resources, tensorboard=TensorBoard(**settings))
    return SimpleNamespace(experiment=experiment, run=RunDir(folder), rank=settings.pop("rank", 0))


# -- what is copied, and when ------------------------------------------------------------------------------------


def test_only_what_was_appended_is_copied_and_nothing_twice(tmp_path: Path, written: list[tuple[str, int]]) -> None:
    node, shared = tmp_path / "node", tmp_path / "tensorboard"
    node.mkdir()
    told = SummaryWriter(shared, node)
    tell(told, 1, 2, 3)
    assert not shared.exists() and {Path(file).parent for file, _ in written} == {node}
    assert not list(node.iterdir()), "it has no name on the node, so that nothing is left there by a kill"
    first = told.copy()
    assert first == sum(told.sizes().values()) and steps(shared) == [1, 2, 3]
    written.clear()
    assert told.copy() == 0 and not written
    tell(told, 4)
    (size,) = (size for _, size in written)
    assert told.copy() == size == sum(told.sizes().values()) - first
    assert written[-1] == (str(shared / "train" / event_files.OWN), size)
    told.close()
    # The next start, on another node that knows nothing of it, appends to the same file.
    again = SummaryWriter(shared, node)
    tell(again, 5)
    again.close()
    assert steps(shared) == [1, 2, 3, 4, 5] and len(list((shared / "train").iterdir())) == 1
    assert [event.file_version for event in events(shared / "train" / event_files.OWN)].count("brain.Event:2") == 1


def test_what_is_there_can_be_read_at_any_moment(tmp_path: Path) -> None:
    told, stop = SummaryWriter(tmp_path, tmp_path), threading.Event()
    tell(told, 1)
    told.copy()

    def go_on() -> None:
        for number in range(2, 2000):
            tell(told, number)
        stop.set()

    thread = threading.Thread(target=go_on)
    thread.start()
    looked = 0
    while not stop.is_set():
        told.copy()
        file = tmp_path / "train" / event_files.OWN
        assert whole_bytes(file) == file.stat().st_size
        looked += 1
    thread.join()
    told.close()
    assert looked > 2 and steps(tmp_path) == list(range(1, 2000))


def test_it_is_copied_every_so_often_and_at_the_end_whatever_ends_it(tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    with pytest.raises(KeyboardInterrupt), writer.opened(given(tmp_path, sync_seconds=0.05)) as told:
        tell(told, 1)
        deadline = time.monotonic() + 240
        while not (tmp_path / "tensorboard" / "train" / event_files.OWN).exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        tell(told, 2)
        raise KeyboardInterrupt
    assert steps(tmp_path / "tensorboard") == [1, 2]
    assert not [thread for thread in threading.enumerate() if thread.name == "tensorboard"]
    # Long before the first time it would be copied.
    with writer.opened(given(tmp_path, sync_seconds=3600)) as told:
        tell(told, 3)
    assert steps(tmp_path / "tensorboard") == [1, 2, 3]


def test_straight_to_the_shared_disk_there_is_no_thread_and_no_delay(tmp_path: Path) -> None:
    with writer.opened(given(tmp_path, node_local=False)) as told:
        tell(told, 1)
        assert steps(tmp_path / "tensorboard") == [1]
        assert not [thread for thread in threading.enumerate() if thread.name == "tensorboard"]


@pytest.mark.parametrize("why", [{"enabled": False}, {"rank": 1}])
def test_whoever_is_not_to_write_makes_no_folder(tmp_path: Path, why: dict[str, Any]) -> None:
    context = given(tmp_path, enabled=why.get("enabled", True))
    context.rank = why.get("rank", 0)
    with writer.opened(context) as told:
        tell(told, 1)
        assert told.sizes() == {}
    assert not (tmp_path / "tensorboard").exists()


def test_without_the_package_the_training_goes_on_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with writer.opened(given(tmp_path)) as told:
        told.image("train", "show_batch", 0, b"")
        told.scalars("train", 1, {"batch_loss": 0.5})
        told.settle()
        Curves(told, 1, GpuUse(None)).trained(1, lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    assert not (tmp_path / "tensorboard").exists()
    said = capsys.readouterr().err
    assert said.count("TensorBoard's event files are not written") == 1 and "training continues" in said


CHILD = """
import sys, time
from pathlib import Path
from test_summaries import given, tell
from truba_runner.training.summaries import writer as writer
with writer.opened(given(Path(sys.argv[1]), sync_seconds=0.5)) as told:
    for number in range(1, 100000):
        tell(told, number)
        print(number, time.time(), flush=True)
        time.sleep(0.005)
"""


def test_a_kill_takes_no_more_than_an_interval_along(tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'unit' / 'training'}"}
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=out, env=environment)

    def printed() -> list[tuple[int, float]]:
        whole_lines = log.read_text().rpartition("\n")[0].splitlines()
        return [(int(number), float(at)) for number, at in map(str.split, whole_lines)]

    deadline = time.monotonic() + 240
    # For some intervals, the first copy being made at once.
    while not (lines := printed()) or lines[-1][1] < lines[0][1] + 6:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    lines = printed()
    there = steps(tmp_path / "tensorboard")
    # A copy takes its time too, on a machine that others use.
    due = max(number for number, at in lines if at < lines[-1][1] - 0.5 - 4)
    assert there == list(range(1, there[-1] + 1)) and due > 1 and there[-1] >= due
    assert not list((tmp_path / "node").iterdir())


# -- going on ----------------------------------------------------------------------------------------------------


def test_a_run_goes_on_where_its_checkpoint_was_even_if_it_was_killed_before_a_copy(tmp_path: Path) -> None:
    node, shared = tmp_path / "node", tmp_path / "shared"
    node.mkdir()
    killed = SummaryWriter(shared, node)
    tell(killed, 1, 2, 3)
    sizes = killed.sizes()
    killed.settle()  # What a checkpoint does before it is written.
    tell(killed, 4, 5)
    killed.copy()
    tell(killed, 6)
    for file in killed._files.values():
        file.close()
    event_files.cut(shared, sizes)
    again = SummaryWriter(shared, node)
    tell(again, 4, 5, 6)
    again.close()
    assert steps(shared) == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_that_the_disk_left_without_its_events_costs_steps_and_not_the_file(tmp_path: Path) -> None:
    told = SummaryWriter(tmp_path)
    tell(told, 1, 2)
    told.close()
    file = tmp_path / "train" / event_files.OWN
    whole = file.stat().st_size
    with file.open("ab") as handle:
        handle.write(struct.pack("<Q", 1000) + b"half of a record")
    assert whole_bytes(file) == whole
    event_files.cut(tmp_path, {f"train/{event_files.OWN}": whole + 5000})
    again = SummaryWriter(tmp_path)
    tell(again, 4)
    again.close()
    assert steps(tmp_path) == [1, 2, 4]


@pytest.mark.parametrize("end", [b"", b"\1", b"\1\0\0\0\0\0\0\0sums", record(b"abc")[:-1]])
def test_whole_records_end_where_the_next_one_is_cut(end: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(record(b"abc") + record(b"") + end)
    assert whole_bytes(tmp_path / "file") == len(record(b"abc") + record(b""))
    assert whole_bytes(tmp_path / "nothing") == 0


WATCHING = """
import sys
sys.modules["tensorflow"] = None  # TensorBoard takes its own reader then, and does not wait for an import.
from pathlib import Path
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_summaries import tell
from truba_runner.training.summaries import event_files
from truba_runner.training.summaries.writer import SummaryWriter

folder = Path(sys.argv[1])
watching, sizes = EventAccumulator(str(folder / "train"), size_guidance={"scalars": 0}), {}
# Of each start the first step, that of its checkpoint (0: it came to none) and the last; then it is killed.
for first, saved, last in ((1, 0, 3), (1, 4, 6), (5, 8, 9), (9, 12, 12)):
    event_files.cut(folder, sizes)
    told = SummaryWriter(folder)
    tell(told, *range(first, saved + 1))
    sizes = told.sizes() if saved else {}
    tell(told, *range(max(first, saved + 1), last + 1))
    told.close()
    assert [event.step for event in watching.Reload().Scalars("batch_loss")] == list(range(1, last + 1))
    with (folder / "train" / event_files.OWN).open("ab") as file:
        file.write(b"P" + bytes(7) + b"half of a record")
    fresh = EventAccumulator(str(folder / "train"), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in fresh.Scalars("batch_loss")] == list(range(1, last + 1))
print("each step once")
"""


def test_tensorboard_reads_each_step_once_whether_it_has_watched_or_comes_to_a_half_written_record(
    tmp_path: Path,
) -> None:
    """Its own EventAccumulator, over four starts, one of which was killed before any checkpoint."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'unit' / 'training'}"}
    command = [sys.executable, "-c", WATCHING, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout == "each step once\n", done.stderr


# -- disks that are full, or not there ---------------------------------------------------------------------------


def test_a_node_without_room_or_folder_is_told_of_once_and_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with writer.opened(given(tmp_path)) as told:
        tell(told, 1)
        told.scalars("validation", 1, {"epoch_loss": 1.0})
        assert steps(tmp_path / "tensorboard") == [1]
    said = capsys.readouterr().err
    assert (
        said.count("tensorboard.node_local: [Errno 2]") == 1 and f"writing to {tmp_path / 'tensorboard'} itself" in said
    )


def in_a_fork(function: Callable[[], Any]) -> Any:
    """What it returns, in a process that may mount what it likes; its standard error as `said`."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writing, 2)
        try:
            answer = function()
            os.write(2, b"\n" + json.dumps(answer).encode())
        except BaseException as error:
            os.write(2, f"\n{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        *said, answer = pipe.read().splitlines()
    os.waitpid(child, 0)
    return SimpleNamespace(said="\n".join(said), **json.loads(answer))


def small_disk(folder: Path, kilobytes: int) -> None:
    """One that this process alone sees, and that goes with it."""
    libc = ctypes.CDLL(None, use_errno=True)
    private, recursive, new_mounts = 1 << 18, 1 << 14, 0x20000
    folder.mkdir(parents=True)
    assert libc.unshare(new_mounts) == 0
    assert libc.mount(b"none", b"/", None, recursive | private, None) == 0
    assert libc.mount(b"none", bytes(folder), b"tmpfs", 0, f"size={kilobytes}k".encode()) == 0


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")


@needs_root
def test_a_full_shared_disk_loses_nothing_once_there_is_room_again(tmp_path: Path) -> None:
    def fill() -> dict[str, Any]:
        shared = tmp_path / "shared"
        small_disk(shared, 16)
        (shared / "other").write_bytes(b"x" * 8192)
        sys.stderr = open(2, "w", closefd=False)
        told = SummaryWriter(shared / "tensorboard", tmp_path)
        for number in range(1, 201):
            tell(told, number)
            told.copy()
        file = shared / "tensorboard" / "train" / event_files.OWN
        full, whole = file.stat().st_size, whole_bytes(file)
        (shared / "other").unlink()
        told.close()
        return {"full": full, "whole": whole, "steps": steps(shared / "tensorboard")}

    found = in_a_fork(fill)
    assert 0 < found.full == found.whole, "what was there when the disk was full could be read"
    assert found.steps == list(range(1, 201))
    assert found.said.count("could not be written ([Errno 28]") == 1 and "training continues" in found.said


@needs_root
def test_a_full_disk_of_the_node_sends_the_rest_straight_to_the_shared_one(tmp_path: Path) -> None:
    def fill() -> dict[str, Any]:
        small_disk(tmp_path / "node", 4)
        sys.stderr = open(2, "w", closefd=False)
        told = SummaryWriter(tmp_path / "shared", tmp_path / "node")
        tell(told, *range(1, 201))
        there = steps(tmp_path / "shared")
        told.close()
        return {"there": there}

    found = in_a_fork(fill)
    assert found.there == list(range(1, 201)), "without a copy"
    assert found.said.count("the node's own disk takes no more of") == 1 and "straight to the shared disk" in found.said


def filled(shared: Path, told: SummaryWriter) -> dict[str, Any]:
    """What comes of 200 points for which a disk has no room, and of five more once it has."""
    (shared / "other").write_bytes(b"x" * 8192)
    sys.stderr = open(2, "w", closefd=False)
    tell(told, *range(1, 201))
    file = shared / "train" / event_files.OWN
    full, whole = file.stat().st_size, whole_bytes(file)
    (shared / "other").unlink()
    tell(told, *range(201, 206))
    there = steps(shared)
    told.close()
    return {"full": full, "whole": whole, "there": there, "steps": steps(shared)}


@needs_root
@pytest.mark.parametrize("by_way_of_the_node", [False, True])
def test_a_full_disk_written_to_straight_stops_nothing_and_leaves_one_gap(
    tmp_path: Path, by_way_of_the_node: bool
) -> None:
    def fill() -> dict[str, Any]:
        small_disk(tmp_path / "shared", 16)
        small_disk(tmp_path / "node", 4)
        node = tmp_path / "node" if by_way_of_the_node else None
        return filled(tmp_path / "shared", SummaryWriter(tmp_path / "shared", node))

    found = in_a_fork(fill)
    assert found.full == found.whole, "what was there when the disk was full could be read"
    lost = sorted({*range(1, 206)} - {*found.steps})
    assert found.there == found.steps == sorted(found.steps) and found.steps[-5:] == [201, 202, 203, 204, 205]
    assert lost and lost == list(range(lost[0], 201)) and lost[0] > 10, "the oldest are kept, so there is one gap"
    assert found.said.count("could not be written ([Errno 28]") == 1


def test_files_that_were_taken_away_are_not_written_with_a_hole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = SummaryWriter(tmp_path, tmp_path)
    tell(told, 1)
    told.copy()
    (tmp_path / "train" / event_files.OWN).unlink()
    for number in (2, 3):
        tell(told, number)
        told.copy()
    told.close()
    assert capsys.readouterr().err.count("was deleted or truncated meanwhile") == 1
    assert (tmp_path / "train" / event_files.OWN).stat().st_size == 0


def test_a_file_that_cannot_be_made_durable_is_no_reason_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    told = SummaryWriter(tmp_path, tmp_path)
    tell(told, 1)
    told.copy()
    assert not synced
    told.settle()
    assert synced == [str(tmp_path / "train" / event_files.OWN)], (
        "a checkpoint outlasts a loss of power, and so does this"
    )
    told.settle()
    assert len(synced) == 1, "nothing has come since"
    monkeypatch.setattr(os, "fsync", lambda handle: os.close(10**6))
    tell(told, 2)
    told.settle()
    told.close()
    assert "training continues" in capsys.readouterr().err


# -- which points there are --------------------------------------------------------------------------------------


def values(folder: Path, kind: str) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events(folder / kind / event_files.OWN):
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_points_lie_every_so_many_steps_however_many_an_execution_has_and_wherever_it_begins(tmp_path: Path) -> None:
    def trained(folder: str, executions: list[int], begin: int = 0) -> list[int]:
        told = SummaryWriter(tmp_path / folder)
        curves = Curves(told, 10, GpuUse(None))
        curves.begins(begin)
        for number in executions:
            curves.trained(number, lambda: {"batch_loss": 0.5, "learning_rate": 0.1})
        told.close()
        return [step for step, _ in values(tmp_path / folder, "train")["batch_loss"]]

    assert trained("one", [*range(1, 41)]) == [10, 20, 30, 40]
    assert trained("four", [*range(4, 41, 4)]) == [12, 20, 32, 40]
    assert trained("resumed", [*range(10, 41)], begin=9) == [10, 20, 30, 40]
    assert trained("resumed after a point", [*range(11, 41)], begin=10) == [20, 30, 40]


def test_throughput_counts_what_was_trained_since_the_last_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 2.0, 3.0, 100.0, 101.0, 101.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    told = SummaryWriter(tmp_path)
    curves = Curves(told, 10, GpuUse(lambda: 2.5e9))
    curves.examples_per_step = 32
    curves.begins(0)
    curves.trained(10, dict)
    curves.begins(16)  # After a validation, that took its time.
    curves.trained(20, dict)
    told.close()
    found = values(tmp_path, "train")
    assert found["examples_per_second"] == [(10, 160.0), (20, 128.0)]
    assert found["gpu_memory_gb"] == [(10, 2.5), (20, 2.5)] and "gpu_utilization_percent" not in found


def test_epochs_have_training_and_validation_under_one_name_apart(tmp_path: Path) -> None:
    told = SummaryWriter(tmp_path)
    Curves(told, None, GpuUse(None)).epoch_ends(3, {"loss": 1.0, "accuracy": 0.5, "val_loss": 2.0}, 0.125)
    told.close()
    assert values(tmp_path, "train") == {
        "epoch_loss": [(3, 1.0)], "epoch_accuracy": [(3, 0.5)], "epoch_learning_rate": [(3, 0.125)],
    }  # fmt: skip
    assert values(tmp_path, "validation") == {"epoch_loss": [(3, 2.0)]}


# -- GPUs: with a stand-in for nvidia-smi, as this machine has none ------------------------------------------------


def nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> GpuUse:
    program = folder / "nvidia-smi"
    program.write_text(f'#!/bin/sh\necho "$@" > {folder}/asked\n{script}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return GpuUse(lambda: 1e9)


def test_utilization_is_the_mean_over_the_jobs_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    gpu = nvidia_smi(tmp_path, monkeypatch, "echo 90; echo 71")
    assert gpu.watched and math.isnan(gpu.values()["gpu_utilization_percent"]), "it was not looked at yet"
    gpu.look()
    assert gpu.values() == {"gpu_memory_gb": 1.0, "gpu_utilization_percent": 80.5}
    asked = (tmp_path / "asked").read_text().split()
    assert asked == ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--id=0,2"]


@pytest.mark.parametrize("script", ["echo '[N/A]'", "exit 9", "", "echo no devices"])
def test_a_gpu_that_does_not_tell_has_the_same_curves_without_a_value(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = nvidia_smi(tmp_path, monkeypatch, script)
    gpu.look()
    assert set(gpu.values()) == {"gpu_memory_gb", "gpu_utilization_percent"}
    assert math.isnan(gpu.values()["gpu_utilization_percent"])


def test_without_a_gpu_nothing_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, "echo 90")
    assert not GpuUse(None).watched and GpuUse(None).values() == {}
    monkeypatch.setenv("PATH", "")
    assert not GpuUse(lambda: 1e9).watched and GpuUse(lambda: 1e9).values() == {"gpu_memory_gb": 1.0}


# -- a profile ---------------------------------------------------------------------------------------------------


class Profiler:
    def __init__(self) -> None:
        self.told: list[str] = []

    def start(self) -> None:
        self.told.append("start")

    def step(self) -> None:
        self.told.append("step")

    def stop(self, folder: Path | None) -> None:
        self.told.append("stop" if folder else "thrown away")
        if folder:
            (folder / "trace").touch()


def profiled(folder: Path, executions: list[int], steps: tuple[int, int] = (10, 12)) -> list[str]:
    profiler = Profiler()
    profile = Profile(folder, steps, profiler)
    for number in executions:
        profile.trained(number)
    profile.close()
    return profiler.told


def test_a_profile_is_taken_of_the_steps_that_were_chosen_and_once(tmp_path: Path) -> None:
    assert profiled(tmp_path, [*range(1, 30)]) == ["start", "step", "step", "stop"]
    (taken,) = (tmp_path / "plugins" / "profile").iterdir()
    assert taken.name == "steps-10-12" and (taken / "trace").exists()
    assert profiled(tmp_path, [*range(1, 30)]) == [], "not by the next start either"
    # 32 steps an execution: the one that is the first to begin in time.
    assert profiled(tmp_path / "many", [32, 64, 96]) == ["start", "stop"]
    assert (tmp_path / "many" / "plugins" / "profile" / "steps-33-64").exists()


def test_a_profile_that_is_cut_short_is_thrown_away_and_begun_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert profiled(tmp_path, [*range(1, 9)]) == []
    assert "3 steps from step 10 on" in (told := capsys.readouterr().err) and "is at step 8" in told
    assert profiled(tmp_path, [*range(9, 12)]) == ["start", "step", "step", "thrown away"]
    assert "no profile so far" in capsys.readouterr().err
    assert profiled(tmp_path, [12, 13, 14, 15]) == ["start", "step", "step", "stop"]
    assert (tmp_path / "plugins" / "profile" / "steps-13-15").exists()
    assert profiled(tmp_path, []) == [] and "no profile" not in capsys.readouterr().err


def test_a_profiler_that_fails_stops_no_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failing = Profiler()
    failing.start = lambda: 1 // 0  # type: ignore[method-assign]
    profile = Profile(tmp_path, (2, 3), failing)
    for number in range(1, 6):
        profile.trained(number)
    profile.close()
    assert failing.told == [] and capsys.readouterr().err.count("no profile was taken (ZeroDivisionError") == 1


# -- the config --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "received", "remedy"),
    [
        ({"every_steps": 0}, "tensorboard.every_steps=0", "null"),
        ({"sync_seconds": 0.5}, "tensorboard.sync_seconds=0.5", "tensorboard.node_local=false"),
        ({"sync_seconds": math.nan}, "tensorboard.sync_seconds=nan", "tensorboard.node_local=false"),
        ({"profile_steps": [10]}, "tensorboard.profile_steps=[10]", "[10,20]"),
        ({"profile_steps": [20, 10]}, "tensorboard.profile_steps=[20, 10]", "[10,20]"),
        ({"profile_steps": [1, 4]}, "tensorboard.profile_steps=[1, 4]", "tensorboard.profile_steps=[10,13]"),
        ({"profile_steps": [10, 110]}, "tensorboard.profile_steps=[10, 110]", "tensorboard.profile_steps=[10,20]"),
        ({"enabled": False, "graph": True}, "tensorboard.graph", "tensorboard.enabled"),
        ({"enabled": False, "profile_steps": [2, 3]}, "tensorboard.profile_steps", "tensorboard.enabled"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_their_remedy(
    settings: dict[str, Any], received: str, remedy: str
) -> None:
    (problem,) = problems(TensorBoard(**settings))
    assert problem.received == received and remedy in problem.remedy


def test_settings_are_looked_at_with_all_others() -> None:
    experiment = experiment_from(
        {
            "name": "mnist",
            "job": {"module": "mnist"},
            "data": {"name": "digits"},
            "tensorboard": {"every_steps": 0},
            "cluster": {"name": "test"},
            "environment": {"name": "test"},
            "resources": {"partition": "", "gpus": 0, "account": ""},
        }
    )
    with pytest.raises(Refused, match="tensorboard.every_steps=0"):
        plan(experiment)


def test_settings_that_make_sense_are_not(tmp_path: Path) -> None:
    assert not list(problems(TensorBoard()))
    assert not list(problems(TensorBoard(every_steps=None, sync_seconds=1, graph=True, profile_steps=[2, 101])))


def test_a_job_told_to_write_straight_needs_no_scratch(tmp_path: Path) -> None:
    file = EventFile(tmp_path / "train" / "file")
    file.append(record(b"abc"))
    assert file.copy() == 0 and whole_bytes(tmp_path / "train" / "file") == len(record(b"abc"))
    file.close()
