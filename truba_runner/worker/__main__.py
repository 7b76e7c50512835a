"""Entry point of a Slurm job: `python -m truba_runner.worker RUN_DIR`."""

import sys

from truba_runner.training.interrupt import leave
from truba_runner.worker.run import main

if __name__ == "__main__":
    leave(main(sys.argv[1:]))
