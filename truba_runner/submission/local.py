"""Train a run on this machine in the foreground, with the worker, run directory and log of a Slurm job."""

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
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.state import last_job_id
from truba_runner.submission.prepared import Prepared, prepare_directory


def start_here(prepared: Prepared) -> subprocess.Popen[bytes]:
    """Start the run's worker and record it; the caller holds the lock of the runs folder."""
    run = prepared.run
    prepare_directory(prepared)
    job_id = f"local-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    event = Event(
        Kind.LOCAL,
        time.time(),
        job_id,
        host=socket.gethostname(),
        **provenance.record(prepared.job_file),
        request=asdict(prepared.request),
        finder=prepared.finder.run.id if prepared.finder else "",
    )
    # Recorded before the worker reads it, and again with the process id, which shows others that it is alive.
    run.append_submission(event)
    with (run.logs / f"{job_id}_0_log.out").open("ab") as output:
        worker = subprocess.Popen(
            [sys.executable, "-u", "-m", prepared.program, str(run.path)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=with_package({"TRUBA_JOB_ID": job_id, "TRUBA_JOB_NAME": job_id}),
        )
    run.append_submission(Event(Kind.LOCAL, job_id=job_id, host=event.host, pid=worker.pid))
    return worker


def see_through(prepared: Prepared, worker: subprocess.Popen[bytes]) -> bool:
    """Show the run's log until the worker exits; return whether this command received a signal meanwhile.

    Ctrl-C and the closing of the terminal also signal the worker, which is in the same process group; this process
    only has to survive them (Ctrl-C once). SIGTERM, which this process alone receives, is forwarded.
    """
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
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
        received.append(signal.SIGINT)
        print(_("interrupted: the run is ending; Ctrl-C again kills it"), file=sys.stderr)
        _end(worker)
    status = worker.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
    if status < 0 and not run.result():
        # A killed worker could not record this itself.
        name = signal.Signals(-status).name
        run.append_submission(Event(Kind.KILLED, job_id=last_job_id(run), signal=name))
    return bool(received)


def _end(worker: subprocess.Popen[bytes]) -> None:
    """Stop the worker after Ctrl-C and wait for it; a second Ctrl-C kills it."""
    worker.send_signal(signal.SIGTERM)
    try:
        worker.wait()
    except KeyboardInterrupt:
        worker.kill()


def with_package(variables: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment plus `variables`; Python finds this package even if it is only checked out."""
    root = str(Path(truba_runner.__file__).resolve().parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    path = f"{root}{os.pathsep}{inherited}" if inherited else root
    return {HASH_SEED: SAME_HASHES, **os.environ, "PYTHONPATH": path, **variables}
