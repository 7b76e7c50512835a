"""How long from Slurm's signal until the run is back in the queue: python tests/benchmarks/signal_to_requeue.py

On the test cluster (as root), a run of small steps (80 ms) is signalled in mid-epoch, again and again. Told are the
seconds from `scancel --signal=USR2` to the record that it is about to requeue itself, when its state is on disk, and to
the moment that squeue shows the job as pending.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "slurm")]

from cluster import Cluster  # noqa: E402
from slow_run import Run  # noqa: E402
from truba import Truba, events  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="signals")
    rounds = parser.parse_args().rounds
    with Cluster() as cluster:
        run = Run(Truba(cluster, "signal-to-requeue"), "train.epochs=1000")
        found = [signalled(cluster, run, start) for start in range(1, rounds + 1)]
        cluster.run(["scancel", run.job_id])
    for name, seconds in zip(("saved", "pending"), zip(*found, strict=True), strict=True):
        middle = statistics.median(seconds)
        print(f"from the signal to {name}: {middle:.2f} s ({min(seconds):.2f}–{max(seconds):.2f}, {rounds} signals)")


def signalled(cluster: Cluster, run: Run, start: int) -> tuple[float, float]:
    run.wait_for_step(start)
    sent = time.time()
    cluster.run(["scancel", "--signal=USR2", run.job_id])
    cluster.wait_for_state(run.job_id, "PENDING")
    pending = time.time()
    record = [event for event in events(run.path) if event["event"] == "requeued"][start - 1]
    return record["time"] - sent, pending - sent


if __name__ == "__main__":
    main()
