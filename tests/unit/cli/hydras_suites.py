"""Hydra's own suites for launchers beside this package's plugins; `test_hydras_suites.py` runs them apart."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.plugins import Plugins
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, IntegrationTestSuite, LauncherTestSuite

ROOT = Path(__file__).resolve().parents[3]

# The suites ask for no version_base, and are told what that will change.
pytestmark = pytest.mark.filterwarnings("ignore:Future Hydra versions:UserWarning")


@pytest.fixture(autouse=True)
def beside_another_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with a `conf/` that would change all that they compose, were it looked at."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    for name in ("compose", "group1/file1", "optimizer/nesterov", "db/mysql", "hydra/launcher/basic"):
        file = tmp_path / "conf" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("read: by mistake\n")
    assert "TrubaSearchPath" in {plugin.__name__ for plugin in Plugins.instance().discover()}


@pytest.mark.parametrize(("launcher_name", "overrides"), [("basic", [])])
class TestLaunchers(LauncherTestSuite):
    pass


@pytest.mark.parametrize(("launcher_name", "overrides"), [("basic", ["hydra.sweeper.max_batch_size=2"])])
class TestBatches(BatchedSweeperTestSuite):
    pass


@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"), [({}, ["-m", "hydra/launcher=basic", "hydra/hydra_logging=disabled"])]
)
class TestApplications(IntegrationTestSuite):
    pass


@pytest.mark.parametrize(("launcher_name", "overrides"), [("basic", ["hydra/sweeper=truba"])])
class TestOurSweeper(LauncherTestSuite):
    @pytest.mark.skip(reason="it looks for multirun.yaml, and this sweeper writes no file")
    def test_sweep_2_jobs(self, launcher_name: str, overrides: list[str]) -> None:  # type: ignore[override]
        pass
