"""Write sbatch scripts: parameters under submitit's names, and the shell function that requeues a job.

The text is that of submitit's private `_make_sbatch_string`, checked with submitit 1.5.4. Another version may rename
its parameters or change the text; `test_a_dry_run_prints_the_script_and_leaves_no_trace` then fails. The rest of
submitit is not used: it renames its pickles after sbatch (a kill in between loses the job), and exits inside its signal
handler.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import _make_sbatch_string

from truba_runner.slurm.client import NODE_LEFT, SRUN_FAILED
from truba_runner.slurm.request import Request

# A job whose worker never began is requeued, unless the job was restarted this often, for whatever reason.
_MOST_RESTARTS = 10
# The exit statuses of srun then: srun itself failed, or Slurm's signal arrived before the worker had its handlers.
_NEVER_BEGUN = f"{SRUN_FAILED}|{128 + signal.SIGUSR2}|{128 + signal.SIGTERM}"
# Bash. For an array `job` is one task: the last task's SLURM_JOB_ID is also the array's id and would mean all tasks.
# Slurm may not answer for a while. A job that is cancelled or queued again is left alone, and so is one for which the
# failed rank, or the site (cluster.requeue), has forbidden a requeue. A profile's SQUEUE_STATES could hide the job.
_REQUEUE = r"""
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}
requeue() {
  unset "${!SQUEUE_@}"
  scontrol show job $job | grep -q '^ *Requeue=0 ' && return
  for pause in 5 20 60 0; do
    state=$(squeue --noheader --jobs=$job --format=%T) && [ "$state" != RUNNING ] && return
    [ "$state" = RUNNING ] && scontrol requeue $job && return
    sleep $pause
  done
}""".strip()
# Time for the start of Python on a busy node, beside that of the checks themselves.
_START_SECONDS = 10.0
# Shell lines after srun that requeue the job where Slurm would not, and end with srun's exit status.
REQUEUE_OR_EXIT = (
    "status=$?",
    _REQUEUE,
    "case $status in",
    # SIGKILL, because a node failed or memory ran out: Slurm would not requeue the job.
    "  137) requeue ;;",
    f"  {_NEVER_BEGUN}) [ ${{SLURM_RESTART_COUNT:-0}} -ge {_MOST_RESTARTS} ] || requeue ;;",
    "esac",
    "exit $status",
)


def node_check(python: str, arguments: str, nodes: int, seconds: float) -> str:
    """Return the shell line that checks several nodes before the job trains, and ends the script if one is bad."""
    decide = (
        f"{python} -u -m truba_runner.worker.several_nodes {arguments} || [ $? != {NODE_LEFT} ] || exit {NODE_LEFT}"
    )
    # A step of its own. --mem=0: otherwise the next step fails, as the memory is not free yet. -k: srun outlives
    # SIGTERM where a node does not answer.
    step = f"srun --overlap --mem=0 --cpus-per-task=1 --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1"
    look = f"{python} -u -m truba_runner.nodes.look {arguments}"
    return f"timeout -k 2 {seconds + _START_SECONDS:g} {step} {look} | {decide}"


def parameters(job_name: str, request: Request) -> dict[str, Any]:
    """Return a request's parameters by submitit's names; options without one are in `additional_parameters`."""
    further = dict(request.sbatch)
    further |= {"reservation": request.reservation} if request.reservation else {}
    further |= {"requeue" if request.requeue else "no-requeue": True}
    return {
        "job_name": job_name,
        "partition": request.partition,
        "account": request.account,
        "nodes": request.nodes,
        "ntasks_per_node": request.tasks_per_node,
        "cpus_per_task": request.cpus_per_task,
        **_gpus(request, further),
        "mem": _megabytes(request.memory_gb),
        "mem_per_cpu": _megabytes(request.memory_per_cpu_gb),
        "time": request.time_minutes,
        "constraint": request.constraint or None,
        "exclude": request.exclude or None,
        "nodelist": request.nodelist or None,
        "qos": request.qos or None,
        "exclusive": request.exclusive or None,
        "mail_type": request.mail_type or None,
        "mail_user": request.mail_user or None,
        "signal_delay_s": request.signal_seconds,
        "stderr_to_stdout": True,
        "wckey": None,
        "additional_parameters": further,
    }


def _megabytes(gigabytes: float | None) -> str | None:
    # Round down: the memory per core, times all cores, must not exceed the node's memory.
    return f"{int(gigabytes * 1024 + 1e-6)}M" if gigabytes else None


def _gpus(request: Request, further: dict[str, Any]) -> dict[str, str]:
    """Return the parameter that requests the GPUs of each node, joined with the gres of `further`, if any."""
    option, _, value = request.gpu_option.format(gpus=request.gpus).removeprefix("--").partition("=")
    requested = {option.replace("-", "_"): value} if request.gpus else {}
    if "gres" in further:  # A second --gres would replace the first.
        requested["gres"] = ",".join(filter(None, [requested.get("gres"), str(further.pop("gres"))]))
    return requested


def text(command: str, log_folder: Path, parameters: Mapping[str, Any], array_size: int = 0) -> str:
    """Return the script that runs a shell command; `array_size` is 0 for a single job."""
    return _make_sbatch_string(command, log_folder, map_count=array_size or None, **parameters)
