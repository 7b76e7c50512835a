"""Signals as a flag: a handler only sets it, and whoever trains looks at it between two steps.

| signal | from | what the run does after it has saved |
|---|---|---|
| USR2 | Slurm, a while before the time limit or at a preemption; `scancel --signal=USR2` | requeues itself |
| TERM | Slurm: preemption, requeue, cancellation; the system | ends; whether it comes back is Slurm's to say |
| INT | Ctrl-C on a local run; a second one ends it at once | ends |
| HUP | a local run's terminal: closed, or its connection lost; not under `nohup` | ends |
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from truba_runner.language import _, marked

_WORDS = {
    signal.SIGUSR2: marked("the time limit is near, or the job is preempted"),
    signal.SIGTERM: marked("told to end"),
    signal.SIGINT: marked("Ctrl-C"),
    signal.SIGHUP: marked("the terminal was closed"),
}


class Interrupted(BaseException):
    """Raised by a backend out of its loop once the state is on disk; no framework's handler takes it for an error."""


def ignore_signals() -> None:
    """Nothing that this process, or a command that it starts, is told changes any more how it ends."""
    for number in _WORDS:
        signal.signal(number, signal.SIG_IGN)


def leave(status: int) -> NoReturn:
    """Ends this process with an exit status that no signal changes any more.

    Python takes handlers away before it tidies up: one that came then would kill what has a result, or is queued again.
    """
    ignore_signals()
    sys.exit(status)


class Interruption:
    """Which signals have asked this process to stop."""

    def __init__(self) -> None:
        """None has, so far."""
        self.received: list[int] = []
        self._held = False
        self._words: dict[int, str] = {}
        self.listening = False

    @staticmethod
    def signals() -> list[int]:
        """Those that are listened to, in an order that is every rank's."""
        return [int(number) for number in _WORDS]

    def listen(self) -> None:
        """Sets the handlers; in the main thread, before a framework starts."""
        self.listening = True
        # Not in the handler: the first message reads the catalogue, and may import what the signal has come in the
        # middle of.
        self._words = {int(number): _(word) for number, word in _WORDS.items()}
        for number in _WORDS:
            # Who starts it with nohup wants it to go on.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)

    def decided(self) -> None:
        """How the run ends is decided: a signal that comes later is not for it, nor for what it tells Slurm."""
        if self.listening:
            ignore_signals()

    def hold(self) -> None:
        """From now on there is a state to save, and a signal waits to be looked at; before, it ends the run at once."""
        self._held = True

    @contextmanager
    def recognised(self) -> Iterator[None]:
        """What a signal has ended in here it has ended as such, whatever a framework has made of the exception.

        TensorFlow makes a RuntimeError of it where an operation fails just then, as another rank was ended too.
        """
        try:
            yield
        except BaseException as error:
            if self.received and not self._held and not isinstance(error, Interrupted):
                raise Interrupted from error
            raise

    @property
    def requested(self) -> bool:
        """Looked at between two steps of training, evaluation or prediction."""
        return bool(self.received)

    @property
    def requeue(self) -> bool:
        """Whether it was Slurm's early signal, after which a run always goes on."""
        return signal.SIGUSR2 in self.received

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and signal.SIGINT in self.received:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        first = not self.received  # Before anything else: the next signal may come in the middle of this one.
        again = number in self.received
        self.received.append(number)
        # Not print: the signal may have come in the middle of one.
        then = _("saving after this step") if self._held else _("nothing to save yet")
        if not again:
            os.write(2, f"\n{self._words[number]}: {then}\n".encode())
        if first and not self._held:
            raise Interrupted
