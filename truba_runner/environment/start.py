"""Write the shell lines and the command that start a job's Python (docs/environments.md). Pure."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from truba_runner.config.partitions import facts_of
from truba_runner.config.schema import Environment, Experiment
from truba_runner.slurm.request import Request

# Exit statuses of the shell lines and the wrapper: no `module` here, a module did not load, no apptainer here.
NO_MODULES, NOT_LOADED, NO_APPTAINER = 91, 92, 93
# Otherwise sets of strings are ordered differently in each process: labels numbered from a set change on a resume.
HASH_SEED, SAME_HASHES = "PYTHONHASHSEED", "0"


@dataclass(frozen=True)
class Start:
    """Parts of a job's script that enter an environment."""

    # Shell lines.
    setup: tuple[str, ...]
    # Shell command that starts Python; its arguments follow.
    python: str


def start(environment: Environment, wrapper: Path, binds: Sequence[str] = (), gpus: bool = False) -> Start:
    """Return how to enter the environment. `wrapper` is `container/apptainer`; `binds` are a container's paths."""
    setup = [*environment.setup, f'export {HASH_SEED}="${{{HASH_SEED}:-{SAME_HASHES}}}"']
    if environment.kind == "module":
        setup += _load(environment.modules)
        return Start(tuple(setup), environment.python or "python3")
    if environment.kind == "venv":
        folder = PurePosixPath(environment.venv)
        setup += [f"export VIRTUAL_ENV={shlex.quote(str(folder))}", 'export PATH="$VIRTUAL_ENV/bin:$PATH"']
        return Start(tuple(setup), environment.python or shlex.quote(str(folder / "bin" / "python")))
    if environment.kind == "apptainer":
        argv = ["bash", str(wrapper), "--apptainer", environment.apptainer, "--image", environment.image]
        argv += ["--nv"] if gpus else []
        for path in dict.fromkeys([*binds, *environment.binds]):
            argv += ["--bind", path]
        for name in environment.pass_on:
            argv += ["--pass", name]
        return Start(tuple(setup), f"{shlex.join(argv)} -- {environment.python or 'python3'}")
    return Start(tuple(setup), environment.python or shlex.quote(sys.executable))


def _load(modules: Sequence[str]) -> list[str]:
    names = shlex.join(modules)
    return [
        # A job's shell is no login shell; if it has not inherited `module`, the site's profile defines it.
        "type module >/dev/null 2>&1 || . /etc/profile",
        f"type module >/dev/null 2>&1 || {{ echo 'the command module does not exist here' >&2; exit {NO_MODULES}; }}",
        "module purge",
        f"module load {names} || {{ echo {shlex.quote(f'module load {names} failed')} >&2; exit {NOT_LOADED}; }}",
    ]


def binds(experiment: Experiment, request: Request, project: Path, job_file: Path) -> list[str]:
    """Return the paths that a run's container must bind: its runs, data and scratch, the project and the job's code."""
    cluster = experiment.cluster
    scratch = facts_of(cluster, request.partition, request.constraint).local_scratch
    wanted = [cluster.scratch, cluster.runs_folder, experiment.data.folder, scratch, str(project)]
    wanted.append(str(job_file.parent.parent))
    known = [PurePosixPath(path) for path in dict.fromkeys(wanted) if path not in {"", "/", "/tmp"}]  # noqa: S108  # Always shown.
    return [str(path) for path in known if not any(other in path.parents for other in known)]
