"""Options of sbatch that have config keys of their own, or that a run sets itself. Pure data."""

from __future__ import annotations

import re

from truba_runner.config.schema import Experiment
from truba_runner.language import _, marked
from truba_runner.slurm.request import long_option

# The key to use instead, by the option's long name (man sbatch, 22.05 to 26.05).
_KEYS = {
    "account": "resources.account",
    "constraint": "resources.constraint",
    "cpus-per-gpu": "resources.cores",
    "cpus-per-task": "resources.cores",
    "exclude": "resources.exclude",
    "exclusive": "resources.exclusive",
    "gpus": "resources.gpus",
    "gpus-per-node": "resources.gpus",
    "gpus-per-socket": "resources.gpus",
    "gpus-per-task": "resources.gpus",
    "job-name": "name",
    "mail-type": "resources.mail_type",
    "mail-user": "resources.mail_user",
    "mem": "resources.memory_gb",
    "mem-per-cpu": "resources.memory_per_cpu_gb",
    "mem-per-gpu": "resources.memory_gb",
    "mincpus": "resources.cores",
    "nodefile": "resources.nodelist",
    "nodelist": "resources.nodelist",
    "nodes": "resources.nodes",
    "partition": "resources.partition",
    "qos": "resources.qos",
    "reservation": "resources.reservation",
    "signal": "resources.signal_seconds",
    "test-only": "dry_run",
    "time": "resources.time",
    "tres-per-task": "resources.cores",
    "wait": "launcher.wait",
}
# Options that a run sets itself, with the rule and the remedy.
_OWN = (
    (
        ("ntasks", "ntasks-per-core", "ntasks-per-gpu", "ntasks-per-node", "ntasks-per-socket"),
        marked("the number of tasks follows from job.backend, resources.nodes and resources.gpus."),
        marked("Leave it out."),
    ),
    (
        ("chdir", "error", "input", "open-mode", "output"),
        marked("a job's log and working directory are in its run directory."),
        marked("Leave it out; cluster.runs_folder says where the run directories are, and truba logs shows the log."),
    ),
    (
        ("array",),
        marked("a sweep makes its own job arrays."),
        marked("Leave it out, and give several values with -m; sweep.max_parallel limits how many run at once."),
    ),
    (
        ("requeue", "no-requeue"),
        marked("whether jobs may go back to the queue is a fact of the site."),
        marked("Set cluster.requeue=false where they may not."),
    ),
    (
        ("export", "export-file", "get-user-env"),
        marked("a job has the environment of the command that submits it."),
        marked("Set variables with environment.setup=['export NAME=VALUE']."),
    ),
    (
        ("clusters", "cluster-constraint"),
        marked("a run's job is looked for only in the Slurm cluster of this login node."),
        marked("Submit on a login node of the other cluster."),
    ),
    (
        ("help", "parsable", "quiet", "usage", "verbose", "version", "wrap"),
        marked("it is about the command sbatch, not about a job."),
        marked("Leave it out."),
    ),
)
_RESERVED = {*_KEYS, *(option for options, _rule, _remedy in _OWN for option in options)}


def key_for(option: str) -> str:
    """Return the config key that an option of sbatch is set with; empty if it has none of its own."""
    return _KEYS.get(option, "")


def reserved(key: str) -> str:
    """Return the reserved option that a key of `resources.sbatch` would set; empty if there is none.

    sbatch accepts abbreviated names: `part` for `partition`.
    """
    option = long_option(key)
    if option in _RESERVED:
        return option
    return next((name for name in sorted(_RESERVED) if name.startswith(option)), "")


def asks_for_gpus(option: str, value: object) -> bool:
    """Return whether an option is a `gres` that asks for GPUs, which have a key of their own."""
    return option == "gres" and bool(re.search(r"\bgpu\b", str(value)))


def why_not(option: str) -> tuple[str, str]:
    """Return the rule and the remedy for a reserved option."""
    if key := key_for(option):
        return _("a run has a key of its own for --{option}.", option=option), _("Set {key} instead.", key=key)
    rule, remedy = next((rule, remedy) for options, rule, remedy in _OWN if option in options)
    return _(rule), _(remedy)


def used_keys(experiment: Experiment) -> list[str]:
    """Return the keys of `resources` that an experiment sets and that only Slurm uses."""
    resources = experiment.resources
    keys = ("exclude", "nodelist", "qos", "reservation", "exclusive", "memory_per_cpu_gb", "sbatch")
    return [f"resources.{key}" for key in keys if getattr(resources, key)]
