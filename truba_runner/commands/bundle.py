"""`truba bundle`: write this program as one file, for clusters where nothing can be installed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from truba_runner.commands import parser
from truba_runner.language import _
from truba_runner.status.printing import print_json
from truba_runner.storage.files import write_atomically


def main(arguments: Sequence[str]) -> int:
    """Write the file, and print how to use it."""
    options = parser(
        "bundle", _("Packs the program and its dependencies into one file, to be copied to a cluster and run there.")
    )
    options.add_argument("--out", type=Path, default=Path("truba.pyz"), metavar=_("FILE"), help=_("default: truba.pyz"))
    given = options.parse_args(arguments)

    from truba_runner.code import bundle

    made = bundle.content(pinned=True)
    write_atomically(given.out, made)
    given.out.chmod(0o755)
    about = {"file": str(given.out.absolute()), "bytes": len(made), "sha256": hashlib.sha256(made).hexdigest()}
    if given.json:
        print_json(about)
    else:
        print(f"{about['file']}: {len(made) / 1e6:.1f} MB, sha256 {about['sha256']}")
        command = f"python3 {given.out.name} +experiment=mnist"
        print("  " + _("copy it to the cluster and run there: {command}", command=command))
    return 0
