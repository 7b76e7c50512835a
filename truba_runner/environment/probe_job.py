"""Run a script in a short Slurm job, for what a login node cannot do, and wait a while for its answer."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from truba_runner.config.schema import Experiment, Resources
from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.rules.experiment import plan
from truba_runner.runs.run_directory import CODE
from truba_runner.slurm import batch_script, client, commands, jobs
from truba_runner.slurm.jobs import Job
from truba_runner.slurm.request import Request
from truba_runner.storage import private

# A partition for short jobs starts them in seconds; if it is busy, a longer wait is not worthwhile.
WAIT_SECONDS = 120.0
_POLL_SECONDS = 0.5
_END = "TRUBA-END "


def run(experiment: Experiment, script: str, exclude: Callable[[Request], str]) -> tuple[str, int] | None:
    """Run a shell script on a compute node; return its output and exit status, or None if it does not end in time.

    `exclude` returns the nodes that a request must not get. A job that does not end in time is left alone, and the next
    call with the same script first looks for its answer.

    Raises:
        truba_runner.errors.Failed: Slurm does not answer, or rejects the job.
    """
    runs_folder = Path(experiment.cluster.runs_folder)
    name = f"truba-environment-{hashlib.sha256(script.encode()).hexdigest()[:12]}"
    output = runs_folder / CODE / f"{name}.out"
    output.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    private.require_own(output.parent)
    try:
        if not output.exists() and not _is_there(name):
            request = _request(experiment)
            commands.sbatch(_batch(replace(request, exclude=exclude(request)), name, output, script))
    except client.SlurmError as error:
        message = _("the job that checks the environment could not be submitted: {message}", message=error.message)
        raise Failed(message) from error
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        printed, ended, status = _read(output).rpartition(_END)
        if ended and status.endswith("\n"):
            output.unlink(missing_ok=True)
            return printed, int(status)
        time.sleep(_POLL_SECONDS)
    return None


def _is_there(name: str) -> bool:
    return any(Job(job_id, jobs.state(job_id)).live for job_id in jobs.jobs_named(name))


def _read(output: Path) -> str:
    try:
        return output.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def _request(experiment: Experiment) -> Request:
    """Return the smallest request on the probe partition, else the experiment's, for the experiment's kind of node."""
    cluster, own = experiment.cluster, experiment.resources
    probing = cluster.partitions.get(cluster.probe_partition)
    # Slurm knows only the partitions of its own cluster.
    if probing is None or probing.slurm_cluster != cluster.partitions.get(own.partition, probing).slurm_cluster:
        return replace(plan(experiment).request, time_minutes=5, nodes=1, tasks_per_node=1, mail_type="", mail_user="")
    families = probing.families
    constraint = own.partition if own.partition in families else families[0] if families else ""
    facts = cluster.partitions.get(constraint, probing)
    resources = Resources(
        cluster.probe_partition,
        gpus=1 if facts.gpus_per_node else 0,
        time="5",
        account=own.account,
        constraint=constraint,
        exclude=own.exclude,
        qos=cluster.probe_qos or own.qos,
    )
    return plan(replace(experiment, resources=resources)).request


def _batch(request: Request, name: str, output: Path, script: str) -> str:
    small = replace(request, nodes=1, tasks_per_node=1, memory_gb=None, memory_per_cpu_gb=None, nodelist="", sbatch={})
    parameters = batch_script.parameters(name, replace(small, exclusive=False))
    further = {"output": output, "chdir": output.parent, "open-mode": "truncate"}
    parameters = {
        **parameters,
        "additional_parameters": {**parameters["additional_parameters"], **further},
        "use_srun": False,
        "teardown": [f'echo "{_END}$?"', ""],
    }
    return batch_script.text(f"({script.rstrip()}\n)", output.parent, parameters)
