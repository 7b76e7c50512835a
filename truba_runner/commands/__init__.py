"""Management commands, one file each with `main(arguments) -> exit status`; they must start quickly."""

from __future__ import annotations

import argparse
from pathlib import Path

from truba_runner.language import _, as_started


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the options common to all commands."""
    made = argparse.ArgumentParser(prog=as_started(f"truba {name}"), description=description, allow_abbrev=False)
    made.add_argument("--json", action="store_true", help=_("print JSON for programs"))
    made.add_argument(
        "--runs", type=Path, metavar=_("FOLDER"), help=_("look in this runs folder (default: all that were ever used)")
    )
    return made
