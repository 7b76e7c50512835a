"""Entry point of a search's worker: `python -m truba_runner.search.worker WORKER_DIR`."""

import sys

from truba_runner.search.worker.loop import main
from truba_runner.training.interrupt import leave

if __name__ == "__main__":
    leave(main(sys.argv[1:]))
