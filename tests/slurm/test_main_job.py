"""From the command line to Slurm's accounting and back, on the test cluster."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from cluster import wait_until
from truba import FAILING_JOB, WAITING_JOB, Truba, events, run_dirs


def test_mnist_trains_on_two_gpus_and_everyone_agrees_on_what_came_of_it(truba: Truba) -> None:
    submitted = truba(
        "+experiment=mnist", "resources.partition=akya-cuda", "resources.gpus=2", "data.name=digits", "train.epochs=2",
        truba.runs_folder(),
    )  # fmt: skip
    assert submitted.returncode == 0, submitted.stderr
    (run,) = run_dirs(truba.project)
    job_id = events(run)[-1]["job_id"]
    shown = truba.cluster.run(["scontrol", "--oneliner", "show", "job", job_id]).stdout
    assert "NumCPUs=20" in shown and "gres/gpu=2" in shown and "Account=ayse" in shown
    assert f"submitted {run.name} as job {job_id} to akya-cuda: 2 GPUs, 20 cores" in submitted.stdout

    followed = truba("logs", run.name, "-f")
    assert "118,282" in followed.stdout and "epoch 2/2" in followed.stdout
    truba.cluster.wait_for_state(job_id, "COMPLETED", in_accounting=True)
    (row,) = truba.status()
    assert (row["run"], row["state"], row["job_id"]) == (run.name, "COMPLETED", job_id)
    assert (row["epoch"], row["epochs"], row["partition"]) == (2, 2, "akya-cuda")

    result = json.loads((run / "result.json").read_text())
    assert result["metrics"]["test_accuracy"] > 0.8 and result["metrics"]["loss"] < 1
    assert result["data"]["name"] == "digits" and result["devices"] == ["CPU:0", "CPU:1"]
    assert result["seconds_training"] > 0
    assert result["weights_sha256"] == sha256_of_saved_weights(run / "model.keras")

    report = Path(truba("report", run.name).stdout.strip()).read_text()
    seconds = int(truba.cluster.run(["sacct", "-nXP", "-j", job_id, "-o", "ElapsedRaw"]).stdout)
    assert f"<th>core-hours</th><td>{20 * seconds / 3600:.2f}</td>" in report and seconds
    assert f"<th>GPU-hours</th><td>{2 * seconds / 3600:.2f}</td>" in report and "TRUBA resources" in report

    again = truba(
        "+experiment=mnist", "resources.gpus=4", "data.name=digits", "train.epochs=2", truba.runs_folder()
    )  # fmt: skip
    assert again.returncode == 0 and f"{run.name} has finished already" in again.stdout
    assert sum(event["event"] == "submitted" for event in events(run)) == 1
    fresh = truba(
        "+experiment=mnist", "data.name=digits", "train.epochs=2", "fresh=true", truba.runs_folder()
    )  # fmt: skip
    assert f"submitted {run.name}.2 as job" in fresh.stdout


def sha256_of_saved_weights(model: Path) -> str:
    import keras

    digest = hashlib.sha256()
    for weight in keras.models.load_model(model).get_weights():
        digest.update(weight.tobytes())
    return digest.hexdigest()


def test_a_submission_without_data_is_refused_before_it_reaches_slurm(truba: Truba) -> None:
    refused = truba("+experiment=mnist", truba.runs_folder())
    assert refused.returncode == 2 and "stage +experiment=mnist --from mnist.npz" in refused.stderr
    assert not (truba.project / "runs").exists()


REFUSALS = [
    (["resources.gpus=0"], "takes no job without a GPU"),
    (["resources.gpus=5"], "has 4 GPUs"),
    (["resources.gpus=1", "resources.cores=7"], "10 cores with each GPU"),
    (["resources.partition=kolyoz-cuda"], "Type: ssh -t cuda-ui 'cd "),
    (
        ["resources.partition=orfoz", "resources.gpus=0", "resources.constraint=weka"],
        "no node of orfoz has the feature",
    ),
    (["resources.time=4d"], "allows 3-00:00:00"),
    (["resources.partition=debug"], "mixes node families"),
    (["cluster.runs_folder=/home/ayse/runs"], "under"),
    (["resources.partition=akya"], "Did you mean akya-cuda"),
    (["resources.memory_gb=9999"], "has 384 GB"),
    (["resources.nodes=5", "cluster=testcluster"], "has 4"),
]


@pytest.mark.parametrize(("overrides", "words"), REFUSALS, ids=[" ".join(row[0]) for row in REFUSALS])
def test_the_plans_refusals_on_the_command_line(truba: Truba, overrides: list[str], words: str) -> None:
    refused = truba("+experiment=mnist", "data.name=digits", *overrides)
    assert (refused.returncode, refused.stdout) == (2, "") and words in refused.stderr
    assert "Traceback" not in refused.stderr


def test_what_slurm_alone_can_know_is_refused_in_its_own_words(truba: Truba) -> None:
    refused = truba("+experiment=mnist", "data.name=digits", "resources.account=nobody", truba.runs_folder())
    assert refused.returncode == 2 and "account" in refused.stderr and "Traceback" not in refused.stderr
    (row,) = truba.status()
    assert row["state"] == "REFUSED"


def test_a_fault_in_the_users_code_fails_the_job_and_names_the_line(truba: Truba) -> None:
    truba.write("jobs/faulty.py", "import math\n\n\nmath.sqrt(-1)  # the fault\n")
    assert truba("+experiment=mnist", "job.module=faulty", "data.name=digits", truba.runs_folder()).returncode == 0
    (run,) = run_dirs(truba.project)
    job_id = events(run)[1]["job_id"]
    truba.cluster.wait_for_state(job_id, "FAILED", in_accounting=True)
    exit_code = truba.cluster.run(["sacct", "-nPX", "-o", "ExitCode", "-j", job_id]).stdout.strip()
    assert exit_code == "1:0"
    (row,) = truba.status()
    assert row["state"] == "FAILED" and "jobs/faulty.py:4: math.sqrt(-1)  # the fault" in row["why"]
    logs = truba("logs", run.name)
    assert "math.sqrt(-1)" in logs.stdout and "FAILED" in logs.stderr


def test_a_job_whose_srun_fails_goes_back_into_the_queue_but_not_for_ever(truba: Truba) -> None:
    truba.write("jobs/failing.py", FAILING_JOB)
    asks_too_much = (
        'srun() { if [ "0$SLURM_RESTART_COUNT" %s ]; then command srun --gres=gpu:9 "$@"; else command srun "$@"; fi; }'
    )
    # At the end of that job the controller does not answer for a while.
    silent = 'squeue() { [ $pause != 5 ] && command squeue "$@"; }'
    setups = {"once": [asks_too_much % "-eq 0", silent], "often": ["SLURM_RESTART_COUNT=10", asks_too_much % "-ge 10"]}
    (truba.project / "conf" / "environment").mkdir(parents=True)
    for name, setup in setups.items():
        truba.write(f"conf/environment/{name}.yaml", json.dumps({"name": name, "setup": setup}))
        submitted = truba(
            "+experiment=mnist", "job.module=failing", "data.name=digits", f"environment={name}", f"name={name}",
            truba.runs_folder(),
        )  # fmt: skip
        assert submitted.returncode == 0, submitted.stderr
    often, once = run_dirs(truba.project)
    for run in (often, once):
        truba.cluster.wait_for_state(events(run)[1]["job_id"], "FAILED", timeout=240, in_accounting=True)
    rows = {row["run"]: row["why"] for row in truba.status()}
    assert "failing on purpose" in rows[once.name], "the second srun has started it"
    assert "Slurm could not start it" in rows[often.name]
    assert [sum(event["event"] == "started" for event in events(run)) for run in (once, often)] == [1, 0]


def test_runs_train_the_code_that_was_submitted_whatever_is_edited_while_they_wait(truba: Truba) -> None:
    job = "import helper\n\nraise RuntimeError(f'{helper.VALUE} helper, %s job')\n"
    truba.write("jobs/own.py", job % "submitted")
    truba.write("helper.py", 'VALUE = "submitted"\n')
    truba.write("bin/sbatch", '#!/bin/sh\nexec /usr/bin/sbatch --hold "$@"\n', executable=True)
    own = ["+experiment=mnist", "job.module=own", "data.name=digits", truba.runs_folder()]
    for command in (own, ["-m", *own, "train.seed=1,2"]):
        submitted = truba(*command, PATH=truba.path_with_own_bin())
        assert submitted.returncode == 0, submitted.stderr
    runs = run_dirs(truba.project)
    assert len(runs) == 3 and {row["state"] for row in truba.status()} == {"PENDING"}
    truba.write("jobs/own.py", job % "edited")
    truba.write("helper.py", 'VALUE = "edited"\n')
    jobs = {events(run)[1]["job_id"].split("_")[0] for run in runs}
    truba.cluster.run(["scontrol", "release", *sorted(jobs)], user="root")
    for run in runs:
        truba.cluster.wait_for_state(events(run)[1]["job_id"], "FAILED", in_accounting=True)
        error = json.loads((run / "progress.json").read_text())["error"]
        assert error["message"] == "submitted helper, submitted job"
        assert error["file"] == str(truba.project / "jobs" / "own.py") and "submitted job" in error["code"]
    assert len(list((truba.project / "runs" / ".code").glob("code-*"))) == 1, "all runs share it"
    shown = truba("diff", runs[0].name).stdout
    assert '-VALUE = "submitted"\n+VALUE = "edited"' in shown and "+++ now/jobs/own.py" in shown


def test_a_run_in_slurms_hands_is_pointed_at_and_can_be_cancelled(truba: Truba) -> None:
    truba.write("jobs/waiting.py", WAITING_JOB)
    command = ["+experiment=mnist", "job.module=waiting", "data.name=digits", truba.runs_folder()]
    assert truba(*command).returncode == 0
    (run,) = run_dirs(truba.project)
    job_id = events(run)[1]["job_id"]
    truba.cluster.wait_for_state(job_id, "RUNNING")
    again = truba(*command)
    assert again.returncode == 0 and f"as job {job_id}" in again.stdout
    assert len(truba.jobs(run.name)) == 1
    cancelled = truba("cancel", run.name[:8])
    assert cancelled.returncode == 0 and f"cancelled {run.name}" in cancelled.stdout
    truba.cluster.wait_for_state(job_id, "CANCELLED", in_accounting=True)
    assert truba.status()[0]["state"] == "CANCELLED"
    assert "had ended already" in truba("cancel", run.name).stdout


def test_a_pending_run_says_why(truba: Truba) -> None:
    truba.write("jobs/waiting.py", WAITING_JOB)
    for seed in (1, 2, 3, 4, 5):  # Five times 40 cores: one more than the account's 160 allow.
        submitted = truba(
            "+experiment=mnist", "job.module=waiting", "data.name=digits", f"train.seed={seed}", "resources.gpus=4",
            truba.runs_folder(),
        )  # fmt: skip
        assert submitted.returncode == 0, submitted.stderr
    jobs = [events(run)[1]["job_id"] for run in run_dirs(truba.project)]
    for job_id in sorted(jobs, key=int)[:4]:
        truba.cluster.wait_for_state(job_id, "RUNNING")
    truba.cluster.wait_for_reason(max(jobs, key=int))
    rows = {row["job_id"]: row for row in truba.status()}
    last = rows[max(jobs, key=int)]
    assert last["state"] == "PENDING" and last["why"] in {"AssocGrpCpuLimit", "Resources", "Priority"}
    asked = truba("cancel", *(row["run"] for row in rows.values()))
    assert asked.returncode == 2 and "--yes" in asked.stderr
    assert truba("cancel", "--yes", *(row["run"] for row in rows.values())).returncode == 0


def test_a_sweep_is_one_array_whose_tasks_fail_alone(truba: Truba) -> None:
    truba.write("jobs/failing.py", FAILING_JOB)
    submitted = truba(
        "-m", "+experiment=mnist", "job.module=failing", "data.name=digits", "train.seed=range(3)",
        "resources.gpus=1,2", truba.runs_folder(),
    )  # fmt: skip
    assert submitted.returncode == 0, submitted.stderr
    # Six choices, three different networks: what they run on does not make them others.
    runs = run_dirs(truba.project)
    assert len(runs) == 3
    ids = {event["job_id"] for run in runs for event in events(run) if event["event"] == "submitted"}
    assert len({job_id.split("_")[0] for job_id in ids}) == 1 and {job_id.split("_")[1] for job_id in ids} == {
        "0",
        "1",
        "2",
    }
    for job_id in ids:
        truba.cluster.wait_for_state(job_id, "FAILED", in_accounting=True)
    assert {row["state"] for row in truba.status()} == {"FAILED"}
    for run in runs:
        assert "failing on purpose" in next((run / "logs").glob("*_log.out")).read_text()


def test_waiting_for_a_run_on_request(truba: Truba) -> None:
    truba.write("jobs/failing.py", FAILING_JOB)
    waited = truba(
        "+experiment=mnist", "job.module=failing", "data.name=digits", "launcher.wait=true", truba.runs_folder()
    )  # fmt: skip
    assert waited.returncode == 1 and "failing on purpose" in waited.stderr


def test_no_other_user_sees_a_run(truba: Truba) -> None:
    truba.write("jobs/failing.py", FAILING_JOB)
    assert truba("+experiment=mnist", "job.module=failing", "data.name=digits", truba.runs_folder()).returncode == 0
    (run,) = run_dirs(truba.project)
    seen = truba.cluster.run(["cat", str(run / "run.yaml")], user="mehmet", cwd="/", check=False)
    assert seen.returncode != 0 and "Permission denied" in seen.stderr


def test_nothing_is_left_on_the_login_node(truba: Truba) -> None:
    truba.write("jobs/waiting.py", WAITING_JOB)
    assert truba("+experiment=mnist", "job.module=waiting", "data.name=digits", truba.runs_folder()).returncode == 0
    (run,) = run_dirs(truba.project)
    # Slurm says RUNNING before the job's processes are there.
    wait_until((run / "began").exists)
    processes = truba.cluster.run(["ps", "-u", "ayse", "-o", "args="], check=False).stdout.splitlines()
    on_node = [line for line in processes if "truba_runner" in line]
    # The nodes are this machine too: what belongs to the job runs under its slurmstepd.
    assert on_node and all("truba_runner.worker" in line for line in on_node), processes
