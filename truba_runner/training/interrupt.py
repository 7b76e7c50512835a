"""Turn signals into a flag: the handler only sets it, and the training loop checks it between steps.

| signal | sent by | after saving, the run |
|---|---|---|
| USR2 | Slurm, some time before the time limit or a preemption; `scancel --signal=USR2` | requeues itself |
| TERM | Slurm: preemption, requeue, cancellation; the system | ends; Slurm decides whether it is requeued |
| INT | Ctrl-C in a local run; a second one ends it at once | ends |
| HUP | the terminal of a local run: closed, or its connection lost; not under `nohup` | ends |
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
    signal.SIGTERM: marked("asked to end"),
    signal.SIGINT: marked("Ctrl-C"),
    signal.SIGHUP: marked("the terminal was closed"),
}


class Interrupted(BaseException):
    """Raised by a backend once the state is saved; a BaseException, so that frameworks do not catch it as an error."""


def ignore_signals() -> None:
    """Ignore all listed signals from now on, in child commands too."""
    for number in _WORDS:
        signal.signal(number, signal.SIG_IGN)


def leave(status: int) -> NoReturn:
    """Exit with a status that a late signal cannot change.

    Python resets handlers before its cleanup: a signal then would kill a run that has finished or is requeued.
    """
    ignore_signals()
    sys.exit(status)


class Interruption:
    """The signals received so far that ask this process to stop."""

    def __init__(self) -> None:
        """Start with no signal received and no handlers set."""
        self.received: list[int] = []
        self._held = False
        self._words: dict[int, str] = {}
        self.listening = False

    @staticmethod
    def signals() -> list[int]:
        """Return the signals listened to, in the same order on every rank."""
        return [int(number) for number in _WORDS]

    def listen(self) -> None:
        """Set the handlers; call in the main thread, before a framework starts."""
        self.listening = True
        # Translated here, not in the handler: reading the catalogue may import a module whose import was interrupted.
        self._words = {int(number): _(word) for number, word in _WORDS.items()}
        for number in _WORDS:
            # Under nohup a run survives its terminal.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)

    def decided(self) -> None:
        """Ignore later signals, in child commands too (scontrol): how the run ends is decided."""
        if self.listening:
            ignore_signals()

    def hold(self) -> None:
        """From now on only set the flag, as there is state to save; before, a signal ends the run at once."""
        self._held = True

    @contextmanager
    def recognised(self) -> Iterator[None]:
        """Re-raise any exception as Interrupted if a signal caused it.

        TensorFlow raises a RuntimeError instead if an operation fails just then because another rank has ended too.
        """
        try:
            yield
        except BaseException as error:
            if self.received and not self._held and not isinstance(error, Interrupted):
                raise Interrupted from error
            raise

    @property
    def requested(self) -> bool:
        """Whether a signal has come; checked between steps of training, evaluation and prediction."""
        return bool(self.received)

    @property
    def requeue(self) -> bool:
        """Whether Slurm's early signal (USR2) has come, after which a run always requeues itself."""
        return signal.SIGUSR2 in self.received

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and signal.SIGINT in self.received:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        first = not self.received  # Before anything else: another signal may interrupt this handler.
        again = number in self.received
        self.received.append(number)
        # Not print: the signal may have interrupted a print.
        then = _("saving after this step") if self._held else _("nothing to save yet")
        if not again:
            os.write(2, f"\n{self._words[number]}: {then}\n".encode())
        if first and not self._held:
            raise Interrupted
