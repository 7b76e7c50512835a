"""Check before a submission that the environment of the job can train the experiment.

The environment is entered as the job will enter it, on this machine or, if that fails, in a short job. The answer is
cached under ~/.local/state by what the environment is made of, so that a second submission need not probe it again.
"""

from __future__ import annotations

import hashlib
import json
import os
import pkgutil
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from truba_runner.code import package
from truba_runner.config.backends import TRAITS
from truba_runner.config.schema import Environment, Experiment
from truba_runner.environment import missing_files, modules, report, start
from truba_runner.errors import Problem, Refused
from truba_runner.language import _, marked
from truba_runner.log import warn
from truba_runner.python_check import LEAST
from truba_runner.slurm import states
from truba_runner.storage.files import write_atomically
from truba_runner.storage.package_files import shipped
from truba_runner.storage.user_state import state_folder

# No framework is imported, so only the start of a container or a slow file system takes long.
HERE_SECONDS = 30.0
# Limited because sites replace modules under the same name.
_KEPT_SECONDS = 30 * 24 * 3600.0
# Message of a container runtime if the container lacks a command.
_NO_SUCH_COMMAND = "executable file not found"

Found = Mapping[str, Any]
# Runs a shell script elsewhere and returns its output and exit status; None: there was no answer in time.
Elsewhere = Callable[[str], "tuple[str, int] | None"]


@dataclass(frozen=True)
class _Silent(Exception):
    """Failure to enter the environment on one machine, which says nothing about other machines."""

    why: str


def found(experiment: Experiment, elsewhere: Elsewhere) -> Found:
    """Return the versions of `python`, `packages` and `cuda` in the environment (see report.py); empty if unknown.

    Raises:
        truba_runner.errors.Refused: it cannot be entered anywhere, or lacks what the experiment needs.
    """
    chosen = experiment.environment
    here = _is_this_python(chosen)
    if not here:
        missing_files.refuse(chosen)
    held = known(experiment)
    if not held and not here:
        held = _asked(experiment, elsewhere)
    if held:
        _refuse_lacking(experiment, held)
    return held


def found_here(experiment: Experiment) -> Found | str:
    """Return what `found` does, but use this machine only; if the environment cannot be entered here, return why.

    Raises:
        truba_runner.errors.Refused: as `found`.
    """
    chosen = experiment.environment
    if _is_this_python(chosen):
        return found(experiment, lambda script: None)
    missing_files.refuse(chosen)
    held = _kept(experiment)
    if not held:
        try:
            held = _read(chosen, *_run_here(_script(chosen, shipped("container") / "apptainer")))
        except _Silent as silent:
            return silent.why
        _keep(chosen, held)
    _refuse_lacking(experiment, held)
    return held


def known(experiment: Experiment) -> Found:
    """Return the environment's report if it is known without starting the environment; else empty."""
    if _is_this_python(experiment.environment):
        return report.report() if not experiment.environment.python else {}
    return _kept(experiment)


def _is_this_python(chosen: Environment) -> bool:
    """Whether a job starts the submitting Python directly, without modules or lines that may fail or change it."""
    return chosen.kind == "inherit" and not (chosen.modules or chosen.setup_before or chosen.setup)


# -- probing ---------------------------------------------------------------------------------------------------


def _asked(experiment: Experiment, elsewhere: Elsewhere) -> Found:
    chosen, runs_folder = experiment.environment, Path(experiment.cluster.runs_folder)
    try:
        held = _read(chosen, *_run_here(_script(chosen, shipped("container") / "apptainer")))
    except _Silent as silent:
        message = _(
            "{environment} cannot be checked from here ({why}); a short job checks it",
            environment=words(chosen),
            why=silent.why,
        )
        print(message, file=sys.stderr)
        package.provide(chosen, runs_folder)
        answer = elsewhere(_script(chosen, package.wrapper(runs_folder)))
        if answer is None:
            warn("the short job has not started in time; the run is submitted without this check")
            return {}
        try:
            held = _read(chosen, *answer)
        except _Silent as silent_there:
            rule = _("a job cannot start it: {why}.", why=silent_there.why)
            line_failed = silent_there.why.startswith(f"{states.REASON}setup")
            remedy = _("Correct the line, or add || true to it.") if line_failed else _("Choose another environment.")
            raise Refused(Problem(words(chosen), rule, remedy)) from None
    _keep(chosen, held)
    return held


def _script(chosen: Environment, wrapper: Path) -> str:
    """Return a script that enters the environment as a job does and runs the report with its Python."""
    entered = start.start(chosen, wrapper)
    # The container is started without binds, so the current folder may not exist in it.
    lines = [*entered.setup, "cd /", f"{entered.python} - <<'END-OF-REPORT'", _program(), "END-OF-REPORT", ""]
    return "\n".join(lines)


def _program() -> str:
    return (pkgutil.get_data("truba_runner", "environment/report.py") or b"").decode()


def _run_here(script: str) -> tuple[str, int]:
    """Run a script on this machine; return its output and exit status.

    Raises:
        _Silent: it took too long.
    """
    with subprocess.Popen(
        ["bash", "-s"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            return process.communicate(script, timeout=HERE_SECONDS)[0], process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise _Silent(_("no answer within {seconds:g} s", seconds=HERE_SECONDS)) from None


def _read(chosen: Environment, printed: str, status: int) -> Found:
    """Return the report in the script's output.

    Raises:
        truba_runner.errors.Refused: the environment is at fault.
        _Silent: the machine may be at fault.
    """
    for line in printed.splitlines():
        if line.startswith(report.MARK):
            held: Found = json.loads(line.removeprefix(report.MARK))
            return held
    said = " ".join(printed.split())[-600:]
    if status == states.NOT_LOADED:
        names = ", ".join(chosen.modules)
        # After a line such as `module use /FOLDER` there are modules that this list lacks.
        raise Refused(
            Problem(
                f"environment.modules=[{names}]",
                f"{said}.",
                modules.remedy([] if chosen.setup_before else chosen.modules),
            )
        )
    if status == states.NOT_ACTIVATED:
        raise Refused(_not_activated(chosen, printed))
    if status in {126, 127} and chosen.kind != "apptainer":
        python = start.start(chosen, Path()).python
        rule = _("there is no {python} in it ({said}).", python=python, said=said)
        by_path = _("Set environment.python to the command of its Python.")
        raise Refused(Problem(words(chosen), rule, _(_REMEDIES["conda"]) if chosen.kind == "conda" else by_path))
    if _NO_SUCH_COMMAND in said:
        raise Refused(Problem(words(chosen), f"{said}.", _("Set environment.python to the command of its Python.")))
    reasons = [line for line in printed.splitlines() if line.startswith(states.REASON)]
    raise _Silent((reasons[-1] if reasons else said) or _("exit status {status}", status=status))


def _not_activated(chosen: Environment, printed: str) -> Problem:
    """Describe an environment that conda cannot activate; `printed` includes the output of `conda env list`."""
    said, listed = [], []
    for line in printed.splitlines():
        row = re.search(r"\s(/.+)", line)
        if row and (Path(row[1]) / "conda-meta").is_dir():
            listed.append(row[1])
        elif not line.startswith("#"):
            said += line.split()
    known = dict.fromkeys(path for path in [*listed, *missing_files.conda_environments()] if path != chosen.conda)
    remedy = _("conda env list lists your environments.")
    remedy = _("There are: {names}.", names=", ".join(known)) if known else remedy
    return Problem(f"environment.conda={chosen.conda}", f"{' '.join(said)[-600:]}.", remedy)


# -- cache -----------------------------------------------------------------------------------------------------


def _file(chosen: Environment) -> Path:
    """Return the cache file, named by a hash of all that the environment is made of."""
    about: dict[str, Any] = {**asdict(chosen), "made_of": [], "report": _program()}
    for path in _made_of(chosen):
        with suppress(OSError):
            state = path.stat()
            about["made_of"].append([str(path), state.st_mtime_ns, state.st_size])
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    return state_folder() / "environments" / f"{key}.json"


def _made_of(chosen: Environment) -> Iterator[Path]:
    """Yield the files and folders that change when the environment does; some may not exist."""
    if chosen.kind == "apptainer":
        yield Path(chosen.image)
    elif chosen.kind == "venv":
        yield Path(chosen.venv) / "pyvenv.cfg"
        yield from sorted(Path(chosen.venv).glob("lib/python*/site-packages"))
    elif chosen.kind == "conda":
        named = [path for path in missing_files.conda_environments() if Path(path).name == chosen.conda]
        for path in [chosen.conda] if chosen.conda.startswith("/") else named:
            yield Path(path) / "conda-meta" / "history"
            yield from sorted(Path(path).glob("lib/python*/site-packages"))
    if chosen.modules:
        for folder in os.environ.get("MODULEPATH", "").split(os.pathsep):
            yield from (Path(folder) / f"{name}{suffix}" for name in chosen.modules for suffix in ("", ".lua"))


def _kept(experiment: Experiment) -> Found:
    """Return the cached answer; empty if it lacks what the experiment needs, which may have been installed since."""
    with suppress(OSError, ValueError):
        file = _file(experiment.environment)
        if time.time() - file.stat().st_mtime < _KEPT_SECONDS:
            held: Found = json.loads(file.read_bytes())
            return {} if lacking(experiment, held) else held
    return {}


def _keep(chosen: Environment, held: Found) -> None:
    with suppress(OSError):  # Without a writable home each submission probes again.
        file = _file(chosen)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(file, json.dumps(held, indent=1).encode())


# -- requirements ----------------------------------------------------------------------------------------------


def _refuse_lacking(experiment: Experiment, held: Found) -> None:
    """Refuse an environment that cannot train the experiment; only warn of versions older than any that was tried."""
    if problem := lacking(experiment, held):
        raise Refused(problem)
    for name, least in _needs(experiment).items():
        if _numbers(version := held["packages"][name]) < _numbers(least):
            older = _(
                "{environment}: {package} {version} is older than {least}, the oldest tested version",
                environment=words(experiment.environment), package=name, version=version, least=least,
            )  # fmt: skip
            warn(older)


def _needs(experiment: Experiment) -> dict[str, str]:
    """Return the packages that the training needs, with the oldest version of each that was tried."""
    traits = TRAITS.get(experiment.job.backend)
    return {**(traits.needs if traits else {}), **({"keras-tuner": "1.4.7"} if experiment.sweep.kind else {})}


def lacking(experiment: Experiment, held: Found) -> Problem | None:
    """Return why an environment cannot train the experiment; None if it can."""
    chosen, needs, packages = experiment.environment, _needs(experiment), held["packages"]
    python = held["python"]
    missing = [name for name in needs if name not in packages]
    if _numbers(python) < LEAST:
        rule = _(
            "its Python is {version} ({file}), but at least {least} is required.",
            version=python,
            file=held["executable"],
            least=".".join(map(str, LEAST)),
        )
    elif missing:
        there = ", ".join(f"{name} {version}" for name, version in packages.items())
        rule = _(
            "its Python {version} has no {lacking}, which the {backend} backend needs (it has {there}).",
            version=python, lacking=_(" and no ").join(missing), backend=experiment.job.backend,
            there=there or _("no training framework"),
        )  # fmt: skip
    elif "keras" in needs and _numbers(packages["keras"]) < (3,):
        rule = _("its Keras is {version}, but at least 3 is required.", version=packages["keras"])
    else:
        return None
    return Problem(words(chosen), rule, _(_REMEDIES[chosen.kind]))


_REMEDIES = {
    "inherit": marked("Start the program with a Python that has it; or choose environment=module, apptainer or venv."),
    "module": marked(
        "Choose other modules with environment.modules=[NAME/VERSION], or an image with environment=apptainer."
    ),
    "apptainer": marked("Choose another image with environment.image=FILE."),
    "conda": marked("Install it there, or choose another with environment.conda=NAME."),
    "venv": marked("Install it there, or choose another with environment.venv=FOLDER."),
}


def _numbers(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version; an unknown version counts as newer than all."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2]) or (9999,)


def words(chosen: Environment) -> str:
    """Return how an environment was chosen, for a message: its name and what it is made of."""
    what = {
        "module": ", ".join(chosen.modules),
        "venv": chosen.venv,
        "conda": chosen.conda,
        "apptainer": chosen.image,
    }.get(chosen.kind, "")
    return f"environment={chosen.name}" + (f" ({what})" if what else "")


def described(chosen: Environment, held: Found) -> str:
    """Describe the chosen environment and its versions in one line."""
    if not held:
        return words(chosen)
    versions = [f"Python {held['python']}", *(f"{name} {version}" for name, version in held["packages"].items())]
    cuda = [f"CUDA {version} ({name})" for name, version in held["cuda"].items()]
    return f"{words(chosen)}: {', '.join([*versions, *cuda])}"
