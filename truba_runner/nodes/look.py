"""Check one node before a job trains there: `python -m truba_runner.nodes.look RUN_DIR` prints one line of JSON.

The checks run in a child process with a time limit: a broken GPU or disk can block a process for ever, and the driver's
library can crash it. The exit status is always 0, as another one would become that of srun for all nodes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import select
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Any

from truba_runner.config.backends import TRAITS
from truba_runner.config.partitions import asked_for, scratch_of
from truba_runner.config.schema import Experiment
from truba_runner.language import _
from truba_runner.nodes import gpus
from truba_runner.nodes.fault import Fault
from truba_runner.nodes.subject import subject_of

_GB = 1e9
# Name of the fault of a node that printed no line.
NO_ANSWER = "answer"


@dataclass(frozen=True)
class Look:
    """What was seen on one node: by check, in the units that the keys name. `fault`: None on a healthy node."""

    node: str
    # Seconds since 1970, by the node's clock, at the end.
    time: float
    seconds: float
    seen: Mapping[str, Any]
    fault: Fault | None = None


def main(arguments: list[str]) -> int:
    """Check this node for the runs of a job and print the result."""
    subject = subject_of(arguments)
    if subject is not None:
        print(json.dumps(asdict(look(subject.experiment))), flush=True)
    return 0


def from_line(line: str) -> Look | None:
    """Return what `main` printed on a node; None for any other line."""
    try:
        values = json.loads(line)
        fault = Fault(**values.pop("fault")) if values["fault"] else values.pop("fault")
        return Look(**values, fault=fault)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def node_name() -> str:
    """Return Slurm's name of this node."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0]


def look(experiment: Experiment) -> Look:
    """Check this node, in at most `cluster.node_check.seconds`."""
    began = time.monotonic()
    seen: dict[str, Any] = {}
    failed: tuple[str, str] | None = None
    limit = experiment.cluster.node_check.seconds
    with in_child(lambda: _checks(experiment), limit) as lines:
        check = ""
        for line in lines:
            check = line.get("begins", check)
            seen.update(line.get("seen", {}))
            if message := line.get("fault"):
                failed = (check, message)
    now = time.time()
    seconds = round(time.monotonic() - began, 3)
    fault = Fault(node_name(), *failed, now) if failed else None
    return Look(node_name(), now, seconds, seen, fault)


@contextmanager
def in_child(
    work: Callable[[], Iterator[Mapping[str, Any]]], limit_seconds: float
) -> Iterator[Iterator[dict[str, Any]]]:
    """Run a generator of records in a forked child; yield its records, and last a `fault` if the child did not end."""
    read, write = os.pipe()
    sys.stdout.flush()
    if not (child := os.fork()):
        os.close(read)
        _report(work, write)
    os.close(write)
    try:
        yield _records(read, child, limit_seconds)
    finally:
        os.close(read)
        with suppress(ProcessLookupError, ChildProcessError):  # It has ended, and was waited for.
            os.kill(child, signal.SIGKILL)
            # A child that a broken device blocks in the kernel cannot be waited for.
            os.waitpid(child, os.WNOHANG)


def _report(work: Callable[[], Iterator[Mapping[str, Any]]], write: int) -> None:
    """Write the records of the work, as the child; never return."""
    try:
        for record in work():
            os.write(write, json.dumps(record).encode() + b"\n")
    # A mistake of this program is no fault of the node.
    except BaseException:
        traceback.print_exc()
    os.write(write, b'{"over": true}\n')
    os._exit(0)


def _records(read: int, child: int, limit_seconds: float) -> Iterator[dict[str, Any]]:
    deadline, received = time.monotonic() + limit_seconds, b""
    while True:
        *lines, received = received.split(b"\n")
        for line in lines:
            record = json.loads(line)
            if "over" in record:
                return
            yield record
        if not select.select([read], [], [], max(0.0, deadline - time.monotonic()))[0]:
            yield {"fault": _("no answer within {seconds:g} s", seconds=limit_seconds)}
            return
        if not (more := os.read(read, 1 << 16)):
            status = os.waitpid(child, 0)[1]
            yield {"fault": _("the check was killed by signal {number}", number=status & 0x7F)}
            return
        received += more


def _checks(experiment: Experiment) -> Iterator[Mapping[str, Any]]:
    """Run the checks until one fails: yield each one's name, what it has seen, and what is wrong."""
    for name, check in _CHECKS.items():
        yield {"begins": name}
        try:
            yield {"seen": check(experiment)}
        except _Bad as bad:
            yield {"seen": bad.seen, "fault": str(bad)}
            return
        except (OSError, gpus.GpuError) as error:
            yield {"fault": str(error)}
            return


class _Bad(Exception):
    """A check failed."""

    def __init__(self, message: str, **seen: Any) -> None:
        super().__init__(message)
        self.seen = seen


def _node_disk(experiment: Experiment) -> Mapping[str, Any]:
    folder, least = scratch_of(experiment), experiment.cluster.node_check.node_disk_gb
    free = round(shutil.disk_usage(folder).free / _GB, 3)
    if free < least:
        values = {"folder": folder, "free": free, "least": least}
        raise _Bad(_("{folder} has {free:g} GB free, less than {least:g} GB", **values), node_disk_gb=free)
    return {"node_disk_gb": free}


def _shared_disk(experiment: Experiment) -> Mapping[str, Any]:
    began = time.monotonic()
    content = os.urandom(experiment.cluster.node_check.shared_disk_mb << 20)
    with _own_file(experiment) as handle:
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(handle, left) :]
            os.fsync(handle)
        except OSError as error:
            if error.errno in {ENOSPC, EDQUOT}:  # Full on all nodes.
                return {"shared_disk": error.strerror}
            raise
        # Read it from the disk, not from memory.
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.lseek(handle, 0, os.SEEK_SET)
        with os.fdopen(os.dup(handle), "rb") as file:
            if file.read() != content:
                raise _Bad(_("a file in {folder} was not read as written", folder=experiment.cluster.runs_folder))
    return {"shared_disk_seconds": round(time.monotonic() - began, 3)}


def _clock(experiment: Experiment) -> Mapping[str, Any]:
    most = experiment.cluster.node_check.clock_seconds
    with _own_file(experiment) as handle:
        before, written, after = time.time(), os.fstat(handle).st_mtime, time.time()
    late = round(max(0.0, written - after) or min(0.0, written - before), 3)
    if abs(late) > most:
        words = _("the clock differs from the shared file system's by {seconds:g} s", seconds=abs(late))
        raise _Bad(words, clock_seconds=late)
    return {"clock_seconds": late}


@contextmanager
def _own_file(experiment: Experiment) -> Iterator[int]:
    """Create a file in the runs folder, for writing and reading, and remove it."""
    file = Path(experiment.cluster.runs_folder) / f".look-{node_name()}-{secrets.token_hex(6)}"
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        yield handle
    finally:
        os.close(handle)
        with suppress(FileNotFoundError):
            file.unlink()


def _environment(experiment: Experiment) -> Mapping[str, Any]:
    traits = TRAITS.get(experiment.job.backend)
    missing = [name for name in (traits.needs if traits else ()) if importlib.util.find_spec(name) is None]
    if missing:
        names = ", ".join(missing)
        raise _Bad(_("{python} does not find {names} here", python=sys.executable, names=names))
    return {"python": sys.executable}


def checks_gpus(experiment: Experiment) -> bool:
    """Whether the job has GPUs that are checked: the site says what they are."""
    known = asked_for(experiment).compute_capability
    return bool(experiment.cluster.node_check.gpus and experiment.resources.gpus and known)


def _gpus(experiment: Experiment) -> Mapping[str, Any]:
    if not checks_gpus(experiment):
        return {}
    # A task may see only its own GPU.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    promised = len(visible.split(",")) if visible else experiment.resources.gpus
    count = len(gpus.memory())
    if count < promised:
        raise _Bad(_("{count} of {promised} GPUs are seen", count=count, promised=promised), gpus=count)
    return {"gpus": count}


def _gpu_memory(experiment: Experiment) -> Mapping[str, Any]:
    if not checks_gpus(experiment):
        return {}
    memory, least = gpus.memory(), experiment.cluster.node_check.gpu_memory_free
    seen = {"gpu_free_gb": [round(free / _GB, 2) for free, total in memory]}
    for index, (free, total) in enumerate(memory):
        if free < least * total:
            values = {"index": index, "free": free / _GB, "total": total / _GB, "others": gpus.processes() or "?"}
            words = _("GPU {index} has {free:.1f} of {total:.1f} GB free; processes: {others}", **values)
            raise _Bad(words, **seen)
    return seen


_CHECKS = {
    "node_disk": _node_disk,
    "shared_disk": _shared_disk,
    "clock": _clock,
    "environment": _environment,
    "gpus": _gpus,
    "gpu_memory": _gpu_memory,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
