"""Call truba's main function in this process: a subprocess would spend most of its time on Python, Hydra and imports.

Environment, working directory, output and Hydra's state are restored. Tests of signals, a terminal, a closed pipe or
the start of the program need a real process.
"""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from subprocess import CompletedProcess
from unittest import mock

from hydra.core.global_hydra import GlobalHydra

from truba_runner import training
from truba_runner.cli.main import main
from truba_runner.config import backends


def truba(*arguments: str, cwd: Path, environment: Mapping[str, str]) -> CompletedProcess[str]:
    """Return exit status and output as of a process with this environment; an uncaught exception fails the test."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    here, hydra = Path.cwd(), GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    os.chdir(cwd)
    try:
        with (
            mock.patch.dict(os.environ, environment, clear=True),
            mock.patch.object(sys, "argv", ["truba"]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            status = main(arguments)
    except SystemExit as end:
        assert end.code is None or isinstance(end.code, int), "Python would print it"
        status = end.code or 0
    finally:
        os.chdir(here)
        GlobalHydra.instance().hydra = hydra
    told = [stream.buffer.getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]
    return CompletedProcess(["truba", *arguments], status, *told)


@contextlib.contextmanager
def knowing(folder: Path) -> Iterator[None]:
    """Make a folder's backends known to this process, as its sitecustomize.py does if it is on the PYTHONPATH."""
    with mock.patch.dict(backends.TRAITS), mock.patch.object(training, "__path__", [*training.__path__]):
        runpy.run_path(str(folder / "sitecustomize.py"))
        yield
