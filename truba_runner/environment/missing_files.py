"""Check that the image, virtual environment or conda environment of a job is there, by looking at its files."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from truba_runner.config.schema import Environment
from truba_runner.errors import Problem, Refused
from truba_runner.language import _


def refuse(chosen: Environment) -> None:
    """Refuse an environment whose image or folder does not exist.

    Raises:
        truba_runner.errors.Refused: it is missing, cannot be read, or is not an environment.
    """
    if chosen.kind == "conda":
        _refuse_conda(chosen)
    if chosen.kind == "apptainer" and (why := _unreadable(chosen.image)):
        images = [name for name in _images_in(Path(chosen.image).parent) if name != chosen.image]
        remedy = _("There are: {names}.", names=", ".join(images)) if images else _("Look for it with ls -l.")
        raise Refused(Problem(f"environment.image={chosen.image}", why, remedy))
    python = Path(chosen.venv) / "bin" / "python"
    if chosen.kind == "venv" and not chosen.python and not os.access(python, os.X_OK):
        rule = _(
            "there is no {python}, so this is not a virtual environment, or its Python has been removed.", python=python
        )
        remedy = _("Give the folder that python -m venv created.")
        raise Refused(Problem(f"environment.venv={chosen.venv}", rule, remedy))


def _refuse_conda(chosen: Environment) -> None:
    if not chosen.conda.startswith("/") or (Path(chosen.conda) / "conda-meta").is_dir():
        return
    known = conda_environments()
    rule = _("there is no folder conda-meta in it, so this is not a conda environment, or it has been removed.")
    remedy = _("There are: {names}.", names=", ".join(known)) if known else _("conda env list lists your environments.")
    raise Refused(Problem(f"environment.conda={chosen.conda}", rule, remedy))


def conda_environments() -> list[str]:
    """Return the paths of the user's conda environments, which conda records in a file in the home."""
    with suppress(OSError, RuntimeError):
        lines = (Path.home() / ".conda" / "environments.txt").read_text(errors="replace").splitlines()
        return [line for line in dict.fromkeys(lines) if line.startswith("/") and Path(line).is_dir()]
    return []


def _unreadable(path: str) -> str:
    """Return why a file cannot be read; empty if it can."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return _("there is no such file.")
    except OSError as error:
        return _("it cannot be accessed: {why}.", why=error.strerror)
    return "" if os.access(path, os.R_OK) else _("you have no permission to read it.")


def _images_in(folder: Path) -> list[str]:
    with suppress(OSError):
        return sorted(str(file) for file in folder.glob("*.sif"))[:12]
    return []
