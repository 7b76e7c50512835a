"""A user's own `conf/`, in the working directory, before the one that the package ships."""

from __future__ import annotations

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class TrubaSearchPath(SearchPathPlugin):
    """Found by Hydra under the package name hydra_plugins."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Prepends `./conf` where it is there."""
        own = Path.cwd() / "conf"
        if own.is_dir():
            search_path.prepend(provider="truba_runner-user", path=f"file://{own}")
