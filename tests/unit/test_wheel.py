"""What is installed from a wheel has its configs and jobs with it, and finds a user's own first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.programs

ROOT = Path(__file__).resolve().parents[2]


def test_a_wheel_is_complete(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, timeout=240)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, timeout=240)
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site), "TRUBA_CLUSTER": "truba"}
    argv = [sys.executable, "-m", "truba_runner", "+experiment=mnist", "dry_run=true"]
    done = subprocess.run(argv, cwd=empty, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "--gres=gpu:1" in done.stdout
    turkish = [sys.executable, "-m", "truba_runner", "status", "--runs", str(empty)]
    told = subprocess.run(turkish, cwd=empty, env={**environment, "TRUBA_LANG": "tr"}, capture_output=True, text=True)
    assert "henüz eğitim yok" in told.stdout, told.stderr
    rows = [sys.executable, "-c", "from truba_runner.why.table import table; print(len(table()['waiting']))"]
    assert int(subprocess.run(rows, cwd=empty, env=environment, capture_output=True, text=True, check=True).stdout) > 50
    where = [sys.executable, "-c", "import truba_runner; print(truba_runner.__file__)"]
    found = subprocess.run(where, cwd=empty, env=environment, capture_output=True, text=True, check=True).stdout
    assert found.startswith(str(site)), "the checkout, not the wheel, was tested"
