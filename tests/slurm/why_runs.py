"""Plain sbatch jobs recorded as runs, so that a test can provoke and diagnose any end of a job within seconds."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

from truba import Truba

from truba_runner.runs.events import Event, Kind
from truba_runner.runs.run_directory import RunDir


class WhyRuns:
    """Runs of one project whose jobs are shell scripts."""

    def __init__(self, truba: Truba) -> None:
        self.truba = truba
        self.folder = truba.project / "runs"
        truba.cluster.run(["mkdir", "-p", str(self.folder)], user=truba.user)

    def submit(
        self, name: str, *options: str, script: str = "true", asked: str = "barbun-cuda -c 20 --gres=gpu:1"
    ) -> str:
        """Submit a script as the job of run NAME-1 and return the job id. `asked` begins with the partition."""
        run = RunDir(self.folder / f"{name}-1")
        run.create()
        self._own(run.path)
        log = f"--output={run.logs}/%j_0_log.out"
        arguments = ["-p", *shlex.split(asked), "--time=10", log, f"--job-name={run.id}.t", *options]
        job_id = self.truba.cluster.sbatch(arguments, script, user=self.truba.user)
        self.on_record(name, job_id, partition=asked.split()[0])
        return job_id

    def on_record(self, name: str, job_id: str, **request: Any) -> RunDir:
        """Write the records of a submission into the run directory."""
        run = RunDir(self.folder / f"{name}-1")
        if not run.path.exists():  # `create` refuses root a directory that already belongs to the user.
            run.create()
        request = {"account": self.truba.user, **request}
        run.append_submission(Event(Kind.INTENT, token="t", job_name=f"{run.id}.t", request=request))
        run.append_submission(Event(Kind.SUBMITTED, token="t", job_id=job_id))
        self._own(run.path)
        return run

    def why(self, *names: str, **variables: str) -> dict[str, dict[str, Any]]:
        """Return the rows of `truba why --json` for some runs, by name."""
        ids = [f"{name}-1" for name in names]
        done = self.truba("why", "--json", "--runs", str(self.folder), *ids, **variables)
        assert done.returncode == 0, done.stderr
        return {row["run"].removesuffix("-1"): row for row in json.loads(done.stdout)}

    def said(self, *names: str, **variables: str) -> str:
        """Return the text of `truba why` for some runs."""
        done = self.truba("why", "--runs", str(self.folder), *(f"{name}-1" for name in names), **variables)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _own(self, path: Path) -> None:
        owner = self.folder.stat()
        for folder, _, files in os.walk(path):
            for one in (folder, *(os.path.join(folder, file) for file in files)):
                shutil.chown(one, owner.st_uid, owner.st_gid)
