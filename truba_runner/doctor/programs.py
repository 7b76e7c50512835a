"""Python, its packages, the programs for tunnels, and the environment that jobs get their Python from."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from truba_runner.backends import TRAITS
from truba_runner.doctor import FAULT, NOTE, OK, WARNING, Finding, Patient
from truba_runner.language import _

_OLDEST_PYTHON = (3, 10)
_ENVIRONMENT_SECONDS = 9.0
# What a backend cannot do without, by its name, and the extra that brings it.
_FRAMEWORKS = {"keras": (("keras", "tensorflow"), "tensorflow"), "fastai": (("fastai", "torch"), "fastai")}
_LISTED = ("tensorflow", "keras", "keras-tuner", "torch", "fastai", "tensorboard")
# Asked of the environment's own Python, which may be any and need not have this package.
_PROBE = """
import importlib.metadata, json, platform, sys
found = {}
for name in %r:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print("PROBE" + json.dumps({"python": platform.python_version(), "executable": sys.executable, "packages": found}))
"""


def python(patient: Patient) -> Iterator[Finding]:
    """The Python that submits, and the packages that it needs for that."""
    subject, version = _("Python"), platform.python_version()
    if sys.version_info < _OLDEST_PYTHON:
        wanted = ".".join(map(str, _OLDEST_PYTHON))
        yield Finding(FAULT, subject, f"{version}", _("Use Python {version} or newer.", version=wanted))
    else:
        yield Finding(OK, subject, f"{version}, {sys.executable}")
    yield from _packages()


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in importlib.metadata.requires("truba_runner") or []]
    except importlib.metadata.PackageNotFoundError:
        return  # Not installed but found as it lies, with all that it needs: else this line were not reached.
    needed = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    told = []
    for one in needed:
        version = _version(one.name)
        told.append(f"{one.name} {version}")
        if not version or not one.specifier.contains(version, prereleases=True):
            says = _("{name} is {version}, wanted is {wanted}", name=one.name, version=version or _("not installed"),
                     wanted=str(one.specifier))  # fmt: skip
            yield Finding(
                WARNING if version else FAULT, _("packages"), says, f"pip install '{one.name}{one.specifier}'"
            )
    yield Finding(OK, _("packages"), ", ".join(told))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def tools(patient: Patient) -> Iterator[Finding]:
    """Programs for the way to the user's own computer."""
    missing = [name for name in ("ssh", "rsync") if shutil.which(name) is None]
    if missing:
        says = _("not on the PATH: {names}", names=", ".join(missing))
        yield Finding(WARNING, _("tunnel"), says, _("Install it to see TensorBoard from afar and to fetch results."))
    else:
        yield Finding(OK, _("tunnel"), "ssh, rsync")


def environment(patient: Patient) -> Iterator[Finding]:
    """The Python that jobs will run, tried here: its set-up, its version, and the framework of the experiment."""
    chosen, backend = patient.experiment.environment, patient.experiment.job.backend
    subject = _("environment {name}", name=chosen.name)
    found = _probe("\n".join(["set -e", *chosen.setup]), chosen.python or sys.executable)
    if "error" in found:
        remedy = _("See conf/environment/{name}.yaml: each line of setup and python must work in a shell here.",
                   name=chosen.name)  # fmt: skip
        yield Finding(FAULT, subject, found["error"], remedy)
        return
    packages = found["packages"]
    says = ", ".join([f"Python {found['python']}", *(f"{name} {version}" for name, version in packages.items())])
    needed, extra = _FRAMEWORKS.get(backend, ((), ""))
    missing = [name for name in needed if name not in packages]
    if missing and backend in TRAITS:
        told = _("{names} is missing, which the experiment needs", names=", ".join(missing)) + f" ({says})"
        remedy = _(
            "Choose another environment (environment=NAME), or pip install 'truba_runner[{extra}]'.", extra=extra
        )
        yield Finding(FAULT, subject, told, remedy)
    else:
        yield Finding(OK, subject, says)
    if found["python"].rpartition(".")[0] != platform.python_version().rpartition(".")[0]:
        yield Finding(NOTE, subject, _("jobs run another Python than the one that submits; that is allowed"))


def _probe(setup: str, python_command: str) -> dict[str, Any]:
    program = _PROBE % (_LISTED,)
    script = f'{setup}\nexec {python_command} -c "$PROBE_PROGRAM"'
    try:
        done = subprocess.run(
            ["bash", "-c", script], capture_output=True, text=True, timeout=_ENVIRONMENT_SECONDS, check=False,
            env={**os.environ, "PROBE_PROGRAM": program},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": _("its set-up took longer than {seconds:g} s", seconds=_ENVIRONMENT_SECONDS)}
    answer = next((line for line in done.stdout.splitlines() if line.startswith("PROBE")), "")
    if done.returncode or not answer:
        last = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()[-1]
        return {"error": last[:300]}
    found: dict[str, Any] = json.loads(answer.removeprefix("PROBE"))
    return found
