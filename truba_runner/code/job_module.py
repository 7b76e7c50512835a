"""Find the training code of an experiment at submission, and import it in the job."""

from __future__ import annotations

import ast
import importlib.util
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from truba_runner.errors import Failed, Problem, Refused, nearest
from truba_runner.language import _
from truba_runner.storage.package_files import shipped

# Prefix of a job module's name in sys.modules.
PREFIX = "truba_job_"


def find(name: str, project: Path) -> Path:
    """Return the file `jobs/NAME.py`: the user's own in `project`, else the package's.

    `name` may also be the path of a Python file.

    Raises:
        Refused: no such file exists, or it is not valid Python.
    """
    folders = [project / "jobs", shipped("jobs")]
    candidates = [project / name] if name.endswith(".py") else [folder / f"{name}.py" for folder in folders]
    for file in candidates:
        if file.is_file():
            _refuse_syntax_error(file)
            return file.resolve()
    known = {file.stem for folder in folders if folder.is_dir() for file in folder.glob("[!_]*.py")}
    raise Refused(
        Problem(
            f"job.module={name}",
            _("there is no {files}.", files=_(" nor ").join(str(file) for file in dict.fromkeys(candidates))),
            nearest(name, known),
        )
    )


def takes_hp(file: Path) -> bool:
    """Whether the job's `build_model` takes Keras Tuner's `hp`; also true if only importing it could show."""
    text = file.read_bytes()
    nodes = list(ast.walk(ast.parse(text)))
    defined = [node.args for node in nodes if isinstance(node, ast.FunctionDef) and node.name == "build_model"]
    if defined:
        return any(one.arg == "hp" for given in defined for one in (*given.posonlyargs, *given.args, *given.kwonlyargs))
    stars = any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in nodes)
    return stars or b"build_model" in text


def _refuse_syntax_error(file: Path) -> None:
    try:
        _parse(file.read_bytes(), str(file))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise Refused(
            Problem(f"{file}:{line}" if line else str(file), _("it is not valid Python:"), f"{error}.")
        ) from error


# All runs of a sweep have the same file.
@lru_cache(maxsize=8)
def _parse(text: bytes, name: str) -> None:
    ast.parse(text, filename=name)


def load(file: Path) -> ModuleType:
    """Import a job module, with its own folder and the one above on sys.path.

    Raises:
        Failed: the file no longer exists.
        Exception: any exception that the module raises on import.
    """
    if not file.is_file():
        raise Failed("the job module {file} no longer exists; put it back and submit again", file=file)
    for folder in (str(file.parent.parent), str(file.parent)):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(f"{PREFIX}{file.stem}", file)
    if spec is None or spec.loader is None:
        raise Failed("{file} cannot be imported: it is not a Python file", file=file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
