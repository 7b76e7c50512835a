"""Fork server: start processes for trials and oracle steps from a parent that has the frameworks imported.

Importing TensorFlow takes as long as training a small trial. Each trial has its own process, so a crash, leak or global
setting of one cannot affect the next. The parent only imports modules, which makes forking from it safe. Each process
is killed when its parent ends.
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
from truba_runner.training.interrupt import ignore_signals

_PR_SET_PDEATHSIG = 1
_ATTEMPTS = 3
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class Call:
    """A call `module.function(*arguments)` for a new process; an int that it returns becomes the exit status.

    The fork server imports `imports` before it forks, and keeps them. `log`: a file for the process's output.
    """

    module: str
    function: str
    arguments: Sequence[Any] = ()
    imports: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    log: str = ""


class Nursery:
    """Client of the fork server; runs one process at a time."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """`environment` is added to this process's own for the fork server."""
        self._environment = {**os.environ, **environment}
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        # Bytes received from the fork server and not yet parsed.
        self._received = b""

    def start(self, call: Call) -> int:
        """Start a process once its modules are imported; return its process id.

        Raises:
            truba_runner.errors.Failed: an import failed, or no process could be forked.
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
            # The fork server was killed; it has no state, so a new one can replace it.
            self.close()
        raise Failed("the process that starts the trials has died again and again; the log shows why")

    def _ask(self, call: Call) -> dict[str, Any]:
        assert self._socket is not None  # noqa: S101
        try:
            self._socket.sendall(json.dumps(asdict(call)).encode() + b"\n")
            return self._answer()
        except OSError:
            return {}

    def ended(self, wait_seconds: float) -> dict[str, Any] | None:
        """Wait for the process to end; return `status` (negative for a signal) and `value`; None on timeout."""
        assert self._socket is not None  # noqa: S101
        # This answer may have arrived together with the previous one.
        if b"\n" not in self._received and not select.select([self._socket], [], [], wait_seconds)[0]:
            return None
        # No answer: the fork server was killed, and the process with it.
        return self._answer() or {"status": -signal.SIGKILL, "value": None}

    def close(self) -> None:
        """Kill the fork server, and with it any process that still runs."""
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
        """Return one answer of the fork server; empty if it has died."""
        assert self._socket is not None  # noqa: S101
        while b"\n" not in self._received:
            if not (more := self._socket.recv(_CHUNK_BYTES)):
                return {}
            self._received += more
        line, _newline, self._received = self._received.partition(b"\n")
        return dict(json.loads(line))


# -- the fork server ---------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """Read calls from a socket, one JSON line each; fork a process for each and report its id, then its end."""
    die_with_parent(int(arguments[1]))
    schema()  # Built once here: each trial's config is checked against it.
    # Slurm and the terminal signal every process; only the worker acts on signals, and forwards them.
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
    """Return the new process's id, and the file descriptor to read its value from."""
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
        # Run this process's own exit handlers (TensorFlow deletes its files in TMPDIR), but not the parent's.
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
    """Have the kernel kill this process whenever its parent ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
