"""Every question that the product asks Slurm, and Slurm's recorded answers, of each version that sites run.

tests/slurm/record.py makes the recordings, tests/unit/slurm/test_recorded_answers.py reads them.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from truba_runner.slurm import capacity, client, commands, jobs, queries
from truba_runner.slurm.client import SlurmError
from truba_runner.slurm.commands import words_of_refusal

FOLDER = Path(__file__).parent / "unit" / "slurm" / "recorded"
VERSIONS = ("22.05", "24.11", "26.05")
USER, USER_ID = "ayse", 60001
# What the product's submissions end with when they are refused: the options, of each refusal.
REFUSED = {
    "filter": "-p orfoz -c 3",
    "partition": "-p nowhere",
    "account": "-A nobody",
    "nodelist": "-w nowhere1",
    "constraint": "-C nothing",
    "reservation": "--reservation=nothing",
    "dependency": "-d afterok:nothing",
    "licenses": "-L nothing:1",
    "option": "--no-such-option=1",
    "valueless": "--requeue=1",
    "nodes": "-N 9 --ntasks-per-node=1",
}
_GOOD = "-p akya-cuda -c 10 --gres=gpu:1 -A proj1 -t 5"

Answer = subprocess.CompletedProcess[str]
Run = Callable[[Sequence[str], str], Answer]


@dataclass
class Recording:
    """Answers of one version of Slurm: command and standard input, with what it printed; and the jobs that it had."""

    jobs: dict[str, str]
    # What jobs printed, by their names.
    logs: dict[str, str] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)

    @staticmethod
    def read(version: str) -> Recording:
        return Recording(**json.loads((FOLDER / f"{version}.json").read_text()))

    def write(self, version: str, hidden: Mapping[str, str]) -> None:
        """Write it; in all texts, the keys of `hidden`, this machine's details, become their values."""
        FOLDER.mkdir(exist_ok=True)
        text = json.dumps(vars(self), indent=1, sort_keys=True) + "\n"
        for what, word in hidden.items():
            text = text.replace(what, word)
        (FOLDER / f"{version}.json").write_text(text)

    def keep(self, run: Run) -> Run:
        """Return `run`, whose answers are added to the recording."""

        def asked(argv: Sequence[str], text: str) -> Answer:
            done = run(argv, text)
            self.answers.append(
                {
                    "argv": list(argv),
                    "text": text,
                    "status": done.returncode,
                    "stdout": done.stdout.split("\n"),
                    "stderr": done.stderr.split("\n"),
                }  # fmt: skip
            )
            return done

        return asked

    def repeat(self, argv: Sequence[str], text: str) -> Answer:
        """Answer as Slurm did."""
        for one in self.answers:
            if one["argv"] == list(argv) and one["text"] == text:
                return Answer(argv, one["status"], "\n".join(one["stdout"]), "\n".join(one["stderr"]))
        raise LookupError(f"this question is not in the recording: {argv}")


@contextmanager
def answered_by(run: Run) -> Iterator[None]:
    """Let `run` answer in place of this machine's Slurm, of which it may have none, and to the user of the cluster."""

    def answer(argv: Sequence[str], input: str | None = None, **_: Any) -> Answer:
        return run(argv, input or "")

    with patch.object(client.subprocess, "run", answer), patch("getpass.getuser", return_value=USER):
        with patch("os.getuid", return_value=USER_ID), patch.object(client, "BACKOFF_SECONDS", ()):
            yield


def script(options: str) -> str:
    """Return a batch script with these options of sbatch, after those that a good job has."""
    return f"#!/bin/bash\n#SBATCH {_GOOD}\n#SBATCH {options}\ntrue\n"


def ask(job_ids: Mapping[str, str]) -> dict[str, Any]:
    """Ask everything, in the form that the product asks it; the answers as its parsers read them, by our names."""
    ids = list(job_ids.values())
    return {
        "queue": jobs.queue(),
        "queued": queries.queued(),
        "accounting": jobs.accounting(ids),
        "used": jobs.used(ids),
        "starts": queries.starts(ids),
        "state": {name: jobs.state(job_id) for name, job_id in job_ids.items()},
        "would_end": {name: jobs.would_end_for_good(job_id) for name, job_id in job_ids.items()},
        "unknown": jobs.state("99999"),
        "named": jobs.jobs_named("completed"),
        "shown": {name: queries.shown("job", job_id)[0] for name, job_id in job_ids.items()},
        "limits": queries.limits("proj1", "small"),
        "jobs_before": queries.jobs_before(job_ids["priority"], "orfoz"),
        "cores_in": queries.cores_in("hamsi"),
        "running_in": queries.running_in("proj1"),
        "nodes_out_of_use": queries.nodes_out_of_use("kolyoz-cuda"),
        "out_of_use": queries.out_of_use(),
        "every_node": queries.every_node(),
        "nodes": queries.nodes("akya[1-2],kolyoz2"),
        "partition": queries.shown("partition", "akya-cuda"),
        "partitions": queries.shown("partition"),
        "reservation": queries.shown("reservation"),
        "license": queries.shown("license"),
        "accounts": queries.accounts(),
        "ping": queries.ping(),
        "hardware": queries.hardware(),
        "start": capacity.estimated_start(script("--comment=good")),
        "free_gpus": capacity.free_gpus(),
        "live_partitions": capacity.partitions(),
        "max_array_size": capacity.max_array_size(),
        "core_limit": capacity.core_limit("ayse"),
        # Nothing is to be done, which is no error.
        "requeued": commands.requeue(job_ids["held"]),
        "cancelled": commands.cancel([job_ids["completed"]]),
        "refused": {name: _refusal(options) for name, options in REFUSED.items()},
    }


def ask_in_vain(at_fault: str) -> dict[str, SlurmError | None]:
    """Ask the programs that need `slurmdbd` or `slurmctld` while that one is down; return how each fails."""
    questions: dict[str, Callable[[], object]] = {"sacct": lambda: jobs.accounting(["88888"])}
    if at_fault == "slurmctld":
        questions = {
            "squeue": lambda: jobs.state("88888"),
            "sbatch": lambda: client.run(["sbatch", "--parsable"], text=script("--comment=down")),
            "scancel": lambda: commands.cancel(["88888"]),
            "scontrol": lambda: commands.requeue("88888"),
            "sinfo": lambda: queries.cores_in("nowhere"),
        }
    return {name: _failure(question) for name, question in questions.items()}


def _failure(question: Callable[[], object]) -> SlurmError | None:
    try:
        question()
    except SlurmError as error:
        return error
    return None


def _refusal(options: str) -> str:
    """Return what sbatch prints when it refuses the job; empty if it does not."""
    try:
        client.run(["sbatch", "--parsable"], text=script(options))
    except SlurmError as error:
        return words_of_refusal(error.message)[0]
    return ""
