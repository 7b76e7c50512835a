"""Fixtures: a process per backend that starts the tests' runs, as importing a framework takes longer than a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fastai_resume_runs as runs
import keras_resume_runs
import pytest

ROOT = Path(__file__).resolve().parents[2]

# TensorFlow and triton, which torch imports if it is installed, each bring an LLVM: a process with both aborts. A job
# uses one framework, but a test process may use both.
sys.modules["triton"] = None  # type: ignore[assignment]


@pytest.fixture(scope="session")
def start() -> Iterator[runs.Ask]:
    """`start(folder, …)` takes the arguments of `fastai_resume_runs.start`; `do="in_fork"` those of `in_fork`."""
    with asking(runs.__file__) as ask:
        yield ask


@pytest.fixture(scope="session")
def start_keras() -> Iterator[runs.Ask]:
    """`start_keras(folder, …)` takes the arguments of `keras_resume_runs.start`."""
    with asking(keras_resume_runs.__file__) as ask:
        yield ask


@contextmanager
def asking(program: str) -> Iterator[runs.Ask]:
    """Start `program` once and yield a function that sends it orders and returns its answers, each a line of JSON."""
    running: list[subprocess.Popen[str]] = []

    def ask(folder: Path, **order: Any) -> Any:
        if not running:
            running.append(_begun(program))
        (process,) = running
        assert process.stdin and process.stdout
        try:
            process.stdin.write(json.dumps({"folder": str(folder), **order}) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())
        except BaseException:
            # The test has timed out: the next one must not receive its answer.
            running.clear()
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise

    yield ask
    for process in running:
        process.communicate(timeout=240)
        assert process.returncode == 0


def _begun(program: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, program]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment, start_new_session=True)
