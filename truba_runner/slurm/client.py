"""Runs one Slurm command: retries, a time limit, SlurmError."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence

from truba_runner.language import _
from truba_runner.slurm import relay

TIMEOUT_SECONDS = 60
# Accounting is asked once, and not for long: where it is down, what commands need is on record.
ACCOUNTING_SECONDS = 5.0
# Between attempts; TRUBA's own advice on a socket timeout is to wait and try again.
BACKOFF_SECONDS = (1, 2, 4, 8, 16)
_TRANSIENT = (
    "Socket timed out",
    "Unable to contact slurm controller",
    "Zero Bytes were transmitted",
    "Connection refused",
    "Connection reset",
    "Connection timed out",
    "Resource temporarily unavailable",
)
# The command found no Slurm to ask.
_UNREACHABLE = (
    "resolve_ctls_from_dns_srv",
    "Could not establish a configuration source",
    "Unable to process configuration",
)
# What srun ends with where not the program but srun itself has failed (SLURM_EXIT_ERROR); no program of ours does.
SRUN_FAILED = 121


class SlurmError(Exception):
    """A Slurm command failed.

    `transient`: the same command may work a moment later. `refused`: Slurm has heard the request and will not have it.
    """

    def __init__(self, command: str, message: str, transient: bool, refused: bool = False) -> None:
        """`message` is what the command printed on its standard error."""
        super().__init__(f"{command}: {message}")
        self.message = message
        self.transient = transient
        self.refused = refused


def available() -> bool:
    """Whether jobs can be submitted from here."""
    return shutil.which("sbatch") is not None or relay.folder() is not None


def run(
    argv: Sequence[str],
    *,
    text: str | None = None,
    inherit: Sequence[int] = (),
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> str:
    """Runs one command once, and returns what it printed; `text` is its standard input.

    `inherit` are descriptors that it keeps open.

    Raises:
        SlurmError: it is not installed, ended with an error, or did not answer in time.
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
        raise SlurmError(argv[0], _("a name holds a NUL character, which no command can be given"), transient=False)
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
                # Else the list of an array's tasks is cut short.
                env={**os.environ, "SLURM_BITSTR_LEN": "0"},
            )
    except FileNotFoundError as error:
        told = _("there is no such command on the PATH; is this a login node?")
        raise SlurmError(argv[0], told, transient=False) from error
    except subprocess.TimeoutExpired as error:
        told = _("no answer within {seconds:g} s", seconds=timeout_seconds)
        raise SlurmError(argv[0], told, transient=True) from error
    if done.returncode:
        # scontrol ping says on its standard output that nobody has answered.
        message = done.stderr.strip() or done.stdout.strip() or _("exit status {status}", status=done.returncode)
        unreachable = any(sign in message for sign in _UNREACHABLE)
        raise SlurmError(argv[0], message, any(sign in message for sign in _TRANSIENT), refused=not unreachable)
    return done


def query(argv: Sequence[str]) -> str:
    """Runs a command that changes nothing, again after a pause where Slurm did not answer.

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
