"""What a job executes: `python -m truba_runner.worker RUN_DIR` reads the run directory, trains, and writes the result.

It needs neither Hydra nor submitit, and starts from an address alone, so the job's Python may be another than the
login node's.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from truba_runner import allocation, backends, job_module
from truba_runner.config import Experiment, experiment_from
from truba_runner.progress import Progress
from truba_runner.rundir import RunDir


class Terminated(BaseException):
    """Slurm, or the user, told this process to end."""


def main(arguments: list[str]) -> int:
    """Trains the run at `arguments[0]`; 0 when it has a result, 1 when it raised, 143 when it was told to end."""
    run = RunDir(Path(arguments[0]).resolve())
    here = allocation.current()
    first = here.rank == 0
    progress = Progress(run, here.job_id, writes=first)
    try:
        _listen_to_signals()
        os.chdir(run.path)
        if first:
            started = {"event": "started", "time": time.time(), "job_id": here.job_id, "job_name": here.job_name}
            run.append_submission({**started, "host": platform.node(), "python": platform.python_version()})
        if (other := _claimed_by(run, here)) != here.job_id:
            print(f"this submission is job {other}'s already; there is nothing to do for {here.job_id}", flush=True)
            if first:
                run.append_submission({"event": "duplicate", "job_id": here.job_id})
            return 0
        experiment = experiment_from(run.read_config())
        progress.update(epochs=experiment.train.epochs)
        result = _train(experiment, run, progress, here)
        if first:
            run.write_result({**result, "data": _data_record(experiment), "job_id": here.job_id})
        progress.update(state="finished", metrics=result.get("metrics", {}))
    except Terminated:
        progress.update(state="interrupted")
        print("interrupted", file=sys.stderr, flush=True)
        return 128 + signal.SIGTERM
    except BaseException as error:
        traceback.print_exc()
        progress.update(state="failed", error=describe(error, Path(_job_file(run)).parent))
        return 1
    return 0


def _train(experiment: Experiment, run: RunDir, progress: Progress, here: allocation.Allocation) -> dict[str, Any]:
    print(f"run {run.id}, job {here.job_id}, on {platform.node()}, data {experiment.data.name}", flush=True)
    job = job_module.load(Path(_job_file(run)))
    train = backends.load(experiment.job.backend)
    return train(backends.Context(experiment, job, run, progress, here.rank, here.tasks))


def _claimed_by(run: RunDir, here: allocation.Allocation) -> str:
    """The job that this submission belongs to: the first, where an sbatch that timed out was taken twice."""
    for event in run.submissions():
        same = event.get("job_name") == here.job_name or here.job_name.endswith(f".{event.get('token')}")
        if same and event["event"] in {"submitted", "started"}:
            return str(event["job_id"])
    return here.job_id


def _job_file(run: RunDir) -> str:
    """The training code that the latest submission named."""
    return next((str(event["job_file"]) for event in reversed(run.submissions()) if "job_file" in event), "")


def _data_record(experiment: Experiment) -> dict[str, str]:
    source = experiment.data.sources.get(experiment.data.name)
    return {"name": experiment.data.name, "file": source.file if source else ""}


def _listen_to_signals() -> None:
    def end(number: int, frame: FrameType | None) -> None:
        for once_is_enough in (signal.SIGTERM, signal.SIGINT):
            signal.signal(once_is_enough, signal.SIG_IGN)
        raise Terminated

    def note(number: int, frame: FrameType | None) -> None:
        print("the time limit is near", file=sys.stderr, flush=True)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGUSR2, note)


def describe(error: BaseException, job_folder: Path) -> dict[str, Any]:
    """An exception in one record: what it was, and the last line of the user's own code on its way.

    Keys: `type`, `message`, and where the way led through `job_folder` also `file`, `line` and `code`.
    """
    record: dict[str, Any] = {"type": type(error).__name__, "message": str(error).strip()[:2000]}
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) and error.filename:
        frames.append(traceback.FrameSummary(error.filename, error.lineno or 0, "", line=error.text or ""))
    for frame in reversed(frames):
        if Path(frame.filename).is_relative_to(job_folder):
            return {**record, "file": frame.filename, "line": frame.lineno, "code": (frame.line or "").strip()}
    return record


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
