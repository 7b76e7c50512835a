"""A Keras job trains with TensorFlow, whichever of Keras' backends the environment asks for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

TRAIN = """
import sys
from pathlib import Path
import keras_resume_runs as runs
from truba_runner.training import backend
# Before the job's module, as the worker does it.
backend.load("keras")
folder = Path(sys.argv[1])
train = {"epochs": 1, "callbacks": []}
sections = {"train": train, "tensorboard": {"enabled": False}, "job": {"options": {"augment": False}}}
stop = runs.StopWhenAsked(None, 0, folder / "reached")
runs.train(folder, sections, sys.argv[2] + runs.JOB, stop, 0, 1)
"""


def start(program: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "training")))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore", **variables}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_another_backend_in_the_environment_is_not_used_and_named(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    done = start(TRAIN, str(tmp_path / "run"), "", KERAS_BACKEND="torch")
    assert done.returncode == 0, done.stderr
    assert "KERAS_BACKEND=torch is not used: job.backend=keras trains with TensorFlow" in done.stdout
    assert "epoch 1/1" in done.stdout


def test_a_job_that_imports_keras_with_another_backend_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    done = start(TRAIN, str(tmp_path / "run"), "import os\nos.environ['KERAS_BACKEND'] = 'torch'\nimport keras\n")
    assert done.returncode == 1
    assert "Keras was imported with the backend torch" in done.stderr and "small.py" in done.stderr


def test_the_users_own_settings_of_keras_are_named_and_those_that_fit_are_not(tmp_path: Path) -> None:
    program = (
        "import os, sys; from truba_runner.training import backend; backend.load('keras');"
        "print(os.environ['KERAS_BACKEND'], sys.modules['truba_runner.training.keras.train']._OTHER_BACKEND)"
    )
    settings = tmp_path / ".keras" / "keras.json"
    settings.parent.mkdir()
    for backend, named in (("jax", f"{settings}: backend jax"), ("tensorflow", "")):
        settings.write_text(f'{{"backend": "{backend}"}}')
        done = start(program, HOME=str(tmp_path), KERAS_BACKEND="")
        assert done.stdout.rstrip("\n") == f"tensorflow {named}", done.stderr
    settings.write_text("{")
    assert start(program, HOME=str(tmp_path), KERAS_BACKEND="").stdout == "tensorflow \n"
