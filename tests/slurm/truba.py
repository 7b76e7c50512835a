"""Run `python -m truba_runner` as a user of the test cluster, in a project folder of that user."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster import POLL_SECONDS, Cluster

from truba_runner.runs.events import as_record
from truba_runner.runs.run_directory import RunDir

ROOT = Path(__file__).resolve().parents[2]
FAILING_JOB = 'raise RuntimeError("failing on purpose")\n'
# Writes to the file `began`, then runs until the file `end` exists, and imports no framework.
WAITING_JOB = """
import time
from pathlib import Path
with open("began", "a") as file:
    file.write("began\\n")
while not Path("end").exists():
    time.sleep(0.05)
raise RuntimeError("failing on purpose")
"""


class Truba:
    """A project folder with its own jobs, in which the program is run."""

    def __init__(self, cluster: Cluster, name: str, user: str = "ayse") -> None:
        self.cluster, self.user = cluster, user
        self.project = cluster.scratch(user) / name
        cluster.run(["mkdir", "-p", str(self.project / "jobs"), str(self.project / "bin")], user=user)
        self.environment = {
            "PYTHONPATH": str(ROOT),
            "XDG_STATE_HOME": str(self.project / "state"),
            "COLUMNS": "250",
            "TRUBA_LANG": "en",
            "OMP_WAIT_POLICY": "PASSIVE",  # As in tests/conftest.py, which does not reach the cluster's users.
        }

    def write(self, name: str, text: str, executable: bool = False) -> Path:
        """Write a file of the project and return its path."""
        path = self.project / name
        path.write_text(text)
        path.chmod(0o755 if executable else 0o644)
        return path

    def start(self, *arguments: str, program: list[str] | None = None, **variables: str) -> subprocess.Popen[str]:
        argv = [sys.executable, *(program or ["-m", "truba_runner"]), *arguments]
        return self.cluster.popen(argv, user=self.user, cwd=self.project, env=self.environment | variables)

    def __call__(
        self, *arguments: str, program: list[str] | None = None, timeout: float = 240, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, *(program or ["-m", "truba_runner"]), *arguments]
        return self.cluster.run(
            argv, user=self.user, cwd=self.project, env=self.environment | variables, timeout=timeout, check=False
        )

    def path_with_own_bin(self) -> str:
        """Return PATH with the project's `bin` first, for a fake sbatch that calls the real one."""
        return f"{self.project / 'bin'}:/usr/local/bin:/usr/bin:/bin"

    def runs_folder(self, name: str = "runs") -> str:
        """Return the override that keeps this project's runs separate from those of other tests."""
        return f"cluster.runs_folder={self.project / name}"

    def status(self, *arguments: str) -> list[dict[str, Any]]:
        done = self("status", "--json", *arguments)
        assert done.returncode == 0, done.stderr
        rows: list[dict[str, Any]] = json.loads(done.stdout)
        return rows

    def jobs(self, name_prefix: str = "") -> Mapping[str, str]:
        """Return names by job id of this user's jobs, ended ones too, whose names have this prefix."""
        shown = self.cluster.run(["squeue", "--noheader", "--states=all", "--format=%i|%j", f"--user={self.user}"])
        rows = (line.split("|") for line in shown.stdout.splitlines())
        return {job_id: name for job_id, name in rows if name.startswith(name_prefix)}

    def clear(self) -> None:
        """Cancel this project's jobs and wait until none holds a core: the next test may need all cores."""
        while left := self._in_queue():
            self.cluster.run(["scancel", *left], check=False)
            time.sleep(POLL_SECONDS)

    def _in_queue(self) -> list[str]:
        shown = self.cluster.run(["squeue", "--noheader", "--format=%F|%Z", f"--user={self.user}"]).stdout
        rows = (line.split("|") for line in shown.splitlines())
        return sorted({job_id for job_id, folder in rows if Path(folder).is_relative_to(self.project)})


def run_dirs(project: Path, runs: str = "runs") -> list[Path]:
    return sorted(path for path in (project / runs).iterdir() if not path.name.startswith("."))


def events(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(json.dumps(as_record(event))) for event in RunDir(run_dir).submissions()]
