"""Dependencies point one way, and the command line stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import truba_runner

PACKAGE = Path(truba_runner.__file__).parent
HEAVY = {"tensorflow", "keras", "torch", "fastai", "sklearn", "numpy", "tensorboard"}
MANAGEMENT = {"hydra", "omegaconf", "submitit", "keras_tuner"}


def imports_of(file: Path, everywhere: bool) -> set[str]:
    """Packages, and modules by full name, that a file imports; `everywhere`: in functions too."""
    tree = ast.parse(file.read_text())
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found | {name.split(".")[0] for name in found}


def python_files(folder: str = "") -> list[Path]:
    return sorted((PACKAGE / folder).rglob("*.py"))


@pytest.mark.parametrize("file", python_files("backends"), ids=str)
def test_a_backend_knows_neither_hydra_nor_submitit(file: Path) -> None:
    assert not imports_of(file, everywhere=True) & {"hydra", "submitit"}


@pytest.mark.parametrize("name", ["plan.py", "partition_rules.py", "request.py", "durations.py"])
def test_the_plan_touches_no_process_no_disk_and_no_network(name: str) -> None:
    impure = {"subprocess", "socket", "urllib", "shutil", "pathlib.Path", "os", "time", "truba_runner.scheduler"}
    assert not imports_of(PACKAGE / name, everywhere=True) & impure


@pytest.mark.parametrize("file", [file for file in python_files() if "backends" not in file.parts], ids=str)
def test_the_command_line_imports_no_framework(file: Path) -> None:
    # What serves TensorBoard is there to import that, and no framework along with it.
    own = {"tensorboard"} if "tensorboard" in file.parts else set()
    assert not imports_of(file, everywhere=True) & (HEAVY - own)


@pytest.mark.parametrize("file", [*python_files("backends"), *python_files("tensorboard")], ids=str)
def test_backends_import_their_framework_inside_functions(file: Path) -> None:
    assert not imports_of(file, everywhere=False) & HEAVY


def test_slurms_commands_run_in_one_place() -> None:
    commands = {"sbatch", "squeue", "sacct", "scontrol", "scancel", "sinfo", "sacctmgr"}
    for file in python_files():
        if file.name in {"scheduler.py", "slurm_facts.py"}:
            continue
        strings = {
            node.value.split()[0]
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.List) and node.elts and isinstance(node.elts[0], ast.Constant)
            for node in node.elts[:1]
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value
        }
        assert not strings & commands, file


def test_the_worker_never_imports_the_command_line() -> None:
    modules = {
        "truba_runner.app",
        "truba_runner.launch",
        "truba_runner.submit",
        "hydra",
        "submitit",
    }
    assert not imported_by("truba_runner.worker") & modules


def test_a_workers_own_process_stays_light() -> None:
    # Its trials and the oracle's steps have processes of their own.
    assert not imported_by("truba_runner.search.worker") & {*HEAVY, "keras_tuner", "hydra", "submitit"}


@pytest.mark.parametrize(
    "command", ["status", "logs", "cancel", "stage", "best", "bundle", "tensorboard", "pull", "why", "diff"]
)
def test_management_commands_start_without_hydra(command: str) -> None:
    assert not imported_by(f"truba_runner.commands.{command}") & (MANAGEMENT | HEAVY)


def imported_by(module: str) -> set[str]:
    """What is in sys.modules of a fresh Python after one import."""
    program = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())
