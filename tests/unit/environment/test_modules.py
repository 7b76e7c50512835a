"""Messages name the modules that the machine has, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

import truba_runner
from truba_runner import python_check
from truba_runner.config.schema import Environment
from truba_runner.environment import modules, probe
from truba_runner.errors import Refused
from truba_runner.slurm import states

# As Lmod and as Environment Modules print them.
LMOD = "/sw:\napps/\napps/truba-ai/\napps/truba-ai/cpu-2024.0\napps/truba-ai/gpu-2024.0\ncomp/python/3.12.0\n"
ENVIRONMENT_MODULES = (
    "/arf/sw/modulefiles:\ncomp/python/3.12.0(default)\ncomp/python/3.8.1\nintelpython3\nminiconda3 <L>\nNo modules!\n"
)
NAMES = ["apps/truba-ai/cpu-2024.0", "apps/truba-ai/gpu-2024.0", "comp/python/3.12.0"]


def test_a_listing_has_its_modules_without_folders_and_marks() -> None:
    assert python_check.names_in(LMOD) == NAMES
    found = python_check.names_in(ENVIRONMENT_MODULES)
    assert found == ["comp/python/3.12.0", "comp/python/3.8.1", "intelpython3", "miniconda3"]


def test_a_python_that_is_new_enough_is_known_by_its_name() -> None:
    names = [
        "Python/3.11.3-GCC",
        "comp/python/3.12.0",
        "python3.9",
        "comp/python/3.8.1",
        "ipython/8.1",
        "python/2.7",
    ]
    assert python_check.pythons_among(names) == ["comp/python/3.12.0", "Python/3.11.3-GCC", "python3.9"]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose `module` comes from the user's profile; the file counts the questions."""
    listing, asked = tmp_path / "listing", tmp_path / "asked"
    listing.write_text(LMOD)
    asked.write_text("")
    # Lmod's own BASH_ENV would define `module` after the profile.
    (tmp_path / ".bash_profile").write_text("echo Welcome\nexport BASH_ENV=~/module.sh; . ~/module.sh\n")
    (tmp_path / "module.sh").write_text(f"module() {{ echo $* >> {asked}; cat {listing} >&2; }}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    return asked


def test_the_modules_are_asked_for_once_a_day_and_machine(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert modules.available() == NAMES and modules.available() == NAMES
    assert site.read_text() == "-t avail\n"
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    assert modules.available() == NAMES and site.read_text() == "-t avail\n" * 2


def test_nothing_names_trubas_module_that_is_only_in_its_documentation() -> None:
    root = Path(truba_runner.__file__).parents[1]
    files = [*root.glob("*.md"), *(root / "docs").glob("*.md"), *(root / "conf").rglob("*.yaml")]
    files += [file for kind in ("*.py", "*.po") for file in (root / "truba_runner").rglob(kind)]
    assert len(files) > 100
    assert not [file for file in files if "comp/python/3.12.2" in file.read_text()]


def test_a_missing_module_is_told_with_the_nearest(site: Path) -> None:
    chosen = Environment("e", kind="module", modules=["comp/python/3.12.2", "apps/truba-ai"])
    with pytest.raises(Refused, match=r"it failed\. Did you mean comp/python/3\.12\.0\?"):
        probe._read(chosen, "it failed", states.NOT_LOADED)


def test_without_modules_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "available_modules", lambda: None)
    assert modules.available() is None and modules.remedy(["a/1"]) == "module avail lists the available modules."
    assert modules.like("torch") == "module avail lists the available modules."
