"""A run on this machine, in the foreground: the same worker, the same run directory, the same log, without Slurm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import truba_runner
from truba_runner import provenance, watch
from truba_runner.submit import Prepared, prepare_directory


def train_here(prepared: Prepared) -> int:
    """Trains a run and shows its log; returns the worker's exit status.

    Ctrl-C reaches the worker itself, which is of the same process group; here it only stops being fatal, once.
    """
    run = prepared.run
    prepare_directory(prepared)
    job_id = f"local-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    run.append_submission(
        {
            "event": "local",
            "job_id": job_id,
            "time": time.time(),
            "job_file": str(prepared.job_file),
            "project": str(Path.cwd()),
            "git": provenance.git_state(Path.cwd()),
            "versions": provenance.versions(),
            "request": asdict(prepared.request),
        }
    )
    log = run.logs / f"{job_id}_0_log.out"
    with log.open("ab") as output:
        worker = subprocess.Popen(
            [sys.executable, "-u", "-m", "truba_runner.worker", str(run.path)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": _with_package(), "TRUBA_JOB_ID": job_id, "TRUBA_JOB_NAME": job_id},
        )
    try:
        watch.follow(run, lambda: log, ended=lambda: worker.poll() is not None)
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


def _with_package() -> str:
    """PYTHONPATH that finds this package where it was not installed but checked out."""
    root = str(Path(truba_runner.__file__).resolve().parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    return f"{root}{os.pathsep}{inherited}" if inherited else root
