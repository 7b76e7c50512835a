"""A submission is in the queue exactly once, whatever sbatch answers and wherever the command is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from cluster import wait_until
from truba import FAILING_JOB, WAITING_JOB, Truba, run_dirs

from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.state import last_job_id

TIMED_OUT = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"

# A stand-in first on the PATH. `first` is what it does when it is called for the first time; then it is the real one.
STAND_IN = """#!/bin/bash
case "$*" in *--test-only*) exec /usr/bin/sbatch "$@";; esac
calls="$(dirname "$0")/calls"
echo "$PPID $$" >> "$calls"
if [ "$(wc -l < "$calls")" = 1 ]; then
  {first}
fi
exec /usr/bin/sbatch "$@"
"""

# The command with a SIGKILL at its Nth step: before or after each write to the run directory and each call of sbatch.
KILLED_AT_STEP = """
import itertools, os, signal, sys
from truba_runner.runs import events, run_directory
from truba_runner.slurm import commands
from truba_runner.submission import settle
from truba_runner.sweeps import array
settle.SETTLE_SECONDS = 1.0
wanted, steps = int(sys.argv.pop(1)), itertools.count(1)
def step():
    if next(steps) == wanted:
        os.kill(os.getpid(), signal.SIGKILL)
def stepped(function):
    def call(*arguments, **options):
        step()
        value = function(*arguments, **options)
        step()
        return value
    return call
for name in ("create", "write_config_text"):
    setattr(run_directory.RunDir, name, stepped(getattr(run_directory.RunDir, name)))
events.append = stepped(events.append)
array._write_new = stepped(array._write_new)
commands.sbatch = stepped(commands.sbatch)
from truba_runner.__main__ import main
sys.exit(main())
"""

QUICK_BACKOFF = """
import sys
from truba_runner.slurm import client
client.BACKOFF_SECONDS = (0.1, 0.1)
from truba_runner.__main__ import main
sys.exit(main())
"""


@pytest.fixture
def truba(truba: Truba) -> Truba:
    truba.write("jobs/waiting.py", WAITING_JOB)
    return truba


def command(truba: Truba, *more: str) -> list[str]:
    own_name = f"name={truba.project.name}"
    return ["+experiment=mnist", own_name, "job.module=waiting", "data.name=digits", truba.runs_folder(), *more]


def the_run(truba: Truba) -> Path:
    (run,) = run_dirs(truba.project)
    return run


def recorded_job(run: Path) -> str:
    """The job id on record."""
    return last_job_id(RunDir(run))


def begun(run: Path) -> str:
    """What the run's starts have written, once one has."""
    file = run / "began"
    wait_until(lambda: file.exists() and file.stat().st_size)
    return file.read_text()


def test_an_sbatch_that_accepts_and_then_times_out_is_adopted(truba: Truba) -> None:
    truba.write("bin/sbatch", STAND_IN.format(first=f'/usr/bin/sbatch "$@"; echo "{TIMED_OUT}" >&2; exit 1'), True)
    done = truba(*command(truba), PATH=truba.path_with_own_bin())
    assert done.returncode == 0, done.stderr
    run = the_run(truba)
    assert list(truba.jobs(run.name)) == [recorded_job(run)]
    assert len((truba.project / "bin" / "calls").read_text().splitlines()) == 1


def test_an_sbatch_that_times_out_and_does_not_accept_is_repeated(truba: Truba) -> None:
    truba.write("bin/sbatch", STAND_IN.format(first=f'echo "{TIMED_OUT}" >&2; exit 1'), True)
    done = truba(*command(truba), PATH=truba.path_with_own_bin())
    assert done.returncode == 0 and "trying again" in done.stderr, done.stderr
    run = the_run(truba)
    assert list(truba.jobs(run.name)) == [recorded_job(run)]
    assert len((truba.project / "bin" / "calls").read_text().splitlines()) == 2


def test_a_slurm_that_never_answers_is_said_so_and_the_next_command_submits(truba: Truba) -> None:
    truba.write("bin/sbatch", f'#!/bin/bash\necho "{TIMED_OUT}" >&2; exit 1\n', True)
    done = truba(*command(truba), program=["-c", QUICK_BACKOFF], PATH=truba.path_with_own_bin())
    assert done.returncode == 1 and "Nothing is lost" in done.stderr and "Traceback" not in done.stderr
    assert truba.jobs(the_run(truba).name) == {}
    assert truba(*command(truba)).returncode == 0
    assert list(truba.jobs(the_run(truba).name)) == [recorded_job(the_run(truba))]


def test_of_two_jobs_that_one_submission_became_one_trains(truba: Truba) -> None:
    # The first request is still on its way when the queue is looked at, and is accepted after the second.
    send_later = '(while [ ! -e "$0.go" ]; do sleep 0.05; done; /usr/bin/sbatch "$@" < "$0.script") >/dev/null 2>&1 &'
    late = f'cat > "$0.script"; {send_later} echo "{TIMED_OUT}" >&2; exit 1'
    truba.write("bin/sbatch", STAND_IN.format(first=late), True)
    assert truba(*command(truba), PATH=truba.path_with_own_bin()).returncode == 0
    run = the_run(truba)
    truba.write("bin/sbatch.go", "")
    wait_until(lambda: len(truba.jobs(run.name)) == 2)
    second = next(job_id for job_id in truba.jobs(run.name) if job_id != recorded_job(run))
    truba.cluster.wait_for_state(second, "COMPLETED")
    assert truba.status()[0]["job_id"] == recorded_job(run) != second
    assert begun(run) == "began\n"
    assert "already" in (run / "logs" / f"{second}_0_log.out").read_text()


def test_a_job_that_comes_when_its_run_was_submitted_again_leaves_that_alone(truba: Truba) -> None:
    # Slurm answers none of the first command's attempts, and works off the first of them after the second command.
    late = f'[ -e "$0.script" ] || cat > "$0.script"; echo "{TIMED_OUT}" >&2; exit 1'
    truba.write("bin/sbatch", f"#!/bin/bash\n{late}\n", True)
    first = truba(*command(truba), program=["-c", QUICK_BACKOFF], PATH=truba.path_with_own_bin())
    assert first.returncode == 1 and "Nothing is lost" in first.stderr
    assert "submitted" in truba("0", *command(truba), program=["-c", KILLED_AT_STEP]).stdout
    run = the_run(truba)
    wait_until(lambda: (run / "began").exists())
    script = (truba.project / "bin" / "sbatch.script").read_text()
    argv = ["env", "PYTHONPATH=" + truba.environment["PYTHONPATH"], "sbatch", "--parsable"]
    late_job = truba.cluster.run(argv, user=truba.user, cwd=truba.project, input=script).stdout.strip()
    truba.cluster.wait_for_state(late_job, "COMPLETED")
    assert "now belongs to another submission" in (run / "logs" / f"{late_job}_0_log.out").read_text()
    assert (run / "began").read_text() == "began\n" and truba.status()[0]["state"] == "RUNNING"


@pytest.mark.parametrize("step", range(1, 12))
def test_a_kill_at_any_step_leaves_one_job_after_the_command_is_repeated(truba: Truba, step: int) -> None:
    program = ["-c", KILLED_AT_STEP]
    killed = truba(str(step), *command(truba), program=program)
    if step == 11:
        assert killed.returncode == 0, "there are more steps than this test kills at"
    else:
        assert killed.returncode == 128 + signal.SIGKILL or killed.returncode == -signal.SIGKILL
    repeated = truba("0", *command(truba), program=program)
    assert repeated.returncode == 0, repeated.stderr
    run = the_run(truba)
    assert list(truba.jobs(run.name)) == [recorded_job(run)]


@pytest.mark.parametrize("step", range(1, 16))
def test_a_kill_while_an_array_is_submitted_leaves_each_run_with_one_job(truba: Truba, step: int) -> None:
    program = ["-c", KILLED_AT_STEP]
    sweep = ["-m", *command(truba, "train.seed=1,2")]
    killed = truba(str(step), *sweep, program=program)
    assert (killed.returncode == 0) == (step == 15), "this test kills at each step, and once at none"
    repeated = truba("0", *sweep, program=program)
    assert repeated.returncode == 0, repeated.stderr
    arrays = truba.jobs(f"{truba.project.name}-x2.")
    assert len({job_id.split("_")[0] for job_id in arrays}) == 1
    assert {job_id.split("_")[0] for job_id in arrays} == {
        recorded_job(run).split("_")[0] for run in run_dirs(truba.project)
    }
    assert len({recorded_job(run) for run in run_dirs(truba.project)}) == 2


def test_an_array_whose_runs_a_failing_machine_has_lost_trains_none_of_them_twice(truba: Truba) -> None:
    sweep = ["-m", *command(truba, "train.seed=1,2")]
    assert truba(*sweep).returncode == 0
    first = {recorded_job(run).split("_")[0] for run in run_dirs(truba.project)}.pop()
    truba.cluster.wait_for_state(first, "RUNNING")
    truba.cluster.run(["scontrol", "requeuehold", first], user="root")
    # What they write as they end, they write before.
    wait_until(lambda: (now := {*truba.cluster.states(first)}) and not now & {"RUNNING", "COMPLETING"})
    # Only the sweep's own record was synced to disk.
    for run in run_dirs(truba.project):
        truba.cluster.run(["rm", "-r", str(run)])
    assert "2 submitted" in truba(*sweep).stdout
    truba.cluster.run(["scontrol", "release", first], user="root")
    truba.cluster.wait_for_state(first, "COMPLETED", timeout=240)
    for run in run_dirs(truba.project):
        assert recorded_job(run).split("_")[0] != first
        assert begun(run) == "began\n"


def test_a_kill_while_sbatch_is_under_way_makes_the_next_command_wait_for_it(truba: Truba) -> None:
    slow = 'while [ ! -e "$0.go" ]; do sleep 0.05; done'
    truba.write("bin/sbatch", STAND_IN.format(first=slow), True)
    first = truba.start(*command(truba), PATH=truba.path_with_own_bin())
    calls = truba.project / "bin" / "calls"
    wait_until(lambda: calls.exists() and calls.read_text().endswith("\n"))
    parent = calls.read_text().split()[0]
    truba.cluster.run(["kill", "-KILL", parent])
    first.communicate()
    second = truba.start(*command(truba))
    with pytest.raises(Exception, match="timed out"):
        second.wait(2)  # It must not decide before the sbatch of the first has ended.
    truba.write("bin/sbatch.go", "")
    out, err = second.communicate(timeout=240)
    assert second.returncode == 0, err
    run = the_run(truba)
    assert list(truba.jobs(run.name)) == [recorded_job(run)] and "queue or running already" in out


def test_two_commands_at_once_submit_once(truba: Truba) -> None:
    both = [truba.start(*command(truba)) for _ in range(2)]
    for one in both:
        _, err = one.communicate(timeout=240)
        assert one.returncode == 0, err
    run = the_run(truba)
    assert list(truba.jobs(run.name)) == [recorded_job(run)]


def test_a_job_that_raised_is_submitted_anew_and_not_pointed_at(truba: Truba) -> None:
    truba.write("jobs/waiting.py", FAILING_JOB)
    assert truba(*command(truba)).returncode == 0
    run = the_run(truba)
    truba.cluster.wait_for_state(recorded_job(run), "FAILED")
    assert "submitted" in truba(*command(truba)).stdout
    assert len(truba.jobs(run.name)) == 2


def test_the_lock_and_the_records_are_the_owners_alone(truba: Truba) -> None:
    assert truba(*command(truba)).returncode == 0
    run = the_run(truba)
    for path in (run, run / "submissions.jsonl", run.parent / ".lock", run / "run.yaml"):
        assert os.stat(path).st_mode & 0o077 == 0, path


def test_a_requeue_that_slurm_takes_without_answering_is_one(truba: Truba) -> None:
    cut = 'done="$(dirname "$0")/done"; /usr/bin/scontrol "$@" || exit\n'
    cut += f'[ -e "$done" ] || {{ touch "$done"; echo "{TIMED_OUT}" >&2; exit 1; }}\n'
    truba.write("bin/scontrol", f"#!/bin/bash\n{cut}", True)
    # An array: Slurm says in other words that its task waits.
    script = "#!/bin/bash\n#SBATCH --partition=barbun --time=5 --cpus-per-task=40 --requeue --array=0\nsleep 600\n"
    sent = truba.cluster.run(["sbatch", "--parsable"], user=truba.user, cwd=truba.project, input=script)
    task = f"{sent.stdout.strip()}_0"
    truba.cluster.wait_for_state(task, "RUNNING")
    program = ["-c", "import sys; from truba_runner.slurm import commands; commands.requeue(sys.argv[1])"]
    done = truba(task, program=program, PATH=truba.path_with_own_bin())
    assert done.returncode == 0, done.stderr
    assert (truba.project / "bin" / "done").exists()


def test_a_job_whose_reservation_was_deleted_is_held_and_no_second_one_is_submitted(truba: Truba) -> None:
    # Of a reservation that a job has asked for, Slurm deletes none by hand; one that is over it does, in half a minute.
    own = ["reservationname=over", "starttime=now", "duration=10", f"users={truba.user}", "nodes=hamsi1"]
    truba.cluster.run(["scontrol", "create", "reservation", *own], user="root")
    truba.write("bin/sbatch", '#!/bin/bash\nexec /usr/bin/sbatch --hold --reservation=over "$@"\n', True)
    assert truba(*command(truba), PATH=truba.path_with_own_bin()).returncode == 0
    truba.cluster.run(["scontrol", "update", "reservationname=over", "endtime=now+1"], user="root")
    run = the_run(truba)
    job_id = recorded_job(run)
    truba.cluster.wait_for_state(job_id, "RESV_DEL_HOLD")
    again = truba(*command(truba))
    assert again.returncode == 0 and f"already, as job {job_id}" in again.stdout
    assert list(truba.jobs(run.name)) == [job_id]
    (row,) = truba.status(run.name, "--runs", str(run.parent))
    assert row["state"] == "RESV_DEL_HOLD" and "its reservation was deleted" in row["why"]
    told = truba("why", run.name, "--runs", str(run.parent)).stdout
    assert f"scontrol release {job_id}" in told and "Reservation_over_was_deleted" in told
    truba.cluster.run(["scontrol", "release", job_id], user=truba.user)
    assert begun(run) == "began\n"
