"""Serve TensorBoard on the loopback address of a machine with a browser, or elsewhere on a private Unix socket."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.slurm import client
from truba_runner.tensorboard.chosen import Shown
from truba_runner.tensorboard.feed import Feed, without_tensorflow
from truba_runner.tensorboard.page import Page

_NICE = 10
_LOOK_EVERY_SECONDS = 0.5
DEFAULT_PORT = 6006
# Reasons why a server ended: nobody looked; a signal came or the tunnel was closed.
IDLE, LEFT = "idle", "left"


def far() -> bool:
    """Return whether the user's browser is on another machine: this is a shared one (has sbatch), or an ssh session."""
    return client.available() or "SSH_CONNECTION" in os.environ


def loopback(port: int | None) -> socket.socket:
    """Return a TCP socket listening on 127.0.0.1: on `port`, or if None on 6006, or any free port if that is taken.

    Raises:
        truba_runner.errors.Failed: `port` is not available.
    """
    wanted = [port] if port else [DEFAULT_PORT, 0]
    for number in wanted:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", number))
            sock.listen(64)
            return sock
        except OSError as error:
            sock.close()
            if number == wanted[-1]:
                message = _("port {port} of this machine is not available ({reason}); choose another with --port")
                raise Failed(message.format(port=number, reason=error.strerror)) from error
    raise AssertionError


def serve(
    listening: socket.socket,
    list_runs: Callable[[], Sequence[Shown]],
    began: Callable[[], None],
    over: Callable[[], bool] = lambda: False,
    idle_minutes: float = 0,
) -> str:
    """Serve until a signal ends the process, `over()` is true, or no request came for `idle_minutes` (0: no limit).

    Call `began()` once requests are answered. Return IDLE or LEFT.

    Raises:
        truba_runner.errors.Failed: TensorBoard is not installed.
    """
    without_tensorflow()
    page = Page(Feed(list_runs))
    http_server = _wsgi_server(listening, page)
    thread = threading.Thread(target=http_server.serve_forever, name="server", daemon=True)
    with ended_by_signal() as ended:
        thread.start()
        began()
        try:
            while not ended.wait(_LOOK_EVERY_SECONDS) and not over():
                if idle_minutes and page.idle_seconds() > idle_minutes * 60:
                    return IDLE
            return LEFT
        finally:
            http_server.shutdown()
            http_server.server_close()


def stay_small() -> None:
    """Give this process low priority: login nodes are shared."""
    os.nice(_NICE)


def _wsgi_server(listening: socket.socket, page: Page) -> Any:
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        """Request handler that logs no requests."""

        protocol_version = "HTTP/1.1"

        def log_request(self, *arguments: Any) -> None:
            """Log nothing."""

    unix = listening.family == socket.AF_UNIX
    host = f"unix://{listening.getsockname()}" if unix else "127.0.0.1"
    port = 0 if unix else listening.getsockname()[1]
    return make_server(host, port, page, threaded=True, request_handler=Quiet, fd=listening.fileno())


@contextmanager
def ended_by_signal() -> Iterator[threading.Event]:
    """Yield an event that is set on Ctrl-C (SIGINT), the end of the session (SIGHUP) or SIGTERM."""
    ended = threading.Event()
    signals = [signal.SIGINT, signal.SIGTERM]
    # nohup ignores SIGHUP; keep it ignored.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in signals}
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Line:
    """The server's end of the tunnel: the user's machine writes a heartbeat to standard input every few seconds.

    A broken connection may look alive for hours on this side; only the missing heartbeat shows it.
    """

    def __init__(self, silence_seconds: float) -> None:
        """Start the clock for `silence_seconds`."""
        self._silence_seconds = silence_seconds
        self._heard = time.monotonic()
        self._closed = False

    def dead(self) -> bool:
        """Return whether standard input was closed or no heartbeat came for too long."""
        while not self._closed and select.select([sys.stdin], [], [], 0)[0]:
            self._closed = not os.read(sys.stdin.fileno(), 4096)
            self._heard = time.monotonic()
        return self._closed or time.monotonic() - self._heard > self._silence_seconds
