"""`python -m truba_runner` called in this process: of one of its own most time goes to Python, Hydra and imports.

What it may alter is put back: environment, working directory, output, Hydra's state. A process of its own takes what
is about one: signals, a terminal, a closed pipe, the very start.
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
    """Exit status and output, as of a process with this environment; an exception that gets out of it is the test's."""
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
    """This process knows a folder's backends, as those do that find its sitecustomize.py on their PYTHONPATH."""
    with mock.patch.dict(backends.TRAITS), mock.patch.object(training, "__path__", [*training.__path__]):
        runpy.run_path(str(folder / "sitecustomize.py"))
        yield
