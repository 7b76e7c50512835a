"""A project for local searches with a backend that needs no framework, and a function to wait."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from in_process import truba

ROOT = Path(__file__).resolve().parents[1]

EXPERIMENT = """# @package _global_
name: parabola
job: {module: nothing, backend: plain, options: {rate: 0.1, shift: 0, pause: 0}}
data: {name: none}
train: {epochs: 2}
sweep:
  direction: min
  space:
    job.options.rate: {float: {min_value: 0.001, max_value: 0.4, sampling: log}}
    job.options.shift: {float: {min_value: 0.0, max_value: 0.1}}
"""


class Project:
    """A project folder in which commands are run, in this process or, with `start`, in another one."""

    def __init__(self, folder: Path, experiment: str = EXPERIMENT, language: str = "en") -> None:
        self.folder = folder
        (folder / "conf" / "experiment").mkdir(parents=True, exist_ok=True)
        (folder / "jobs").mkdir(exist_ok=True)
        (folder / "conf" / "experiment" / "parabola.yaml").write_text(experiment)
        (folder / "jobs" / "nothing.py").write_text("")
        self.environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'plain_backend'}",
            "TRUBA_CLUSTER": "local",
            "TRUBA_LANG": language,
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "truba_runner", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(argv, cwd=self.folder, env=self.environment, stdout=pipe, stderr=pipe, text=True)

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command in this process; it starts its workers as subprocesses."""
        return truba(*arguments, cwd=self.folder, environment=self.environment)

    def search(self, *arguments: str) -> dict[str, Any]:
        done = self("+experiment=parabola", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return self.result()

    @property
    def path(self) -> Path:
        (found,) = [file.parent for file in (self.folder / "runs").glob("*/workers")]
        return found

    def result(self) -> dict[str, Any]:
        return dict(json.loads((self.path / "result.json").read_text()))

    def state(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.path / "state.json").read_text()))
        except (FileNotFoundError, ValueError):
            return {"trials": {}, "oracle": {"end_order": []}}

    def told(self) -> list[str]:
        return list(self.state()["oracle"]["end_order"])


def wait_until(condition: Any, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
