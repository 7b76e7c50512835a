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
from truba_runner.code import provenance
from truba_runner.environment.start import HASH_SEED, SAME_HASHES
from truba_runner.language import _
from truba_runner.runs import log
from truba_runner.runs.state import last_job_id
from truba_runner.submission.prepared import Prepared, prepare_directory


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
        **({"finder": prepared.finder.run.id} if prepared.finder else {}),
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


def see_through(prepared: Prepared, worker: subprocess.Popen[bytes]) -> bool:
    """Shows the run's log until the worker ends; whether this command was told to end meanwhile.

    Ctrl-C and the end of the terminal reach the worker itself, which is of the same process group; here they only stop
    being fatal, Ctrl-C once. What else tells this command to end is passed on.
    """
    told: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        told.append(number)
        worker.send_signal(number)

    def go_on_unseen(number: int, frame: FrameType | None) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        pass_on(number, frame)

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on)}
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, go_on_unseen)
    run = prepared.run
    try:
        log.follow(run, lambda: log.latest_log(run), ended=lambda: worker.poll() is not None)
    except KeyboardInterrupt:
        told.append(signal.SIGINT)
        print(_("interrupted: the run is ending; Ctrl-C again kills it"), file=sys.stderr)
        _end(worker)
    status = worker.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
    if status < 0 and not run.result():
        # The worker could not put that on record itself.
        ended = {"event": "killed", "job_id": last_job_id(run), "signal": signal.Signals(-status).name}
        run.append_submission(ended)
    return bool(told)


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
    path = f"{root}{os.pathsep}{inherited}" if inherited else root
    return {HASH_SEED: SAME_HASHES, **os.environ, "PYTHONPATH": path, **variables}
