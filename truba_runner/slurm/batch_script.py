"""Write the sbatch script, with its shell function that requeues the job."""

from __future__ import annotations

import signal

from submitit import SlurmExecutor

from truba_runner.slurm.client import SRUN_FAILED

# A job whose worker never began is requeued, unless the job was restarted this often, for whatever reason.
MOST_RESTARTS = 10
# The exit statuses of srun then: srun itself failed, or Slurm's signal arrived before the worker had its handlers.
NEVER_BEGUN = f"{SRUN_FAILED}|{128 + signal.SIGUSR2}|{128 + signal.SIGTERM}"
# Bash. For an array `job` is one task: the last task's SLURM_JOB_ID is also the array's id and would mean all tasks.
# Slurm may not answer for a while. A job that is cancelled or queued again is left alone, and so is one for which the
# failed rank has forbidden a requeue.
REQUEUE = r"""
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}
requeue() {
  scontrol show job $job | grep -q Requeue=0 && return
  for pause in 5 20 60 0; do
    state=$(squeue --noheader --jobs=$job --format=%T) && [ "$state" != RUNNING ] && return
    [ "$state" = RUNNING ] && scontrol requeue $job && return
    sleep $pause
  done
}""".strip()


class Script(SlurmExecutor):
    """submitit's check of the parameters and its sbatch text, around our own command.

    Not used are its pickles, which it renames after sbatch (a kill in between loses the job), and its signal handler,
    which exits inside the signal.
    """

    @classmethod
    def affinity(cls) -> int:
        """Return 1, so that a dry run can write a script on a machine without srun."""
        return 1

    def text(self, command: str, array_size: int) -> str:
        """Return the script; `array_size` is 0 for a single job."""
        if array_size:
            self.parameters["map_count"] = array_size
        return str(self._make_submission_file_text(command, uid=""))
