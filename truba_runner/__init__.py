"""Train networks on TRUBA: a Hydra config becomes a checked Slurm job."""

import os
import sys

__version__ = "0.1.0"

# The file that `truba bundle` makes, where that is what this is imported from; else empty.
ARCHIVE: str = getattr(getattr(__spec__, "loader", None), "archive", "")

if ARCHIVE:
    ARCHIVE = os.path.abspath(ARCHIVE)
    # Last on the path: packages that the Python in use may have itself, and then in a version that suits its others.
    if f"{ARCHIVE}/shared" not in sys.path:
        sys.path.append(f"{ARCHIVE}/shared")
