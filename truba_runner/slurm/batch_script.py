"""The sbatch script, with its requeue trap."""

from __future__ import annotations

import signal

from submitit import SlurmExecutor

from truba_runner.slurm.client import SRUN_FAILED

# A job that has never begun goes back into the queue, unless it has been there so often, for whatever reason.
MOST_RESTARTS = 10
# How srun ends then: it failed itself, or a signal of Slurm's reached the worker before that listened.
NEVER_BEGUN = f"{SRUN_FAILED}|{128 + signal.SIGUSR2}|{128 + signal.SIGTERM}"
# Bash. Of an array `job` is one task: the number of the last to start is also the array's, and would mean all of them.
# Slurm may not answer for a while; a job that is cancelled, or back in the queue, is left alone, and so is one whose
# rank at fault has forbidden it.
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

    Its pickles, their renaming after sbatch (a kill in between loses the job) and its handler, which exits inside the
    signal, are not used.
    """

    @classmethod
    def affinity(cls) -> int:
        """A script can be written, for a dry run, where there is no srun."""
        return 1

    def text(self, command: str, array_size: int) -> str:
        """The script; `array_size` is 0 for a single job."""
        if array_size:
            self.parameters["map_count"] = array_size
        return str(self._make_submission_file_text(command, uid=""))
