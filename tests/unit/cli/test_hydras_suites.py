"""Hydra's own suites for launchers, in an environment that has this package: other applications are as they were."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.programs

ROOT = Path(__file__).resolve().parents[3]


def test_hydras_own_suites_pass_beside_our_plugins(tmp_path: Path) -> None:
    # In a process of their own: this one may have composed experiments, which sets Hydra's logging up.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'suites'}"]
    done = subprocess.run([*command, Path(__file__).with_name("hydras_suites.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


# With hydra/launcher=truba no test of LauncherTestSuite can apply: each launches a function and a config of its own,
# and this launcher launches experiments of truba_runner. What others are told who choose it:
@pytest.mark.parametrize(
    "arguments", [["-m", "hydra/launcher=truba", "hydra/sweeper=truba"], ["-m", "hydra/launcher=truba"]]
)
def test_another_application_that_chooses_our_launcher_is_told_in_words(tmp_path: Path, arguments: list[str]) -> None:
    done = _another_application(tmp_path, *arguments, installed=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "hydra/launcher=truba: this launcher is only for truba_runner's own experiments" in done.stderr


APPLICATION = """
import os, sys
from pathlib import Path
if not os.environ["INSTALLED"]:
    sys.path[:] = [one for one in sys.path if not (Path(one) / "hydra_plugins" / "truba_runner").is_dir()]
import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

CONFIGS = os.environ["CONFIGS"] or None

@hydra.main(version_base="1.3", config_path=CONFIGS, config_name=CONFIGS and "config")
def main(config):
    print(OmegaConf.to_yaml(config))
    print([(one.provider, one.path) for one in HydraConfig.get().runtime.config_sources])

main()
"""


@pytest.mark.parametrize(
    ("configs", "arguments"),
    [
        ("configs", []),
        ("conf", ["-m", "db=mysql,sqlite", "hydra/launcher=basic", "hydra/hydra_logging=disabled"]),
        ("../other", ["--cfg", "job"]),
        ("", ["+is=mysql of its own"]),
    ],
    ids=["single", "sweep", "shown", "no configs"],
)
def test_another_application_reads_what_it_reads_without_this_package(
    tmp_path: Path, configs: str, arguments: list[str]
) -> None:
    told = [
        _another_application(tmp_path, *arguments, installed=installed, configs=configs) for installed in (True, False)
    ]
    assert told[0].returncode == 0, told[0].stderr
    assert "mysql of its own" in told[0].stdout and "by mistake" not in told[0].stdout
    assert (told[0].stdout, told[0].stderr) == (told[1].stdout, told[1].stderr)


def _another_application(
    folder: Path, *arguments: str, installed: bool, configs: str = "configs"
) -> subprocess.CompletedProcess[str]:
    (folder / "application").mkdir(exist_ok=True)
    (folder / "application" / "main.py").write_text(APPLICATION)
    own, beside = folder / "application" / configs, folder / "conf"
    for file, content in {
        own / "config.yaml": "defaults: [db: mysql]",
        own / "db" / "mysql.yaml": "is: mysql of its own",
        own / "db" / "sqlite.yaml": "is: x",
        # In the working directory, as this package's users have them.
        beside / "config.yaml": "defaults: [db: mysql]",
        beside / "db" / "mysql.yaml": "is: by mistake",
    }.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    variables = {"CONFIGS": configs, "INSTALLED": "yes" if installed else "", "HYDRA_FULL_ERROR": ""}
    return subprocess.run(
        [sys.executable, "application/main.py", *arguments],
        cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
