"""The packages stand on floors: imports lead down, and the command line stays light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import truba_runner
from truba_runner import python_check

PACKAGE = Path(truba_runner.__file__).parent
# Each imports what stands before it, and nothing that stands after it. The root's own modules are below all.
FLOORS = (
    "storage config data slurm rules runs code environment training nodes verify worker submission search launch "
    "sweeps status keeping why doctor report tensorboard commands cli"
).split()
MOST_MODULES, MOST_LINES = 12, 350
HEAVY = {"tensorflow", "keras", "torch", "fastai", "sklearn", "numpy", "tensorboard"}
MANAGEMENT = {"hydra", "omegaconf", "submitit", "keras_tuner"}
FRAMEWORKS = ("training/keras", "training/fastai", "training/walk", "training/summaries", "data/image_pack.py")


def imports_of(file: Path, everywhere: bool) -> set[str]:
    """Packages, and modules by full name, that a file imports; `everywhere`: in functions too."""
    tree = ast.parse(file.read_text())
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found | {name.split(".")[0] for name in found}


def python_files(folder: str = "") -> list[Path]:
    return sorted((PACKAGE / folder).rglob("*.py"))


def name_of(file: Path) -> str:
    """A module's full name."""
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def arrows() -> Mapping[str, frozenset[str]]:
    """Which module imports which others of the package, anywhere in its text."""
    names = {name_of(file): file for file in python_files()}
    return {name: frozenset(imports_of(file, everywhere=True) & set(names) - {name}) for name, file in names.items()}


def true_arrows() -> Iterator[tuple[str, str]]:
    """The same, without the packages that a module's full name goes through."""
    for name, others in arrows().items():
        for other in others:
            if not any(deeper.startswith(f"{other}.") for deeper in others):
                yield name, other


def floor_of(module: str) -> int:
    """The number of a module's floor: -1 for the root's own."""
    room = module.split(".")[1:2]
    return FLOORS.index(room[0]) if room and (PACKAGE / room[0]).is_dir() else -1


def test_every_package_has_its_floor() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == set(FLOORS)


def test_no_import_leads_up() -> None:
    entry = "truba_runner.__main__"  # It stands above all.
    found = [f"{one} -> {other}" for one, other in true_arrows() if floor_of(other) > floor_of(one) and one != entry]
    assert not found


def test_no_modules_import_each_other() -> None:
    assert not circle({name: {other for one, other in true_arrows() if one == name} for name in arrows()})


def test_no_packages_import_each_other() -> None:
    inside: dict[str, set[str]] = {}
    for one, other in true_arrows():
        first, second = package_of(one), package_of(other)
        if first != second and "truba_runner" not in {first, second}:
            inside.setdefault(first, set()).add(second)
    assert not circle(inside)


def package_of(module: str) -> str:
    """The package that a module lies in; of a package itself that one."""
    return module if (PACKAGE.parent / module.replace(".", "/")).is_dir() else module.rpartition(".")[0]


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """The names along a circle of imports; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_file_and_no_package_is_too_large() -> None:
    long = [str(file) for file in python_files() if len(file.read_text().splitlines()) > MOST_LINES]
    full = [
        str(folder)
        for folder in {file.parent for file in python_files()}
        if folder.name != "commands" and len([*folder.glob("[a-z]*.py")]) > MOST_MODULES
    ]
    assert not long + full


@pytest.mark.parametrize("file", python_files("training"), ids=str)
def test_a_training_knows_neither_hydra_nor_submitit(file: Path) -> None:
    assert not imports_of(file, everywhere=True) & {"hydra", "submitit"}


@pytest.mark.parametrize(
    "file", [*python_files("rules"), PACKAGE / "slurm/request.py", PACKAGE / "config/durations.py"], ids=str
)
def test_the_rules_touch_no_process_no_disk_and_no_network(file: Path) -> None:
    impure = {"subprocess", "socket", "urllib.request", "shutil", "pathlib.Path", "time", "truba_runner.slurm.client"}
    assert not imports_of(file, everywhere=True) & impure


def is_of_a_framework(file: Path) -> bool:
    return file.relative_to(PACKAGE).as_posix().startswith(FRAMEWORKS)


@pytest.mark.parametrize("file", [file for file in python_files() if "training" not in file.parts], ids=str)
def test_the_command_line_imports_no_framework(file: Path) -> None:
    # What serves TensorBoard is there to import that, and no framework along with it.
    own = {"tensorboard"} if "tensorboard" in file.parts else HEAVY if is_of_a_framework(file) else set()
    assert not imports_of(file, everywhere=True) & (HEAVY - own)


@pytest.mark.parametrize("file", [*python_files("training"), *python_files("tensorboard")], ids=str)
def test_frameworks_are_imported_inside_functions(file: Path) -> None:
    assert not imports_of(file, everywhere=False) & HEAVY


def test_slurms_commands_run_in_one_place() -> None:
    commands = {"sbatch", "squeue", "sacct", "scontrol", "scancel", "sinfo", "sacctmgr"}
    for file in python_files():
        if file.parent.name == "slurm":
            continue
        strings = {
            node.value.split()[0]
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.List) and node.elts and isinstance(node.elts[0], ast.Constant)
            for node in node.elts[:1]
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value
        }
        assert not strings & commands, file


def test_the_worker_never_imports_the_command_line() -> None:
    modules = {
        "truba_runner.cli.app",
        "truba_runner.launch.run",
        "truba_runner.submission.submission",
        "hydra",
        "submitit",
    }
    assert not imported_by("truba_runner.worker.run") & modules


def test_a_search_workers_own_process_stays_light() -> None:
    # Its trials and the oracle's steps have processes of their own.
    assert not imported_by("truba_runner.search.worker.loop") & {*HEAVY, "keras_tuner", "hydra", "submitit"}


@pytest.mark.parametrize(
    "command", ["status", "logs", "cancel", "stage", "best", "bundle", "tensorboard", "pull", "why", "diff", "nodes"]
)
def test_management_commands_start_without_hydra(command: str) -> None:
    assert not imported_by(f"truba_runner.commands.{command}") & (MANAGEMENT | HEAVY)


def imported_by(module: str) -> set[str]:
    """What is in sys.modules of a fresh Python after one import."""
    program = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_map_names_every_package() -> None:
    table = (PACKAGE.parent / "CONTRIBUTING.md").read_text().split("## How to add")[0]
    assert not [name for name in FLOORS if f"`{name}/`" not in table]


# -- Python 3.9, which login nodes have ------------------------------------------------------------------------

ROOT = PACKAGE.parent
# Whose annotations OmegaConf evaluates.
EVALUATED = {"schema.py", "site.py", "sweep.py"}
# Names that 3.9's modules lack.
NEWER = {
    "typing": {"TypeAlias", "TypeGuard", "ParamSpec", "Concatenate", "Self", "Never", "assert_never", "LiteralString",
               "Required", "NotRequired", "TypeVarTuple", "Unpack", "override", "is_typeddict"},
    "itertools": {"pairwise", "batched"},
    "contextlib": {"aclosing", "chdir"},
    "datetime": {"UTC"},
    "enum": {"StrEnum"},
    "types": {"UnionType", "NoneType", "EllipsisType"},
    "builtins": {"anext", "aiter", "ExceptionGroup", "BaseExceptionGroup"},
    "importlib.metadata": {"packages_distributions"},
    "tomllib": set(),
}  # fmt: skip
# Attributes and keywords of the same kind.
NEWER_ATTRIBUTES = {"hardlink_to", "bit_count", "orig_argv", "stdlib_module_names", "is_junction", "add_note"}
NEWER_KEYWORDS = {
    "zip": {"strict"},
    "dataclass": {"slots", "kw_only"},
    "field": {"kw_only"},
    "entry_points": {"group"},
    "TemporaryDirectory": {"ignore_cleanup_errors", "delete"},
    "rmtree": {"onexc", "dir_fd"},
    "realpath": {"strict"},
    "glob": {"root_dir", "case_sensitive"},
    "exists": {"follow_symlinks"},
}
# Functions that take an exception alone only since 3.10, and how many arguments they had to have.
OF_AN_EXCEPTION = {"format_exception": 3, "print_exception": 3, "format_exception_only": 2}
BUILTIN_TYPES = {"int", "str", "float", "bool", "bytes", "list", "dict", "tuple", "set", "type", "object"}


def newer_than_39(text: str, evaluated: bool) -> Iterator[str]:
    """What a source file has that Python 3.9 lacks. `evaluated`: its annotations are evaluated too."""
    try:
        tree = ast.parse(text, feature_version=(3, 9))
    except SyntaxError as error:
        yield f"{error.lineno}: {error.msg}"
        return
    annotations = [getattr(node, name, None) for node in ast.walk(tree) for name in ("annotation", "returns")]
    unseen = {id(part) for one in annotations if one is not None for part in ast.walk(one)}
    if evaluated or "from __future__ import annotations" not in text:
        unseen = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) and id(node) not in unseen:
            if is_type(node.left) or is_type(node.right):
                yield f"{node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.ImportFrom):
            taken = {alias.name for alias in node.names} & NEWER.get(node.module or "", set())
            if taken or node.module == "tomllib":
                yield f"{node.lineno}: {node.module} {taken}"
        elif isinstance(node, ast.Attribute):
            own = NEWER.get(node.value.id, set()) if isinstance(node.value, ast.Name) else set()
            if node.attr in NEWER_ATTRIBUTES | own:
                yield f"{node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func).rpartition(".")[2]
            if len(node.args) + len(node.keywords) < OF_AN_EXCEPTION.get(called, 0):
                yield f"{node.lineno}: {ast.unparse(node)}"
            if taken := {one.arg for one in node.keywords} & NEWER_KEYWORDS.get(called, set()):
                yield f"{node.lineno}: {called} {taken}"


def is_type(node: ast.expr) -> bool:
    """Whether a name is one of a class, as they are written: flags (re.DOTALL, os.O_RDONLY) are in capitals."""
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    none = isinstance(node, ast.Constant) and node.value is None
    return (
        none or name in BUILTIN_TYPES or isinstance(node, ast.Subscript) or (name[:1].isupper() and not name.isupper())
    )


def test_every_file_is_for_python_39_too() -> None:
    files = [*python_files(), *(ROOT / "hydra_plugins").rglob("*.py"), *(ROOT / "jobs").glob("*.py")]
    found = [f"{file}:{line}" for file in files for line in newer_than_39(file.read_text(), file.name in EVALUATED)]
    assert not found


def test_what_is_newer_than_python_39_is_seen() -> None:
    future = "from __future__ import annotations\n"
    for text in (
        "match x:\n    case 1: pass", "zip(a, b, strict=True)", "isinstance(x, int | str)", "Stage = Find | Fit",
        "Shape = tuple[int | None, ...]", "from itertools import pairwise", "a: int = field(kw_only=True)",
        "@dataclass(frozen=True, slots=True)\nclass A: ...", "from typing import TypeAlias", "path.hardlink_to(other)",
        "traceback.format_exception(error)", "tempfile.TemporaryDirectory(ignore_cleanup_errors=True)",
    ):  # fmt: skip
        assert [*newer_than_39(future + text, evaluated=False)], text
    held = "def f(a: int | None) -> str | None: return re.DOTALL | re.VERBOSE"
    assert not [*newer_than_39(future + held, evaluated=False)] and [*newer_than_39(held, evaluated=False)]
    assert [*newer_than_39(future + "@dataclass\nclass A:\n    a: int | None = None", evaluated=True)]


def test_one_range_of_python_versions_is_named_everywhere() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    minors = re.findall(r"Programming Language :: Python :: 3\.(\d+)", project)
    least, most = int(minors[0]), int(minors[-1])
    assert [int(minor) for minor in minors] == [*range(least, most + 1)]
    assert f'requires-python = ">=3.{least},<3.{most + 1}"' in project and python_check.LEAST == (3, least)
    assert f'target-version = "py3{least}"' in project
    for page in ("README", "docs/environments"):
        assert f"3.{least} to 3.{most}" in (ROOT / f"{page}.md").read_text()
        assert f"3.{least}–3.{most}" in (ROOT / f"{page}.tr.md").read_text()
