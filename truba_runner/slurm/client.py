"""Run one Slurm command, with retries and a time limit; raise SlurmError if it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence

from truba_runner.language import _
from truba_runner.slurm import relay
from truba_runner.slurm.job_environment import without_slurms

TIMEOUT_SECONDS = 60
# Accounting is asked once and briefly: if it is down, the runs' own records have what commands need.
ACCOUNTING_SECONDS = 5.0
# Pauses between attempts; on a socket timeout TRUBA itself advises to wait and try again.
BACKOFF_SECONDS = (1, 2, 4, 8, 16)
_TRANSIENT = (
    "Socket timed out",
    "Unable to contact slurm controller",
    "Zero Bytes were transmitted",
    "Connection refused",
    "Connection reset",
    "Connection timed out",
    "Resource temporarily unavailable",
    # scontrol requeue, where other commands are unable to contact the controller (Slurm 22.05 to 26.05).
    "Unexpected message received",
)
# Messages of a command that found no Slurm controller.
_UNREACHABLE = (
    "resolve_ctls_from_dns_srv",
    "Could not establish a configuration source",
    "Unable to process configuration",
)
# Exit status of srun if srun itself failed, not the program (SLURM_EXIT_ERROR); our programs never exit with it.
SRUN_FAILED = 121
# Exit status of the module that checks the nodes if the job must not train. After any other one, such as that of a
# Python that cannot be started, the training starts, and fails if it must.
NODE_LEFT = 76


class SlurmError(Exception):
    """Failure of a Slurm command.

    `transient`: the same command may work a moment later. `refused`: unless transient, Slurm has rejected the request.
    """

    def __init__(self, command: str, message: str, transient: bool, refused: bool = False) -> None:
        """`message` is what the command printed on standard error."""
        super().__init__(f"{command}: {message}")
        self.message = message
        self.transient = transient
        self.refused = refused


def available() -> bool:
    """Return whether jobs can be submitted from here."""
    return shutil.which("sbatch") is not None or relay.folder() is not None


def run(
    argv: Sequence[str],
    *,
    text: str | None = None,
    inherit: Sequence[int] = (),
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> str:
    """Run a command once and return its standard output; `text` is its standard input.

    `inherit` are file descriptors that the command keeps open.

    Raises:
        SlurmError: the command is not installed, failed, or did not answer in time.
    """
    return completed(argv, text=text, inherit=inherit, timeout_seconds=timeout_seconds).stdout


def completed(
    argv: Sequence[str],
    *,
    text: str | None = None,
    inherit: Sequence[int] = (),
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> subprocess.CompletedProcess[str]:
    """As `run`, with the standard error too."""
    if any("\0" in word for word in argv):
        words = _("a name contains a NUL character, which cannot be passed to a command")
        raise SlurmError(argv[0], words, transient=False)
    try:
        if outside := relay.folder():
            done = relay.call(outside, argv, text, timeout_seconds)
        else:
            done = subprocess.run(
                argv,
                input=text,
                capture_output=True,
                text=True,
                timeout=timeout_seconds,
                pass_fds=inherit,
                check=False,
                # By default Slurm truncates the list of an array's tasks.
                env={**without_slurms(os.environ), "SLURM_BITSTR_LEN": "0"},
            )
    except FileNotFoundError as error:
        sentence = _("there is no such command on the PATH; is this a login node?")
        raise SlurmError(argv[0], sentence, transient=False) from error
    except subprocess.TimeoutExpired as error:
        sentence = _("no answer within {seconds:g} s", seconds=timeout_seconds)
        raise SlurmError(argv[0], sentence, transient=True) from error
    if done.returncode:
        # scontrol ping reports on standard output that no controller answers.
        message = done.stderr.strip() or done.stdout.strip() or _("exit status {status}", status=done.returncode)
        unreachable = any(sign in message for sign in _UNREACHABLE)
        raise SlurmError(argv[0], message, any(sign in message for sign in _TRANSIENT), refused=not unreachable)
    return done


def query(argv: Sequence[str]) -> str:
    """Run a command that is safe to repeat; unless it is sacct, retry it after pauses while Slurm does not answer.

    Raises:
        SlurmError: as `run`, after the last attempt.
    """
    if argv[0] == "sacct":
        return run(argv, timeout_seconds=ACCOUNTING_SECONDS)
    for pause_seconds in BACKOFF_SECONDS:
        try:
            return run(argv)
        except SlurmError as error:
            if not error.transient:
                raise
            time.sleep(pause_seconds)
    return run(argv)
