"""Jobs on a real Slurm leave out the nodes that are on the list of bad ones."""

from __future__ import annotations

import json
import re
import time

from cluster import wait_until
from test_search_on_slurm import Search
from test_sweeps_on_slurm import SWEEPER
from truba import FAILING_JOB, Truba, events, run_dirs

from truba_runner.nodes.ledger import NODES

MNIST = ["+experiment=mnist", "data.name=digits", "environment=inherit", "job.module=failing"]


def listed(truba: Truba, *nodes: str, shared: str = "") -> None:
    """Put nodes on the user's list, and on a shared one, as this user's jobs do."""
    runs = truba.project / "runs"
    truba.cluster.run(["mkdir", "-m", "700", "-p", str(runs)], user=truba.user)
    for node in nodes:
        in_a_job(truba, f"record_bad(runs, {shared!r}, Fault({node!r}, 'gpus', '3 of 4 GPUs', {time.time()}))")


def in_a_job(truba: Truba, line: str) -> None:
    """Run a line of Python with the functions of the list as this user; `runs` is the project's runs folder."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom truba_runner.nodes.fault import Fault\n"
        f"from truba_runner.nodes.ledger import record_bad, record_healthy\nruns = Path(sys.argv[1])\n{line}\n"
    )
    done = truba(str(truba.project / "runs"), program=["-c", program])
    assert done.returncode == 0, done.stderr


def excluded(truba: Truba, job_id: str) -> str:
    shown = truba.cluster.run(["scontrol", "--oneliner", "show", "job", job_id]).stdout
    found = re.search(r"ExcNodeList=(\S+)", shown)
    assert found, shown
    return found[1]


def submitted(truba: Truba, *overrides: str) -> str:
    """Submit a job of the project and return what the command said."""
    truba.write("jobs/failing.py", FAILING_JOB)
    done = truba(*overrides, *MNIST, truba.runs_folder())
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout + done.stderr


def test_a_run_leaves_out_a_bad_node_but_not_a_name_that_slurm_does_not_know(truba: Truba) -> None:
    # The site has renamed akya77: the name alone would refuse every submission.
    listed(truba, "akya77", "akya2")
    shown = submitted(truba, "dry_run=true")
    assert "#SBATCH --exclude=akya2\n" in shown and "3 of 4 GPUs" in shown
    said = submitted(truba, "resources.exclude=akya3")
    assert "leaves out akya2" in said and "akya77" not in said
    (run,) = run_dirs(truba.project)
    intent, sent = events(run)[:2]
    assert intent["bad_nodes"] == {"akya2": "gpus: 3 of 4 GPUs"} and intent["request"]["exclude"] == "akya3"
    assert excluded(truba, sent["job_id"]) == "akya[2-3]"


def test_an_array_and_a_run_on_a_named_bad_node(truba: Truba) -> None:
    listed(truba, "akya1")
    said = submitted(truba, "-m", "train.seed=1,2", "sweep.canary=false")
    assert "leaves out akya1" in said
    (sent,) = {event["job_id"].split("_")[0] for run in run_dirs(truba.project) for event in events(run)[1:2]}
    assert excluded(truba, sent) == "akya1"
    said = submitted(truba, "train.seed=3", "resources.nodelist=akya1")
    assert "WARNING" in said and "akya1" in said and "leaves out" not in said
    (job,) = {event["job_id"] for run in run_dirs(truba.project) for event in events(run)[1:2]} - {
        f"{sent}_0", f"{sent}_1"
    }  # fmt: skip
    assert excluded(truba, job) == "(null)"


def test_a_finder_and_its_run(truba: Truba) -> None:
    listed(truba, "akya4")
    before = truba.jobs().keys()
    submitted(truba, "-m", "sweep=lr_find", "train.seed=1,2")
    jobs = truba.jobs().keys() - before
    assert len({job.split("_")[0] for job in jobs}) == 2
    assert {excluded(truba, job.split("_")[0]) for job in jobs} == {"akya4"}


def test_a_search(truba: Truba) -> None:
    listed(truba, "akya3")
    search = Search(truba, "sweep=random", "sweep.workers=2", "sweep.max_trials=2", "environment=inherit")
    assert "leaves out akya3" in search.told_at_submission
    assert {excluded(truba, job.split("_")[0]) for job in search.job_ids()} == {"akya3"}


def test_a_sweepers_job_and_the_runs_that_it_submits(truba: Truba) -> None:
    # The only node of barbun stays: there is no other for the sweeper.
    listed(truba, "barbun1", "akya4")
    truba.cluster.run(["mkdir", "-p", str(truba.project / "site/hydra_plugins/nevergrad_like")], user=truba.user)
    truba.write("site/hydra_plugins/nevergrad_like/__init__.py", SWEEPER)
    truba.environment["PYTHONPATH"] += f":{truba.project / 'site'}"
    own = ["hydra/sweeper=nevergrad_like", "launcher.metric=val_loss", "sweep.sweeper_partition=barbun"]
    said = submitted(truba, "-m", *own, "sweep.sweeper_time=10m")
    assert "the sweeper was submitted as job" in said and "nodes that are known as bad (barbun1)" in said
    wait_until(lambda: run_dirs(truba.project) and all(events(run)[1:] for run in run_dirs(truba.project)))
    arrays = {events(run)[1]["job_id"].split("_")[0] for run in run_dirs(truba.project)}
    assert {excluded(truba, array) for array in arrays} == {"akya4"}


def test_the_command_lists_and_forgets(truba: Truba) -> None:
    listed(truba, "akya2")
    as_root = truba.cluster.run
    as_root(["scontrol", "update", "nodename=akya4", "state=drain", "reason=GPU 2 fell off the bus"], user="root")
    try:
        shown = truba("nodes", truba.runs_folder())
        assert shown.returncode == 0, shown.stderr
        bad, out_of_use = shown.stdout.split("out of use by the site:")
        assert "akya2" in bad and "gpus: 3 of 4 GPUs" in bad and str(truba.project / "runs" / NODES) in bad
        assert "akya4" in out_of_use and "GPU 2 fell off the bus" in out_of_use and "drain" in out_of_use
        as_json = json.loads(truba("nodes", "--json", truba.runs_folder()).stdout)
        assert [one["node"] for one in as_json["bad"]] == ["akya2"]
        assert [one["nodes"] for one in as_json["out_of_use"]] == ["akya4"]
    finally:
        as_root(["scontrol", "update", "nodename=akya4", "state=resume"], user="root")
    assert truba("nodes", truba.runs_folder(), "--forget", "akya3").returncode == 2
    assert "no node is known as bad" in truba("nodes", truba.runs_folder(), "--forget", "akya2").stdout
    assert "--exclude" not in submitted(truba, "dry_run=true")


def test_where_and_doctor_mention_them(truba: Truba) -> None:
    listed(truba, "akya2", "barbun121")
    truba.write("jobs/failing.py", FAILING_JOB)
    where = truba("where", "mnist", "data.name=digits", "job.module=failing", truba.runs_folder())
    assert "akya-cuda: left out as bad: akya2 (truba nodes)" in where.stdout, where.stdout + where.stderr
    rows = json.loads(truba("doctor", "--json", truba.runs_folder()).stdout)
    (row,) = [one for one in rows if one["subject"] == "bad nodes"]
    assert row["level"] == "note" and "akya2, barbun121" in row["says"]
    listed(truba, "barbun122")
    rows = json.loads(truba("doctor", "--json", truba.runs_folder()).stdout)
    assert [one["says"] for one in rows if one["subject"] == "bad nodes" and one["level"] == "warning"] == [
        "2 of the 2 nodes of barbun-cuda are known as bad"
    ]


def test_a_job_that_excludes_all_nodes_says_so(truba: Truba) -> None:
    listed(truba, "akya2")
    submitted(truba, "+resources.sbatch.begin=now+1hour")
    (run,) = run_dirs(truba.project)
    job = events(run)[1]["job_id"]
    update = ["scontrol", "update", f"jobid={job}", "excnodelist=akya[1-4]", "starttime=now"]
    truba.cluster.run(update, user=truba.user)
    argv = ["squeue", "--noheader", "--format=%r", f"--jobs={job}"]
    wait_until(lambda: truba.cluster.run(argv).stdout.strip() == "BadConstraints")
    said = truba("why", run.name, "--runs", str(run.parent)).stdout
    assert "ExcNodeList=akya[1-4]" in said and "truba nodes --forget" in said, said
    assert "leaves out akya2, known as bad (gpus: 3 of 4 GPUs)" in said and "leaves out akya1" not in said


def test_two_users_share_a_list(truba: Truba) -> None:
    mehmet = Truba(truba.cluster, truba.project.name, "mehmet")
    folder = truba.cluster.scratch_root / f"shared-{truba.project.name}"
    folder.mkdir()
    folder.chmod(0o1777)
    shared = folder / "bad.jsonl"
    listed(truba, "akya2", shared=str(shared))
    truba.cluster.run(["chmod", "666", str(shared)], user=truba.user)
    listed(mehmet, "akya3", shared=str(shared))
    for one in (truba, mehmet):
        one.write("jobs/failing.py", FAILING_JOB)
    own = [f"cluster.bad_nodes={shared}", "dry_run=true", "resources.account=ayse"]
    assert "#SBATCH --exclude=akya2,akya3\n" in submitted(truba, *own)
    assert "#SBATCH --exclude=akya2,akya3\n" in submitted(mehmet, *own)
    in_a_job(mehmet, f"record_healthy(runs, {str(shared)!r}, 'akya2')")
    assert "#SBATCH --exclude=akya3\n" in submitted(truba, *own)


def test_a_list_of_all_nodes_keeps_no_job_waiting(truba: Truba) -> None:
    listed(truba, "akya4", "akya1", "akya2", "akya3")
    said = submitted(truba)
    assert "WARNING" in said and "akya4" in said
    (run,) = run_dirs(truba.project)
    assert excluded(truba, events(run)[1]["job_id"]) == "akya[1-3]"
