"""What Slurm is asked: the partition where a job starts soonest, and else the plan, whatever the shell says."""

from __future__ import annotations

import json
import sys
from typing import Any

from cluster import wait_until
from truba import FAILING_JOB, ROOT, Truba, events, run_dirs

# Of a profile: each would change a job, or what Slurm's commands print or do.
PROFILE = {
    "SBATCH_PARTITION": "debug", "SBATCH_TIMELIMIT": "7", "SBATCH_NO_REQUEUE": "1", "SBATCH_CONSTRAINT": "akya-cuda",
    "SQUEUE_STATES": "COMPLETED", "SQUEUE_FORMAT": "%i", "SACCT_FORMAT": "jobid", "SCANCEL_STATE": "COMPLETED",
    "SLURM_TIME_FORMAT": "%s", "SINFO_FORMAT": "%N",
}  # fmt: skip
# Of a step that is bound to one processor.
BOUND = {"SLURM_CPU_BIND": "quiet,mask_cpu:0x1", "SLURM_CPU_BIND_TYPE": "mask_cpu:", "SLURM_CPU_BIND_LIST": "0x1"}
SHOWING_JOB = """
import json, os, time
from pathlib import Path
Path("new").write_text(json.dumps(dict(os.environ)))
Path("new").rename("seen")
while not Path("end").exists():
    time.sleep(0.05)
"""
EXPERIMENT = """# @package _global_
name: shown
job: {module: showing, backend: plain}
data: {name: none}
resources: {time: 30m}
"""


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


def command(truba: Truba, *overrides: str) -> list[str]:
    """Write a run that starts in no time, and return the command that submits it."""
    truba.environment["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests' / 'plain_backend'}"
    (truba.project / "conf" / "experiment").mkdir(parents=True, exist_ok=True)
    truba.write("conf/experiment/shown.yaml", EXPERIMENT)
    truba.write("jobs/showing.py", SHOWING_JOB)
    return ["+experiment=shown", truba.runs_folder(), *overrides]


def shown(truba: Truba, job_id: str) -> str:
    return truba.cluster.run(["scontrol", "--oneliner", "show", "job", job_id]).stdout


def test_neither_a_profile_nor_a_surrounding_job_changes_the_plan(truba: Truba) -> None:
    step = ["srun", "--partition=akya-cuda", "--cpus-per-task=10", "--gres=gpu:1", "--time=9", "env"]
    step += [f"{name}={value}" for name, value in BOUND.items()]
    asked = [*step, sys.executable, "-m", "truba_runner", *command(truba)]
    done = truba.cluster.run(asked, user=truba.user, cwd=truba.project, env=truba.environment | PROFILE)
    kept = "SBATCH_CONSTRAINT=akya-cuda, SBATCH_NO_REQUEUE=1, SBATCH_PARTITION=debug, SBATCH_TIMELIMIT=7. If you want"
    assert kept in done.stderr
    (run,) = run_dirs(truba.project)
    job_id = events(run)[-1]["job_id"]
    job = shown(truba, job_id)
    for fact in ("Partition=akya-cuda", "TimeLimit=00:30:00", "Requeue=1", "Features=(null)", "NumCPUs=10"):
        assert f" {fact} " in job
    wait_until((run / "seen").exists)
    seen = json.loads((run / "seen").read_text())
    assert not seen.keys() & (PROFILE.keys() | BOUND.keys()) and "SLURM_CONF" in seen

    told = json.loads(truba("status", "--json", **PROFILE, SLURM_CLUSTERS="testcluster").stdout)
    assert [(row["state"], row["job_id"]) for row in told] == [("RUNNING", job_id)]
    assert f"cancelled {run.name}" in truba("cancel", run.name, **PROFILE).stdout
    truba.cluster.wait_for_state(job_id, "CANCELLED")


def test_a_sweep_asks_for_what_the_site_wants(truba: Truba) -> None:
    def as_root(*argv: str) -> None:
        truba.cluster.run(argv, user="root", check=False)

    as_root("sacctmgr", "--immediate", "add", "qos", "long")
    as_root("sacctmgr", "--immediate", "modify", "user", "ayse", "set", "qos+=long")
    as_root("scontrol", "create", "reservation=course", "users=ayse", "nodes=akya4", "starttime=now", "duration=60")
    try:
        keys = ["resources.exclude=[akya3,'akya[1-2]']", "resources.nodelist=akya4", "resources.qos=long"]
        keys += ["resources.reservation=course", "resources.memory_per_cpu_gb=4.5", "resources.exclusive=true"]
        keys += ["+resources.sbatch={nice: 100, comment: two words}", "train.seed=1,2"]
        done = truba("-m", *command(truba, *keys))
        assert done.returncode == 0, done.stderr
        jobs = {events(run)[-1]["job_id"] for run in run_dirs(truba.project)}
        for job in [shown(truba, job_id) for job_id in sorted(jobs)]:
            for fact in (
                "ExcNodeList=akya[1-3]", "ReqNodeList=akya4", "QOS=long", "Reservation=course", "MinMemoryCPU=4.50G",
                "OverSubscribe=NO", "Nice=100", "Comment=two words",
            ):  # fmt: skip
                assert f" {fact}" in job
    finally:
        truba.clear()
        as_root("scontrol", "delete", "reservation=course")
    for override, remedy in (
        ("resources.nodelist=akya9", "for resources.nodelist=akya9. sinfo --Node --partition=akya-cuda lists"),
        ("+resources.sbatch.nonsense=3", "does not accept resources.sbatch.nonsense. Correct it or leave it out"),
    ):
        refused = truba(*command(truba, override))
        assert refused.returncode == 2 and remedy in refused.stderr
