"""Hooks for a whole test run: environment, order of files, summary; here pytest-xdist's controller finds them too."""

from __future__ import annotations

import compileall
import itertools
import os
from pathlib import Path

import pytest
import slurm_table

# The longest test files, longest first, those that wait for Slurm mixed with those that compute. With tests/run's
# --no-loadscope-reorder files start in this order, and all other, short ones fill the end.
LONG_FILES = [
    "slurm/test_fastai_on_slurm.py",
    "training/test_keras_resume.py",
    "slurm/test_interruptions.py",
    "slurm/test_sweeps_on_slurm.py",
    "slurm/test_broken_on_purpose.py",
    "training/test_fastai_resume.py",
    "slurm/test_environments_on_slurm.py",
    "slurm/test_never_lost_never_doubled.py",
    "training/test_keras_precision.py",
    "training/test_keras_inputs.py",
    "slurm/test_tensorboard_from_laptop.py",
    "slurm/test_bad_nodes.py",
    "training/test_keras_kinds.py",
    "training/test_keras_tutorial.py",
    "training/test_search_fastai.py",
    "slurm/test_multi_node.py",
    "training/test_verify.py",
    "training/test_keras_find.py",
    "unit/cli/test_any_command_line.py",
    "unit/runs/test_damage.py",
    "unit/code/test_bundle.py",
    "training/test_keras.py",
    "slurm/test_search_on_slurm.py",
    "slurm/test_main_job.py",
    "training/test_fastai_kinds.py",
    "slurm/test_slurm_judges_the_plan.py",
    "slurm/test_login_node.py",
    "slurm/test_bad_node_list.py",
    "slurm/test_testcluster.py",
    "training/test_keras_nodes.py",
    "training/test_search.py",
    "slurm/test_event_files_on_slurm.py",
    "training/test_fastai_ranks.py",
    "slurm/test_why_on_slurm.py",
    "training/test_keras_outputs.py",
    "training/test_fastai_state.py",
    "training/test_search_oracle.py",
    "slurm/test_lr_find_on_slurm.py",
    "training/test_fastai.py",
]
TESTS = Path(__file__).parent

# Tests expect English output, whatever the locale of whoever runs them; subprocesses inherit this.
os.environ["TRUBA_LANG"] = "en"
# torch's threads shall sleep while waiting: spinning, they take cores from tests that run in parallel (3 times slower).
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def pytest_configure(config: pytest.Config) -> None:
    """Compile the package once, for hundreds of processes that import it and may be unable to write caches."""
    if not hasattr(config, "workerinput"):
        compileall.compile_dir(TESTS.parent / "truba_runner", quiet=2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of long files first; the order within a file stays."""
    if gone := [name for name in LONG_FILES if not (TESTS / name).exists()]:
        raise pytest.UsageError(f"tests/conftest.py puts {', '.join(gone)} first, which is gone: name it as it is now.")
    places = {TESTS / name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many Slurm tests were skipped, and why: a green run must not hide it."""
    if slurm_table.wanted():
        ended = (terminalreporter.getreports(outcome) for outcome in ("passed", "failed", "error"))
        slurm_table.write(itertools.chain(*ended))
    left_out = [
        report.longrepr[2]
        for report in terminalreporter.stats.get("skipped", [])
        if report.nodeid.startswith("tests/slurm/") and isinstance(report.longrepr, tuple)
    ]
    if left_out:
        terminalreporter.write_line(f"{len(left_out)} Slurm tests were left out: {left_out[0]}", yellow=True)
