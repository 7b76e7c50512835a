"""Which partition a job goes to, as a loaded cluster's own scheduler has it."""

from __future__ import annotations

import json
from typing import Any

from truba import FAILING_JOB, Truba, events, run_dirs


def offers(truba: Truba, *overrides: str) -> dict[tuple[str, str], dict[str, Any]]:
    asked = truba("where", "mnist", "data.name=digits", *overrides, "--json")
    assert asked.returncode == 0, asked.stderr
    return {(offer["partition"], offer["constraint"]): offer for offer in json.loads(asked.stdout)}


def test_auto_goes_where_the_job_starts_soonest(truba: Truba) -> None:
    truba.write("jobs/failing.py", FAILING_JOB)
    free = offers(truba)
    assert next(iter(free)) == ("akya-cuda", "") and free["akya-cuda", ""]["free_gpus"] == 16
    assert free["debug", "akya-cuda"]["fits"] and "no GPUs" in free["orfoz", ""]["why"]
    # This is not the login node of palamut-cuda.
    assert "accepts jobs only from cuda-ui" in free["palamut-cuda", ""]["why"]

    whole_node = ["--gres=gpu:4", "--cpus-per-task=40", "--time=3:00:00", "--account=ayse", "--partition=akya-cuda"]
    argv = ["sbatch", "--parsable", "--array=0-3", f"--chdir={truba.project}", "--output=%a.out", *whole_node]
    array = truba.cluster.run([*argv, "--wrap", "sleep 600"], user=truba.user).stdout.strip()
    for task in range(4):
        truba.cluster.wait_for_state(f"{array}_{task}", "RUNNING")
    loaded = offers(truba)
    assert next(iter(loaded)) == ("barbun-cuda", "") and loaded["akya-cuda", ""]["free_gpus"] == 0
    assert loaded["akya-cuda", ""]["start"] > loaded["barbun-cuda", ""]["start"] + 3600

    submitted = truba(
        "+experiment=mnist", "job.module=failing", "data.name=digits", "resources.partition=auto",
        "resources.time=10h", "resources.segment=20m", truba.runs_folder(),
    )  # fmt: skip
    assert submitted.returncode == 0, submitted.stderr
    assert "resources.partition=barbun-cuda: Slurm expects to start it at once" in submitted.stderr
    (run,) = run_dirs(truba.project)
    shown = truba.cluster.run(["scontrol", "--oneliner", "show", "job", events(run)[-1]["job_id"]]).stdout
    assert "Partition=barbun-cuda" in shown and "TimeLimit=00:20:00" in shown and "NumCPUs=20" in shown
