"""A run on this machine, in the foreground: the same worker, the same run directory, the same log, without Slurm."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import truba_runner
from truba_runner import provenance, watch
from truba_runner.submit import Prepared, prepare_directory


def start_here(prepared: Prepared) -> subprocess.Popen[bytes]:
    """Starts the run's worker and puts it on record; the caller holds the runs folder's lock."""
    run = prepared.run
    prepare_directory(prepared)
    job_id = f"local-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    event = {
        "event": "local",
        "job_id": job_id,
        "time": time.time(),
        "host": socket.gethostname(),
        **provenance.record(prepared.job_file),
        "request": asdict(prepared.request),
    }
    # On record before the worker reads it; once more with its process id, by which others see that it lives.
    run.append_submission(event)
    with (run.logs / f"{job_id}_0_log.out").open("ab") as output:
        worker = subprocess.Popen(
            [sys.executable, "-u", "-m", prepared.program, str(run.path)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=with_package({"TRUBA_JOB_ID": job_id, "TRUBA_JOB_NAME": job_id}),
        )
    run.append_submission({"event": "local", "job_id": job_id, "host": event["host"], "pid": worker.pid})
    return worker


def see_through(prepared: Prepared, worker: subprocess.Popen[bytes]) -> int:
    """Shows the run's log until the worker ends; returns the worker's exit status.

    Ctrl-C reaches the worker itself, which is of the same process group; here it only stops being fatal, once. What
    else tells this command to end is passed on.
    """

    def pass_on(number: int, frame: FrameType | None) -> None:
        worker.send_signal(signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    run = prepared.run
    try:
        watch.follow(run, lambda: watch.latest_log(run), ended=lambda: worker.poll() is not None)
    except KeyboardInterrupt:
        print("interrupted: the run is ending; Ctrl-C again kills it", file=sys.stderr)
        _end(worker)
    return worker.wait()


def _end(worker: subprocess.Popen[bytes]) -> None:
    """Waits for a worker that has had Ctrl-C; a second one kills it."""
    worker.send_signal(signal.SIGTERM)
    try:
        worker.wait()
    except KeyboardInterrupt:
        worker.kill()


def with_package(variables: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with more variables, in which this package is found where it was only checked out."""
    root = str(Path(truba_runner.__file__).resolve().parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{inherited}" if inherited else root, **variables}
