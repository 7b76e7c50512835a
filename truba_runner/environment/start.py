"""Write the shell lines and the command that start a job's Python (docs/environments.md). Pure."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from truba_runner.config.partitions import facts_of
from truba_runner.config.schema import Environment, Experiment
from truba_runner.environment import shell_lines
from truba_runner.slurm.request import Request

# Otherwise sets of strings are ordered differently in each process: labels numbered from a set change on a resume.
HASH_SEED, SAME_HASHES = "PYTHONHASHSEED", "0"


@dataclass(frozen=True)
class Start:
    """Parts of a job's script that enter an environment."""

    # Shell lines.
    setup: tuple[str, ...]
    # Shell command that starts Python; its arguments follow.
    python: str


def start(
    environment: Environment,
    wrapper: Path,
    binds: Sequence[str] = (),
    gpus: bool = False,
    caches: Mapping[str, str] | None = None,
) -> Start:
    """Return how to enter the environment: `setup_before`, modules, activation, cache folders, then `setup`.

    `wrapper` is `container/apptainer`; `binds` are a container's paths; `caches` are folders by variable.
    """
    folders = caches or {}
    setup = [
        *shell_lines.module_command(environment),
        *shell_lines.user_lines("setup_before", environment.setup_before),
        *shell_lines.modules(environment.modules),
        *_activation(environment),
        *shell_lines.caches(folders),
        *shell_lines.user_lines("setup", environment.setup),
        f'export {HASH_SEED}="${{{HASH_SEED}:-{SAME_HASHES}}}"',
    ]
    return Start(tuple(setup), _python(environment, wrapper, binds, gpus, list(folders)))


def _activation(environment: Environment) -> list[str]:
    if environment.kind == "venv":
        return shell_lines.virtual_environment(environment.venv)
    return shell_lines.conda(environment) if environment.kind == "conda" else []


def _python(environment: Environment, wrapper: Path, binds: Sequence[str], gpus: bool, caches: Sequence[str]) -> str:
    """Return the shell command that starts the environment's Python; a container gets the variables `caches`."""
    if environment.kind == "apptainer":
        argv = ["bash", str(wrapper), "--apptainer", environment.apptainer, "--image", environment.image]
        argv += ["--nv"] if gpus else []
        for path in dict.fromkeys([*binds, *environment.binds]):
            argv += ["--bind", path]
        for name in [*caches, *shell_lines.exported(environment), *environment.pass_on]:
            argv += ["--pass", name]
        # The job's shell fills in the folder.
        folders = [f'--bind "${{{name}:-}}"' for name in caches]
        return " ".join([shlex.join(argv), *folders, "--", environment.python or "python3"])
    usual = {
        "module": "python3",
        "venv": shlex.quote(str(PurePosixPath(environment.venv) / "bin" / "python")),
        # By its path: an environment without Python must not train with another one on the PATH.
        "conda": '"$CONDA_PREFIX/bin/python"',
        "inherit": shlex.quote(sys.executable),
    }
    return environment.python or usual[environment.kind]


def binds(experiment: Experiment, request: Request, project: Path, job_file: Path) -> list[str]:
    """Return the paths that a run's container must bind: its runs, data and scratch, the project and the job's code."""
    cluster = experiment.cluster
    scratch = facts_of(cluster, request.partition, request.constraint).local_scratch
    wanted = [cluster.scratch, cluster.runs_folder, experiment.data.folder, scratch, str(project)]
    wanted.append(str(job_file.parent.parent))
    # A container with a bind to a folder that is missing does not start.
    if os.path.isdir(shared := os.path.dirname(cluster.bad_nodes)):
        wanted.append(shared)
    known = [PurePosixPath(path) for path in dict.fromkeys(wanted) if path not in {"", "/", "/tmp"}]  # noqa: S108  # Always shown.
    return [str(path) for path in known if not any(other in path.parents for other in known)]
