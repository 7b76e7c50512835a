"""Train neural networks on TRUBA: turn a Hydra config into a checked Slurm job."""

import os
import sys

__version__ = "0.1.0"

# Path of the file made by `truba bundle` if this package is imported from it; else empty.
# Python 2 reads this file too, and is then refused by python_check.py: no annotations, no f-strings.
ARCHIVE = getattr(globals().get("__loader__"), "archive", "")  # type: str

if ARCHIVE:
    ARCHIVE = os.path.abspath(ARCHIVE)
    # Last on the path: the Python in use may have these packages itself, in versions that suit its other packages.
    if ARCHIVE + "/shared" not in sys.path:
        sys.path.append(ARCHIVE + "/shared")
