"""Find the config key for which sbatch refused a job, from sbatch's message. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from truba_runner.language import _, marked
from truba_runner.slurm.request import Request

# Slurm's messages (22.05.8, strings of libslurm), the keys of `resources` that they are about, and the remedy.
_SAYS = (
    (
        re.compile("Invalid node name|nodes not in this partition"),
        ("nodelist", "exclude"),
        marked("sinfo --Node --partition={partition} lists the nodes."),
    ),
    (
        re.compile("Invalid qos"),
        ("qos",),
        marked("scontrol show partition={partition} shows its QOS (AllowQos)."),
    ),
    (
        re.compile("[Rr]eservation"),
        ("reservation",),
        marked("scontrol show reservation lists the reservations and their users."),
    ),
    (re.compile("[Ii]nvalid partition"), ("partition",), marked("sinfo lists the partitions.")),
    (re.compile("Invalid feature"), ("constraint",), marked("sinfo --format='%P %f' lists the nodes' features.")),
    (re.compile("Invalid account"), ("account",), marked("truba doctor lists your accounts.")),
)
# Slurm's messages about an option that do not name it.
_ABOUT_OPTION = {"dependency": re.compile("Job dependency problem"), "licenses": re.compile("Invalid license")}
_NO_VALUE = re.compile("doesn't allow an argument")


def explained(words: str, request: Request) -> tuple[str, str] | None:
    """Return the rule and the remedy for a refusal by Slurm itself; None if the message is about no known key."""
    if options := [*_options(words, request)]:
        keys = ", ".join(f"resources.sbatch.{option.replace('-', '_')}" for option in options)
        rule = _("sbatch at this site does not accept {keys}.", keys=keys)
        if _NO_VALUE.search(words):
            return rule, _("Set it to true: it is an option without a value.")
        return rule, _("Correct it or leave it out; man sbatch describes the options.")
    for pattern, names, remedy in _SAYS:
        settings = [f"resources.{name}={value}" for name in names if (value := getattr(request, name))]
        if settings and pattern.search(words):
            rule = _("Slurm itself refused the job, for {keys}.", keys=", ".join(settings))
            return rule, _(remedy, partition=request.partition)
    return None


def _options(words: str, request: Request) -> Iterator[str]:
    """Yield the options of `resources.sbatch` that the words name."""
    for option in request.sbatch:
        named = re.compile(rf"--{re.escape(option)}(?![\w-])")
        if named.search(words) or _ABOUT_OPTION.get(option, named).search(words):
            yield option
