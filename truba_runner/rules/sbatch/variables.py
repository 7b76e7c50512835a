"""Warn of variables in the submitting shell that sbatch or srun would obey, which are therefore removed. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress

from truba_runner.config.durations import parse_minutes
from truba_runner.language import _
from truba_runner.rules.sbatch.options import asks_for_gpus, key_for, reserved
from truba_runner.slurm.request import Request

# Variables of sbatch whose names differ from their options (man sbatch, INPUT ENVIRONMENT VARIABLES).
_NAMED = {
    "ARRAY_INX": "array", "MEM_PER_NODE": "mem", "REQ_SWITCH": "switches", "TIMELIMIT": "time",
    "WAIT4SWITCH": "switches",
}  # fmt: skip
# They change no job, or request what every run requests anyway.
_HARMLESS = {"SBATCH_DEBUG", "SBATCH_IGNORE_PBS", "SBATCH_REQUEUE"}
# Variables that srun reads in the job (man srun) and that people set in a profile. A surrounding job sets them too.
_OF_SRUN = {
    f"SLURM_{name}"
    for name in (
        "ACCTG_FREQ CORE_SPEC CPU_BIND CPU_FREQ_REQ DISTRIBUTION DIST_PLANESIZE EXACT EXCLUSIVE EXPORT_ENV "
        "GPU_BIND GPU_FREQ GRES HINT LABELIO MEM_BIND MEM_PER_CPU MEM_PER_GPU MEM_PER_NODE MPI_TYPE NETWORK "
        "OVERCOMMIT OVERLAP PROFILE RESV_PORTS TASK_EPILOG TASK_PROLOG THREADS_PER_CORE"
    ).split()
}
# Options without a value. Their variables turn them on if they are empty, `yes` or a number other than 0, else off.
_FLAGS = {"hold", "no-kill", "no-requeue", "overcommit", "spread-job", "use-min-nodes", "wait"}
# Options whose value is written in the key as in the variable.
_SAME_VALUE = {"account", "constraint", "exclude", "mail-type", "mail-user", "partition", "qos", "reservation", "time"}
_SHOWN = 100


def warnings(shell: Mapping[str, str], request: Request) -> Iterator[str]:
    """Warn of removed variables that would have changed the job; their values are not part of the plan."""
    inside = "SLURM_JOB_ID" in shell
    found = {
        name: value for name, value in sorted(shell.items()) if name.startswith("SBATCH_") and name not in _HARMLESS
    }
    changing = {name: value for name, value in found.items() if not _as_planned(_option(name), value, request)}
    if inside:  # Slurm sets some of them in a job.
        changing = {name: value for name, value in changing.items() if not name.startswith("SBATCH_MEM_BIND")}
    if changing:
        yield _(
            "not passed to sbatch, where they would override the plan: {variables}. {remedy}",
            variables=_listed(changing),
            remedy=_remedy(changing),
        ).rstrip()
    srun = {} if inside else {name: shell[name] for name in sorted(_OF_SRUN & shell.keys())}
    if srun:
        yield _(
            "not passed to the job, where srun would obey them: {variables}. If the job needs them, set them with "
            "environment.setup=[{lines}].",
            variables=_listed(srun),
            lines=",".join(f"'export {name}={value}'" for name, value in srun.items()),
        )


def _option(variable: str) -> str:
    name = variable.removeprefix("SBATCH_")
    return _NAMED.get(name, name.lower().replace("_", "-"))


def _as_planned(option: str, value: str, request: Request) -> bool:
    """Return whether the plan requests the same as the variable."""
    if option == "time":
        with suppress(ValueError):
            return parse_minutes(value) == request.time_minutes
    if option in _FLAGS and not re.fullmatch(r"|yes|0*[1-9]\d*", value):
        return True
    if option == "no-requeue":
        return not request.requeue
    planned = {
        "partition": request.partition,
        "account": request.account,
        "constraint": request.constraint,
        "qos": request.qos,
        "reservation": request.reservation,
        **{name: str(one) for name, one in request.sbatch.items()},
    }
    return planned.get(option) == value


def _listed(variables: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}"[:_SHOWN] for name, value in variables.items())


def _remedy(variables: Mapping[str, str]) -> str:
    """Return a sentence with the overrides for variables that a config key can replace."""
    keys = []
    for name, value in variables.items():
        option = _option(name)
        if option == "exclusive":
            keys.append("resources.exclusive=true")
        elif key := key_for("gpus" if asks_for_gpus(option, value) else option):
            keys.append(_override(key, value) if option in _SAME_VALUE else key)
        elif not reserved(option):
            key = f"+resources.sbatch.{option.replace('-', '_')}"
            keys.append(_override(key, "true" if option in _FLAGS else value or "true"))
    return _("If you want that, set {keys}.", keys=", ".join(keys)) if keys else ""


def _override(key: str, value: str) -> str:
    """Return an override as typed in a shell, quoted so that Hydra reads the value as one string."""
    if re.fullmatch(r"[\w.:@/+-]+", value):
        return f"{key}={value}"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return shlex.quote(f'{key}="{escaped}"')
