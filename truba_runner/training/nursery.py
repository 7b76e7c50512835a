"""Processes for trials and for the oracle's steps, ready at once: forked from one that has the frameworks imported.

Importing TensorFlow takes as long as training a small trial. A process of its own for each trial keeps them apart: what
one crashes, leaks or sets is none of the next one's, and it trains as it would by itself. The parent of them all runs
nothing but imports, so it can be forked from. Whichever of the processes dies takes those below it along.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from truba_runner.config.schema import schema
from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.training.interrupt import ignore_signals

_PR_SET_PDEATHSIG = 1
_ATTEMPTS = 3
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class Call:
    """What a new process is to do: `module.function(*arguments)`; its exit status is the value, where that is a number.

    `imports` are made before it is forked, and kept for the next. A log gets what it prints.
    """

    module: str
    function: str
    arguments: Sequence[Any] = ()
    imports: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    log: str = ""


class Nursery:
    """Starts one process at a time."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """`environment` is added to this process's own."""
        self._environment = {**os.environ, **environment}
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        # What was received and not yet read.
        self._received = b""

    def start(self, call: Call) -> int:
        """Starts a process, once its imports are made; returns its id.

        Raises:
            truba_runner.errors.Failed: an import failed, or the machine has no room for a process.
        """
        for _attempt in range(_ATTEMPTS):
            if self._process is None or self._process.poll() is not None:
                self.close()
                self._open()
            answer = self._ask(call)
            if "error" in answer:
                raise Failed(answer["error"])
            if answer:
                return int(answer["pid"])
            # It was killed since; it holds nothing that another has not.
            self.close()
        raise Failed(_("the process that starts the trials has died again and again; the log shows why"))

    def _ask(self, call: Call) -> dict[str, Any]:
        assert self._socket is not None  # noqa: S101
        try:
            self._socket.sendall(json.dumps(asdict(call)).encode() + b"\n")
            return self._answer()
        except OSError:
            return {}

    def ended(self, wait_seconds: float) -> dict[str, Any] | None:
        """How the process ended, if it does within this time: `status`, negative for a signal, and its `value`."""
        assert self._socket is not None  # noqa: S101
        # The answer may have come along with the one before it: then there is nothing more to wait for.
        if b"\n" not in self._received and not select.select([self._socket], [], [], wait_seconds)[0]:
            return None
        # Nothing: its parent was killed, and took it along.
        return self._answer() or {"status": -signal.SIGKILL, "value": None}

    def close(self) -> None:
        """Ends the process that they are forked from, and any that is left."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._socket is not None:
            self._socket.close()
        self._process = self._socket = None
        self._received = b""

    def _open(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-m", "truba_runner.training.nursery", str(theirs.fileno()), str(os.getpid())],
                pass_fds=(theirs.fileno(),),
                env=self._environment,
                stdin=subprocess.DEVNULL,
            )
        self._socket = ours

    def _answer(self) -> dict[str, Any]:
        """One line of the parent's; empty where it has died."""
        assert self._socket is not None  # noqa: S101
        while b"\n" not in self._received:
            if not (more := self._socket.recv(_CHUNK_BYTES)):
                return {}
            self._received += more
        line, _newline, self._received = self._received.partition(b"\n")
        return dict(json.loads(line))


# -- the process that they are forked from -----------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """Reads calls from a socket, one a line; forks a process for each, and tells of its id and of its end."""
    die_with_parent(int(arguments[1]))
    schema()  # Each trial's config is checked against it.
    # Slurm and a terminal send them to every process; the worker, which decides, passes them on.
    ignore_signals()
    with socket.socket(fileno=int(arguments[0])) as channel, channel.makefile("rb") as calls:
        for line in calls:
            call = Call(**json.loads(line))
            try:
                for name in call.imports:
                    importlib.import_module(name)
                pid, values = _fork(call)
            except Exception as error:
                traceback.print_exc()
                _tell(channel, {"error": f"{call.module}: {type(error).__name__}: {error}"})
                continue
            _tell(channel, {"pid": pid})
            with os.fdopen(values, "rb") as pipe:
                value = pipe.read()
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            _tell(channel, {"status": status, "value": json.loads(value) if value else None})
    return 0


def _tell(channel: socket.socket, answer: Mapping[str, Any]) -> None:
    channel.sendall(json.dumps(answer).encode() + b"\n")


def _fork(call: Call) -> tuple[int, int]:
    """The new process's id, and a descriptor that its value can be read from."""
    parent, (reader, writer) = os.getpid(), os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    status = 1
    try:
        die_with_parent(parent)
        os.close(reader)
        # What the parent has open is not this process's to close. Its own is: TensorFlow leaves files in TMPDIR else.
        atexit._clear()
        status = _run(call, writer)
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run(call: Call, writer: int) -> int:
    if call.log:
        log = os.open(call.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
    os.environ.update(call.environment)
    status, value = 0, None
    try:
        value = getattr(importlib.import_module(call.module), call.function)(*call.arguments)
    except Failed as failed:
        status, value = 1, {"failed": str(failed)}
    except Exception as error:
        traceback.print_exc()
        status, value = 1, {"failed": f"{type(error).__name__}: {error}"}
    if isinstance(value, int):
        return value
    with os.fdopen(writer, "wb") as pipe:
        pipe.write(json.dumps(value).encode())
    return status


def die_with_parent(parent: int) -> None:
    """Has the kernel kill this process when its parent ends, however that is."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
