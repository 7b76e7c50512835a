"""What a whole test run says of itself; here, where pytest finds it also when other processes run the tests."""

from __future__ import annotations

import compileall
import os
from pathlib import Path

import pytest

# What takes longest, longest first, those that wait for Slurm beside those that compute. With tests/run's
# --no-loadscope-reorder files are begun in this order, and the short ones, all others, fill up the end.
LONG_FILES = [
    "training/test_keras_resume.py",
    "slurm/test_interruptions.py",
    "slurm/test_fastai_on_slurm.py",
    "slurm/test_broken_on_purpose.py",
    "training/test_verify.py",
    "slurm/test_sweeps_on_slurm.py",
    "training/test_search_fastai.py",
    "training/test_fastai_resume.py",
    "slurm/test_environments_on_slurm.py",
    "training/test_keras_precision.py",
    "slurm/test_tensorboard_from_laptop.py",
    "training/test_keras_tutorial.py",
    "training/test_fastai_ranks.py",
    "slurm/test_search_on_slurm.py",
    "slurm/test_multi_node.py",
    "training/test_keras_inputs.py",
    "slurm/test_never_lost_never_doubled.py",
    "training/test_keras_nodes.py",
    "training/test_keras_find.py",
    "training/test_fastai_kinds.py",
    "training/test_keras.py",
    "training/test_fastai_state.py",
    "slurm/test_main_job.py",
    "slurm/test_testcluster.py",
    "training/test_keras_kinds.py",
    "unit/runs/test_damage.py",
    "unit/cli/test_any_command_line.py",
    "training/test_search.py",
    "training/test_fastai.py",
    "slurm/test_why_on_slurm.py",
    "training/test_keras_outputs.py",
    "slurm/test_event_files_on_slurm.py",
    "training/test_search_oracle.py",
    "slurm/test_lr_find_on_slurm.py",
    "slurm/test_slurm_judges_the_plan.py",
]
TESTS = Path(__file__).parent

# Tests read what the program says in English, whoever runs them; their processes inherit it.
os.environ["TRUBA_LANG"] = "en"
# Threads of torch wait for each other asleep: spinning, they take the cores of what runs beside them, thrice as long.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def pytest_configure(config: pytest.Config) -> None:
    """Compiles the package, once: hundreds of processes import it, and each would where Python may keep nothing."""
    if not hasattr(config, "workerinput"):
        compileall.compile_dir(TESTS.parent / "truba_runner", quiet=2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a long file come before those of a short one; within a file they stay as they are."""
    if gone := [name for name in LONG_FILES if not (TESTS / name).exists()]:
        raise pytest.UsageError(f"tests/conftest.py puts {', '.join(gone)} first, which is gone: name it as it is now.")
    places = {TESTS / name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests had to do without Slurm, and why: a green run must not hide it."""
    left_out = [
        report.longrepr[2]
        for report in terminalreporter.stats.get("skipped", [])
        if report.nodeid.startswith("tests/slurm/") and isinstance(report.longrepr, tuple)
    ]
    if left_out:
        terminalreporter.write_line(f"{len(left_out)} Slurm tests were left out: {left_out[0]}", yellow=True)
