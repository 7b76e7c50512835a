"""`sweep=lr_find` on the real Slurm: a finder before each training, one that fails, and the command once more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from test_sweeps_on_slurm import BACKEND, REGISTERED, command, events, run_dirs, starts, submit, table, wait_until
from truba import ROOT, Truba

# Its curve is a parabola over the logarithm of the rate, with the lowest point at 0.1, and later for larger seeds.
FINDER = """
from truba_runner.config import lr_find
from truba_runner.training import rate_suggestions
from truba_runner.training.found_rate import found_rate, record

def find(context):
    context.interruption.hold()
    seed = context.experiment.train.seed
    while context.job.waits(seed) and not context.interruption.requested:
        time.sleep(0.05)
    if context.interruption.requested:
        raise Interrupted
    rates = [1e-7 * 1e8 ** (step / 100) for step in range(100)]
    losses = [2 + (step - 75 - seed) ** 2 / 1000 for step in range(100)]
    finder = lr_find.stage_of(context.experiment)
    return {"suggestions": rate_suggestions.keep(context, finder, rates, losses)}

def with_rate(train):
    def trained(context):
        context.experiment.train.learning_rate = found_rate(context, None)
        return {**train(context), **record(context)}
    return trained

train = with_rate(train)
"""
# The first finder waits until it is told to go on, and the second fails.
JOB = """
import pathlib
project = pathlib.Path({project!r})

def step(*where):
    pass

def waits(seed):
    if seed == 1 and not (project / "mended").exists():
        raise RuntimeError("no curve today")
    return seed == 0 and not (project / "go").exists()
"""


def rows_of(truba: Truba) -> list[dict[str, Any]]:
    return list(table(truba)["runs"])


def test_finders_go_before_trainings_and_one_that_fails_stops_its_own_alone(truba: Truba) -> None:
    truba.cluster.run(["mkdir", "-p", str(truba.project / "site" / "tiny")])
    truba.write("site/sitecustomize.py", REGISTERED)
    truba.write("site/tiny/train.py", BACKEND + FINDER)
    truba.write("jobs/quick.py", JOB.format(project=str(truba.project)))
    truba.environment["PYTHONPATH"] = f"{ROOT}:{truba.project / 'site'}"
    own = [one for one in command(truba) if "learning_rate" not in one]
    sweep = [*own, "sweep=lr_find", "train.lr_find=minimum", "train.seed=range(3)"]

    refused = truba(*sweep, "sweep.canary=true")
    assert refused.returncode == 2 and "a finder runs before each run" in refused.stderr
    told = submit(truba, *sweep)
    assert "submitted 3 learning-rate finders as array" in told and "after their finders in" in told
    assert "3 runs, 3 submitted" in told
    (finders,) = {events(run)[1]["job_id"].split("_")[0] for run in run_dirs(truba.project) if "lr_find" in run.name}
    (trainings,) = {
        events(run)[1]["job_id"].split("_")[0] for run in run_dirs(truba.project) if "lr_find" not in run.name
    }
    # A finder of a hundred steps is given one of the training's two epochs, and some time around it.
    limits = [["squeue", "--noheader", "--states=all", "--format=%l", f"--jobs={job}"] for job in (finders, trainings)]
    assert [set(truba.cluster.run(argv).stdout.split()) for argv in limits] == [{"45:00"}, {"1:00:00"}]
    # The last is found and trained, the second has failed; the first looks still, and its training waits.
    wait_until(lambda: [row["state"] for row in rows_of(truba)] == ["PENDING", "CANCELLED", "COMPLETED"])
    first, second, third = rows_of(truba)
    assert first["why"] == f"waits for its learning-rate finder {first['lr_find']['finder']}"
    assert second["why"].startswith(
        f"its learning-rate finder {second['lr_find']['finder']} is FAILED: RuntimeError: no"
    )
    assert second["why"].endswith("the same command starts both again") and second["lr_find"]["learning_rate"] is None
    assert third["lr_find"]["learning_rate"] == third["lr_find"]["suggestions"]["minimum"] != 0
    assert not truba.cluster.run(["squeue", "-h", f"--jobs={trainings}_1", "--states=PENDING"], check=False).stdout

    # A finder that is put back into the queue starts over; its training waits on.
    finder = truba.project / "runs" / first["lr_find"]["finder"]
    truba.cluster.run(["scancel", "--signal=USR2", f"{finders}_0"])
    wait_until(lambda: any(event["event"] == "requeued" for event in events(finder)))
    assert rows_of(truba)[0]["why"] == first["why"]

    # Given again, the command submits the second alone, finder and training.
    truba.write("mended", "")
    again = submit(truba, *sweep)
    assert "submitted 1 learning-rate finder as array" in again
    assert "1 finished before" in again and "1 submitted" in again and "1 in the queue or running already" in again
    truba.write("go", "")
    wait_until(lambda: {row["state"] for row in rows_of(truba)} == {"COMPLETED"})
    counts = starts(truba)
    twice = {finder.name, second["lr_find"]["finder"]}
    assert counts == {run.name: 2 if run.name in twice else 1 for run in run_dirs(truba.project)}
    rates = [row["lr_find"]["learning_rate"] for row in rows_of(truba)]
    assert rates == sorted(rates) and len(set(rates)) == 3
    for row in rows_of(truba):
        run = Path(row["directory"])
        result = json.loads((run / "result.json").read_text())
        assert result["lr_find"]["learning_rate"] == row["lr_find"]["learning_rate"]
        assert sum(path.is_file() for path in (run.parent / row["lr_find"]["finder"]).rglob("*")) <= 8
    assert "3 finished before" in submit(truba, *sweep)
