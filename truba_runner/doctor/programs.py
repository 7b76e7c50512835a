"""Check Python, its packages, ssh and rsync, and the environment in which jobs run."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from truba_runner.doctor import FAULT, NOTE, OK, WARNING, Finding, Patient
from truba_runner.environment import probe
from truba_runner.errors import Refused
from truba_runner.language import _
from truba_runner.python_check import LEAST


def python(patient: Patient) -> Iterator[Finding]:
    """Check the Python that submits, and the packages it needs."""
    subject, version = _("Python"), platform.python_version()
    if sys.version_info < LEAST:
        wanted = ".".join(map(str, LEAST))
        yield Finding(FAULT, subject, f"{version}", _("Use Python {version} or newer.", version=wanted))
    else:
        yield Finding(OK, subject, f"{version}, {sys.executable}")
    yield from _packages()


def _packages() -> Iterator[Finding]:
    try:
        texts = importlib.metadata.requires("truba_runner") or []
    except importlib.metadata.PackageNotFoundError:
        texts = []
    if not texts:  # Run from truba.pyz or a source folder: the packages are there, or the imports had failed.
        return
    from packaging.requirements import Requirement

    wanted = [Requirement(text) for text in texts]
    needed = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    versions = []
    for one in needed:
        version = _version(one.name)
        versions.append(f"{one.name} {version}")
        if not version or not one.specifier.contains(version, prereleases=True):
            says = _("{name}: {version}; required: {wanted}", name=one.name, version=version or _("not installed"),
                     wanted=str(one.specifier))  # fmt: skip
            yield Finding(
                WARNING if version else FAULT, _("packages"), says, f"pip install '{one.name}{one.specifier}'"
            )
    yield Finding(OK, _("packages"), ", ".join(versions))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def tools(patient: Patient) -> Iterator[Finding]:
    """Check ssh and rsync, which connect this machine and the user's own."""
    missing = [name for name in ("ssh", "rsync") if shutil.which(name) is None]
    if missing:
        says = _("not on the PATH: {names}", names=", ".join(missing))
        remedy = _("Install it to open TensorBoard from another computer and to copy results.")
        yield Finding(WARNING, _("tunnel"), says, remedy)
    else:
        yield Finding(OK, _("tunnel"), "ssh, rsync")


def environment(patient: Patient) -> Iterator[Finding]:
    """Check that the jobs' Python, started here as a job starts it, can train the experiment."""
    chosen = patient.experiment.environment
    subject = _("environment {name}", name=chosen.name)
    try:
        held = probe.found_here(patient.experiment)
    except Refused as refused:
        for problem in refused.problems:
            yield Finding(FAULT, subject, f"{problem.received}: {problem.rule}", problem.remedy)
        return
    if isinstance(held, str):
        remedy = _("A short job checks it at the first submission.")
        yield Finding(NOTE, subject, _("it cannot be started on this machine: {why}", why=held), remedy)
        return
    yield Finding(OK, subject, probe.described(chosen, held))
    # A cached report from an older version may lack `shared`.
    for library, found in held.get("shared", {}).items():
        yield _of_two(f"{subject}, {library}", found)
    if held and held["python"].split(".")[:2] != platform.python_version().split(".")[:2]:
        says = _("jobs use a different Python version from the one that submits; that is allowed")
        yield Finding(NOTE, subject, says)


def _of_two(subject: str, found: Mapping[str, Any]) -> Finding:
    """Report, for packages that install the same file, which one each framework loads."""
    versions = {name: f"{name} {version}" for name, version in found["packages"].items()}
    loads = [
        _("{framework} loads {package}", framework=framework, package=versions.get(name) or _("neither"))
        for framework, name in found["loaded"].items()
    ]
    says = "; ".join([_(" and ").join(versions.values()), *loads])
    others = {framework: name for framework, name in found["asked"].items() if found["loaded"][framework] != name}
    if not others:
        return Finding(NOTE, subject, says)
    asked = "; ".join(_("{framework} requires {package}", framework=one, package=others[one]) for one in others)
    remedy = _(
        "These packages install the same file, and the one installed last overwrites the others'. Give each framework "
        "its own environment."
    )
    return Finding(WARNING, subject, f"{says}; {asked}", remedy)
