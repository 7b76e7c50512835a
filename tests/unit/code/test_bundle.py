"""The program as one file: the same bytes each time, and at work in every Python that it is meant for."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from damaged_runs import make_run, make_search

from truba_runner.code import bundle
from truba_runner.errors import Failed
from truba_runner.runs.run_directory import RunDir

pytestmark = pytest.mark.programs

ROOT = Path(__file__).resolve().parents[3]
MINORS = (9, 10, 11, 12, 13)
# Runs commands in one process, as most of its time goes to reading the file: their statuses, and what they print.
WALK = """
import json, os, sys

# TRUBA's own module of Python 3.12 lacks it.
sys.modules["_ctypes"] = None
from truba_runner import worker
from truba_runner.__main__ import main
from truba_runner.code import provenance

print(provenance.versions(), worker.__file__)
for arguments in json.loads(sys.argv[1]):
    os.environ["TRUBA_LANG"] = arguments[0]
    print("--", flush=True)
    try:
        status = main(arguments[1:])
    except SystemExit as ended:
        status = ended.code
    print("status", status, flush=True)
"""
SEARCH = b"""\
name: search
job: {module: own}
data: {name: mnist}
cluster: {name: local}
environment: {name: inherit}
"""
# Commands, each with its language, its exit status and words of its output.
COMMANDS = [
    ("en status --runs runs", 0, "mnist-00000001"),
    ("tr status --runs runs nothing", 2, "nothing"),
    ("en status --runs runs mnist-00000001", 0, "mnist-00000001"),
    ("en why --runs runs mnist-00000001", 0, "mnist-00000001"),
    ("en logs --runs runs mnist-00000001", 0, "epoch 2/2"),
    ("en report --runs runs mnist-00000001 --out report.html", 0, "report.html"),
    ("en diff --runs runs mnist-00000001", 1, "submitted code"),
    ("en expiring", 0, ""),
    ("en clean --pulls 1", 0, ""),
    ("en best --runs runs search-00000001", None, "search-00000001"),
    ("en doctor cluster=local", None, "Python: {version}."),
    ("en where own cluster=truba", None, ""),
    ("en tensorboard --help", 0, "--idle-minutes"),
    ("en pull --help", 0, "--from"),
    ("en bundle --out copy.pyz", 0, "copy.pyz"),
    ("en --cfg job +experiment=own", 0, "batch_size"),
    ("en +experiment=own cluster=truba dry_run=true", 0, "#SBATCH --time"),
    ("tr +experiment=own cluster=truba resources.partition=akya", 2, "akya-cuda"),
]


def pythons() -> Iterator[tuple[str, str]]:
    """Versions and interpreters of this machine, wherever it keeps them."""
    homes = [Path(home) for home in (os.environ.get("PYENV_ROOT", ""), Path.home() / ".pyenv") if home]
    for minor in MINORS:
        found = [str(path) for home in homes for path in home.glob(f"versions/3.{minor}.*/bin/python3.{minor}")]
        on_path = shutil.which(f"python3.{minor}")
        own = [sys.executable] if sys.version_info[1] == minor else []
        yield f"3.{minor}", next(iter([*own, *found, *([on_path] if on_path else [])]), "")


@pytest.fixture(scope="module")
def pinned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that users get: newer versions of what it packs than the pinned ones need a newer Python."""
    file = tmp_path_factory.mktemp("pinned") / "truba.pyz"
    try:
        file.write_bytes(bundle.content(pinned=True))
    except Failed as failed:
        pytest.skip(str(failed))
    return file


@pytest.fixture(scope="module")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("bundle") / "truba.pyz"
    file.write_bytes(bundle.content(pinned=False))
    return file


def run(
    python: str, *arguments: str, cwd: Path, pythonpath: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TRUBA_SCRATCH") if name in os.environ}
    environment = {**kept, "XDG_STATE_HOME": str(cwd / "state"), "COLUMNS": "200", **variables}
    if pythonpath:
        environment["PYTHONPATH"] = pythonpath
    # No site: neither this project nor what it depends on is installed there.
    argv = [python, "-S", *arguments]
    return subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(("version", "python"), list(pythons()), ids=[f"3.{minor}" for minor in MINORS])
def test_it_works_in_every_python(version: str, python: str, pinned: Path, tmp_path: Path) -> None:
    if not python or run(python, "-c", "", cwd=tmp_path).returncode:
        pytest.skip(f"there is no Python {version} here")
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "own.yaml").write_text(
        "# @package _global_\ndefaults: [mnist]\nname: own\njob: {module: own}\n"
    )
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "own.py").write_text("")
    # A sweep, since it takes all of Hydra: the plug-ins, the configs of the file and the user's own.
    swept = run(
        python, str(pinned), "-m", "+experiment=own", "train.seed=1,2", "cluster=truba", "dry_run=true", cwd=tmp_path
    )
    assert swept.returncode == 0, swept.stderr
    assert "#SBATCH --array=0-1" in swept.stdout and "module load apps/truba-ai/gpu-2024.0" in swept.stdout
    make_run(RunDir(tmp_path / "runs" / "mnist-00000001"), "7", b"name: mnist\n")
    make_search(
        tmp_path / "runs" / "search-00000001",
        SEARCH,
    )
    walked = run(python, "-c", WALK, json.dumps([line.split() for line, *_ in COMMANDS]), cwd=tmp_path,
                 pythonpath=str(pinned), TRUBA_CLUSTER="local")  # fmt: skip
    about, *outputs = walked.stdout.split("--\n")
    assert bundle.PINNED["hydra-core"] in about and str(pinned) in about, walked.stderr
    assert len(outputs) == len(COMMANDS) and "Traceback" not in walked.stdout + walked.stderr, walked.stderr
    for (line, status, words), output in zip(COMMANDS, outputs):
        assert words.format(version=version) in output or words in walked.stderr, (line, output, walked.stderr)
        assert f"status {status}" in output or status is None, (line, output, walked.stderr)
    # Unpacked is what Hydra and a job want as files, once.
    assert len(list((tmp_path / "state" / "truba_runner" / "shipped").iterdir())) == 1
    assert sum(path.is_file() for path in (tmp_path / "state").rglob("*")) < 100


def test_the_same_files_make_the_same_bytes(pyz: Path) -> None:
    # A different hash seed, locale and time zone in another process; and nothing compiled.
    program = "import hashlib; from truba_runner.code import bundle; "
    program += "print(hashlib.sha256(bundle.content(pinned=False)).hexdigest())"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    argv = [sys.executable, "-c", program]
    other = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    assert other == hashlib.sha256(pyz.read_bytes()).hexdigest()
    with zipfile.ZipFile(pyz) as opened:
        names = opened.namelist()
        assert {entry.date_time for entry in opened.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert not [name for name in names if name.endswith((".pyc", ".so", ".pyd"))]
    assert "truba_runner/conf/config.yaml" in names and "truba_runner/container/apptainer" in names
    assert not [name for name in names if "testcluster/" in name or name.startswith("tests/")]


def test_an_older_python_is_told_so(pyz: Path, tmp_path: Path) -> None:
    older = [
        *Path.home().glob(".pyenv/versions/3.[6-8].*/bin/python3"),
        *Path.home().glob(".pyenv/versions/2*/bin/python"),
    ]
    main = zipfile.ZipFile(pyz).read("__main__.py").decode()
    # No newer Python on the PATH, and the modules of a site.
    bin = tmp_path / "bin"
    bin.mkdir()
    for name in ("bash", "timeout"):
        (bin / name).symlink_to(str(shutil.which(name)))
    # Lmod's own BASH_ENV would define `module` after the profile.
    (tmp_path / ".bash_profile").write_text("echo welcome\nexport BASH_ENV=~/module.sh; . ~/module.sh\n")
    (tmp_path / "module.sh").write_text(
        "module() { printf '%s\\n' /sw/modules: comp/ comp/python/3.12.0 comp/python/3.8.1 >&2; }\n"
    )
    site = {"PATH": str(bin), "HOME": str(tmp_path)}
    told = [run(sys.executable, "-c", main.replace("sys.version_info", "(3, 8)"), cwd=tmp_path, **site)]
    told += [run(str(python), str(pyz), "status", cwd=tmp_path, **site) for python in older]
    # A checkout too; -B, since Python 2 compiles beside the sources.
    told += [run(str(python), "-B", "-m", "truba_runner", "status", cwd=ROOT, **site) for python in older]
    for one in told:
        assert one.returncode == 2 and "needs Python 3.9 or newer" in one.stderr, one.stderr
        assert "module load comp/python/3.12.0\n" in one.stderr
    turkish = run(
        sys.executable, "-c", main.replace("sys.version_info", "(3, 8)"), cwd=tmp_path, TRUBA_LANG="tr", **site
    )
    assert "Önce birini yükleyin: module load comp/python/3.12.0" in turkish.stderr
    here = run(sys.executable, "-c", main.replace("sys.version_info", "(3, 8)"), cwd=tmp_path)
    assert "Use python3." in here.stderr or shutil.which("python3.11") is None


def test_the_environments_own_packages_come_before_what_is_shared_and_after_what_is_not(
    pyz: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    for name in ("yaml", "omegaconf"):
        (site / f"{name}.py").write_text(f"raise RuntimeError('{name} of the environment')")
    ask = f"import sys; sys.path.append({str(site)!r}); import truba_runner; "
    assert (
        "yaml of the environment"
        in run(sys.executable, "-c", f"{ask}import yaml", cwd=tmp_path, pythonpath=str(pyz)).stderr
    )
    (site / "yaml.py").unlink()
    done = run(
        sys.executable, "-c", f"{ask}import omegaconf; print(omegaconf.__file__)", cwd=tmp_path, pythonpath=str(pyz)
    )
    assert done.stdout.startswith(str(pyz)), done.stderr


def test_the_command_writes_it_and_a_bundle_hands_on_itself(pyz: Path, tmp_path: Path) -> None:
    again = run(sys.executable, str(pyz), "bundle", "--out", "copy.pyz", cwd=tmp_path)
    assert again.returncode == 0 and hashlib.sha256(pyz.read_bytes()).hexdigest() in again.stdout
    assert (tmp_path / "copy.pyz").read_bytes() == pyz.read_bytes()
    assert os.access(tmp_path / "copy.pyz", os.X_OK)


def test_a_message_names_its_command_as_the_file_was_started(pyz: Path, tmp_path: Path) -> None:
    python = Path(sys.executable).name
    assert f"; {python} {pyz} +experiment=mnist" in run(sys.executable, str(pyz), "status", cwd=tmp_path).stdout
    assert f"  {python} {pyz} -m +experiment=mnist" in run(sys.executable, str(pyz), "--help", cwd=tmp_path).stdout
    # As README.md has it be called `truba`.
    named = tmp_path / "bin" / "truba"
    named.parent.mkdir()
    named.write_bytes(pyz.read_bytes())
    named.chmod(0o755)
    done = run(sys.executable, str(named), "status", cwd=tmp_path, PATH=str(named.parent))
    assert "; truba +experiment=mnist" in done.stdout


def test_other_versions_than_the_pinned_are_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fetched: list[list[str]] = []
    monkeypatch.setattr(bundle, "_fetch", lambda requirements, folder: fetched.append(requirements))
    installed = bundle.importlib.metadata.version("omegaconf")
    found = bundle._distributions({"omegaconf": installed, "submitit": "0.0.1"}, tmp_path)
    assert [one.name for one in found] == ["omegaconf"] and fetched == [["submitit==0.0.1"]]
    assert {one.name for one in bundle._distributions({"omegaconf": "0", "submitit": "0.0.1"}, None)} == {
        "omegaconf",
        "submitit",
    }
