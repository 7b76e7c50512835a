"""Search a user's `conf/` in the working directory before the package's own; only in this application."""

from __future__ import annotations

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class TrubaSearchPath(SearchPathPlugin):
    """Search path plugin; loaded by every Hydra application in the environment, from the package hydra_plugins."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Prepend `./conf` if it exists and the application's own configs are those of this package."""
        own = Path.cwd() / "conf"
        if own.is_dir() and _is_trubas(search_path):
            search_path.prepend(provider="truba_runner-user", path=f"file://{own}")


def _is_trubas(search_path: ConfigSearchPath) -> bool:
    from truba_runner.storage.package_files import shipped

    mains = [one.path.removeprefix("file://") for one in search_path.get_path() if one.provider == "main"]
    return [Path(main).resolve() for main in mains if "://" not in main] == [shipped("conf").resolve()]
