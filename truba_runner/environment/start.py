"""How a job gets its Python (docs/environments.md): the shell before it and the command that starts it. Pure."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from truba_runner.config.partitions import facts_of
from truba_runner.config.schema import Environment, Experiment
from truba_runner.slurm.request import Request

# How the shell below ends where the fault lies with the environment, or with the machine that should enter it.
NO_MODULES, NOT_LOADED, NO_APPTAINER = 91, 92, 93
# Text in a set comes in another order in each process, unless this is set: labels that are numbered by a set would be
# other ones after an interruption.
HASH_SEED, SAME_HASHES = "PYTHONHASHSEED", "0"


@dataclass(frozen=True)
class Start:
    """What a job's script needs of an environment."""

    # Shell lines.
    setup: tuple[str, ...]
    # Python, for a shell; its arguments follow.
    python: str


def start(environment: Environment, wrapper: Path, binds: Sequence[str] = (), gpus: bool = False) -> Start:
    """The environment's shell. `wrapper` is `container/apptainer`; `binds` are the paths that a container must show."""
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
        # A job's shell is no login shell; where it has not inherited the command either, the site's profile has it.
        "type module >/dev/null 2>&1 || . /etc/profile",
        f"type module >/dev/null 2>&1 || {{ echo 'there is no command module here' >&2; exit {NO_MODULES}; }}",
        "module purge",
        f"module load {names} || {{ echo {shlex.quote(f'module load {names} failed')} >&2; exit {NOT_LOADED}; }}",
    ]


def binds(experiment: Experiment, request: Request, project: Path, job_file: Path) -> list[str]:
    """The paths that a run's container must show: its runs, data and scratch, and the project with the job's code."""
    cluster = experiment.cluster
    scratch = facts_of(cluster, request.partition, request.constraint).local_scratch
    wanted = [cluster.scratch, cluster.runs_folder, experiment.data.folder, scratch, str(project)]
    wanted.append(str(job_file.parent.parent))
    known = [PurePosixPath(path) for path in dict.fromkeys(wanted) if path not in {"", "/", "/tmp"}]  # noqa: S108  # Always shown.
    return [str(path) for path in known if not any(other in path.parents for other in known)]
