"""`train.lr_find` and `sweep=lr_find`: what they may say, which runs they come to, and what is shown of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from in_process import knowing, truba

from truba_runner.cli.main import main
from truba_runner.config import lr_find
from truba_runner.config.identity import run_id
from truba_runner.config.recipe import Find
from truba_runner.config.schema import Experiment
from truba_runner.errors import Refused
from truba_runner.rules import sweep as rules
from truba_runner.rules.experiment import plan
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.state import state_of
from truba_runner.runs.sweep_directory import Member, SweepDir
from truba_runner.slurm import capacity, commands, jobs
from truba_runner.slurm.jobs import Job
from truba_runner.slurm.request import derive
from truba_runner.submission.prepared import Prepared
from truba_runner.sweeps import submission

ROOT = Path(__file__).resolve().parents[3]
Compose = Callable[..., Experiment]


def test_what_is_asked_for_is_read_as_in_a_recipe(experiment: Compose) -> None:
    asked = lr_find.asked(experiment("train.lr_find=steep/10"))
    assert asked and (asked.rate.suggestion, asked.rate.factor) == ("steep", 0.1)
    assert asked.finder.ramp == (1e-7, 10, 100)
    asked = lr_find.asked(experiment("train.lr_find={rate: slide*2, num_it: 50, end_lr: 1}"))
    assert asked and asked.rate.factor == 2 and asked.finder.ramp == (1e-7, 1, 50)
    assert lr_find.asked(experiment()) is None and Find("find", {"num_it": 3}).ramp[-1] == 6


WRONG = [
    (["train.lr_find=vally"], "train.lr_find=vally: lr_find suggests no such rate. Did you mean valley?"),
    (["train.lr_find=valley/0"], "train.lr_find=valley/0: it must be a suggestion of the finder, divided"),
    (["train.lr_find=0.1"], "train.lr_find=0.1: it must name the finder's suggestion that becomes"),
    (["train.lr_find={num_it: 5}"], "it must name the finder's suggestion that becomes the learning rate."),
    (["train.lr_find={rate: valley, num_itt: 5}"], "lr_find has no such setting. Did you mean num_it?"),
    (["train.lr_find={rate: valley, num_it: 0.5}"], "train.lr_find.num_it=0.5: it must be a whole number"),
    (["train.lr_find=valley", "train.learning_rate=0.1"], "train.learning_rate=0.1: train.lr_find=valley finds the"),
    (
        ["train.lr_find=valley", "train.scale_learning_rate=true", "train.batch_scaling=per_replica"],
        "the finder runs with the batch of all GPUs",
    ),
    (
        ["sweep=random", "train.lr_find=valley", "+sweep.space={train.learning_rate: {choice: [0.1, 0.2]}}"],
        "sweep.space.train.learning_rate: train.lr_find=valley finds the rate of each trial.",
    ),
    (["sweep.kind=lr_fnd"], "sweep.kind=lr_fnd: there is no such choice. Did you mean lr_find?"),
]


@pytest.mark.parametrize(("overrides", "words"), WRONG)
def test_what_it_may_not_say(experiment: Compose, overrides: list[str], words: str) -> None:
    with pytest.raises(Refused) as refused:
        plan(experiment(*overrides))
    assert words in str(refused.value)


def test_a_recipe_with_finders_of_its_own_is_refused_and_one_without_takes_the_rate(experiment: Compose) -> None:
    both = lr_find.with_default(experiment("sweep=lr_find", name="pets_two_stage"))
    with pytest.raises(Refused, match=r"train.lr_find=valley: train.recipe has its own lr_find stages"):
        plan(both)
    plan(lr_find.with_default(experiment("sweep=lr_find", name="pets")))


@pytest.mark.parametrize(
    ("asked", "words"), [("canary=true", "a finder runs before each run"), ("pack=2", "its own finder is done")]
)
def test_what_does_not_go_with_a_job_before_each_run(experiment: Compose, asked: str, words: str) -> None:
    one = experiment("sweep=lr_find", f"sweep.{asked}")
    (problem,) = rules.problems(one, plan(one).request)
    assert f"sweep.{asked}" in str(problem) and words in str(problem)


def test_a_finders_time_where_there_is_none_is_told(experiment: Compose) -> None:
    (told,) = rules.warnings(experiment("sweep.finder_time=30m"))
    assert "sweep.finder_time=30m: no effect, as only sweep=lr_find starts a finder" in told
    assert not list(rules.warnings(experiment("sweep=lr_find", "sweep.finder_time=30m")))


def test_a_runs_id_is_that_of_what_it_takes_whoever_looks(experiment: Compose) -> None:
    of_sweep = lr_find.with_default(experiment("sweep=lr_find"))
    alone = experiment("train.lr_find=valley")
    assert run_id(lr_find.training_of(of_sweep)) == run_id(alone) != run_id(experiment())
    finder = lr_find.finder_of(of_sweep)
    assert run_id(finder).startswith("mnist-lr_find-")
    # One finder serves whatever is made of its curve, and another network or batch needs another.
    same = [["train.lr_find=steep/10"], ["train.epochs=9"], ["resources.gpus=2"], ["notify.webhook=http://a.b"]]
    other = [["train.batch_size=32"], ["train.seed=1"], ["train.lr_find={rate: valley, num_it: 50}"]]
    for overrides in same + other:
        one = lr_find.with_default(experiment("sweep=lr_find", *overrides))
        assert (run_id(lr_find.finder_of(one)) == run_id(finder)) == (overrides in same), overrides
    assert lr_find.stage_of(finder).ramp == (1e-7, 10, 100)


# -- arrays ----------------------------------------------------------------------------------------------------


class Slurm:
    """Takes what it is given, and tells what it was."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scripts: dict[str, str] = {}
        self.jobs: dict[str, Job] = {}
        monkeypatch.setattr(commands, "sbatch", self.sbatch)
        monkeypatch.setattr(jobs, "queue", lambda: self.jobs)
        monkeypatch.setattr(capacity, "max_array_size", lambda: 3)
        monkeypatch.setattr(capacity, "core_limit", lambda account: 0)

    def sbatch(self, script: str, inherit: Any = ()) -> str:
        job_id = str(len(self.scripts) + 1)
        self.scripts[job_id] = script
        for number in self.numbers(job_id):
            self.jobs[f"{job_id}_{number}"] = Job(f"{job_id}_{number}", "PENDING")
        return job_id

    def option(self, job_id: str, name: str) -> str:
        found = [line for line in self.scripts[job_id].splitlines() if line.startswith(f"#SBATCH --{name}=")]
        return found[0].partition("=")[2] if found else ""

    def numbers(self, job_id: str) -> list[int]:
        tasks = self.option(job_id, "array").partition("%")[0]
        if "-" in tasks:
            first, last = map(int, tasks.split("-"))
            return list(range(first, last + 1))
        return [int(number) for number in tasks.split(",")]

    def told(self) -> dict[str, tuple[str, str]]:
        return {job_id: (self.option(job_id, "array"), self.option(job_id, "dependency")) for job_id in self.scripts}


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return Slurm(monkeypatch)


@pytest.mark.parametrize(
    ("overrides", "minutes"),
    [
        # An epoch's part of a day, and ten minutes for all around it; not less than half an hour.
        (["resources.time=1d", "train.epochs=6"], 255),
        (["resources.time=1d", "train.epochs=6", "train.lr_find={rate: valley, num_it: 200}"], 495),
        (["resources.time=1d", "train.epochs=6", "train.lr_find={rate: valley, num_it: 20}"], 255),
        (["resources.time=1d", "train.epochs=1000"], 30),
        # Never more than the training has itself, nor than the partition allows one job.
        (["resources.time=20m"], 20),
        (["resources.time=30d", "train.epochs=5", "resources.segment=2h"], 3 * 24 * 60),
        (["resources.time=1d", "sweep.finder_time=25m"], 25),
    ],
)
def test_a_finders_job_is_as_long_as_its_steps_may_need(
    experiment: Compose, overrides: list[str], minutes: int
) -> None:
    one = lr_find.with_default(experiment("sweep=lr_find", *overrides))
    finder = derive(lr_find.finder_of(one))
    assert finder.time_minutes == minutes
    assert replace(finder, time_minutes=0, signal_seconds=0) == replace(derive(one), time_minutes=0, signal_seconds=0)


def test_a_long_warning_of_the_limit_leaves_a_finder_half_of_its_time(experiment: Compose) -> None:
    asked = ["train.epochs=1000", "resources.time=10h", "resources.signal_seconds=3600"]
    finder = derive(lr_find.finder_of(lr_find.with_default(experiment("sweep=lr_find", *asked))))
    assert (finder.time_minutes, finder.signal_seconds) == (30, 900)


@pytest.mark.parametrize(
    ("time", "words"),
    [("soon", "not a valid duration"), ("0", "must be 1 minute or more"), ("4d", "akya-cuda allows 3-00:00:00")],
)
def test_a_finder_time_that_cannot_be(experiment: Compose, time: str, words: str) -> None:
    one = lr_find.with_default(experiment("sweep=lr_find", f"sweep.finder_time={time}"))
    (problem,) = rules.problems(one, plan(one).request)
    assert problem.received == f"sweep.finder_time={time}" and words in problem.rule


def runs_of(experiment: Compose, folder: Path, *overrides: list[str]) -> list[Prepared]:
    """As `launch_sweep` makes them."""
    from truba_runner.launch.prepare import newest_directory

    prepared = []
    for more in overrides:
        one = lr_find.with_default(experiment("sweep=lr_find", f"cluster.runs_folder={folder}", *more))

        def made(one: Experiment) -> Prepared:
            return Prepared(one, newest_directory(one), plan(experiment()).request, ROOT / "jobs" / "mnist.py")

        prepared.append(replace(made(lr_find.training_of(one)), finder=made(lr_find.finder_of(one))))
    return prepared


def submit(runs: list[Prepared]) -> SweepDir:
    sweep = SweepDir.of(runs[0].run.path.parent, "mnist-sweep-00000000")
    members = [Member(one.run.id, {}, one.finder.run.id, "valley") for one in runs if one.finder]
    submission.through_slurm(runs, sweep, lambda: sweep.describe(members))
    return sweep


def test_each_training_waits_for_the_task_of_its_own_number(experiment: Compose, slurm: Slurm, tmp_path: Path) -> None:
    # Four finders, of which the second has two trainings; arrays of three tasks at most.
    more = [[f"train.seed={seed}", "sweep.max_parallel=2"] for seed in range(4)]
    runs = runs_of(experiment, tmp_path / "runs", *more, [*more[1], "train.lr_find=steep"])
    submit(runs)
    assert slurm.told() == {
        "1": ("0-2%1", ""), "2": ("0-0%1", ""),
        "3": ("0-2%1", "aftercorr:1"), "4": ("0-0%1", "aftercorr:2"), "5": ("1%1", "aftercorr:1"),
    }  # fmt: skip
    assert all(bool(slurm.option(job_id, "kill-on-invalid-dep")) == (job_id > "2") for job_id in slurm.scripts)
    last = runs[-1].run
    assert (last.submissions()[-1].kind, last.submissions()[-1].job_id) == (Kind.SUBMITTED, "5_1")
    assert last.finder() == runs[1].finder.run and state_of(last.record(), slurm.jobs).live  # type: ignore[union-attr]
    # Again: all of it is there.
    submit(runs)
    assert len(slurm.scripts) == 5


def test_only_what_is_missing_is_submitted_again(experiment: Compose, slurm: Slurm, tmp_path: Path) -> None:
    runs = runs_of(experiment, tmp_path / "runs", *([f"train.seed={seed}"] for seed in range(3)))
    submit(runs)
    finders = [one.finder for one in runs if one.finder]
    # The first finder is done and its training cancelled, the second has failed, and of the third only the training is.
    finders[0].run.write_result({"suggestions": {}})
    slurm.jobs.update({name: Job(name, "CANCELLED") for name in ("2_0", "2_1", "2_2")})
    slurm.jobs.update({"1_0": Job("1_0", "COMPLETED"), "1_1": Job("1_1", "FAILED", exit_code="1:0")})
    why = state_of(runs[1].run.record(), slurm.jobs).why
    assert why.startswith(f"its learning-rate finder {finders[1].run.id} is FAILED: exit code 1:0; the same command")
    assert state_of(runs[2].run.record(), slurm.jobs).why == "cancelled; the same command resumes it"
    submit(runs)
    assert {job_id: told for job_id, told in slurm.told().items() if job_id > "2"} == {
        "3": ("0-0%1", ""), "4": ("0-0%1", "aftercorr:3"), "5": ("2%1", "aftercorr:1"), "6": ("0-0%1", ""),
    }  # fmt: skip
    # A training that has its rate needs no finder any more.
    runs[1].run.append_submission(Event(Kind.FOUND_RATE, learning_rate=0.1))
    slurm.jobs.update({name: Job(name, "FAILED") for name in ("3_0", "4_0")})
    submit(runs)
    assert slurm.told()["7"] == ("0-0%1", "") and len(slurm.scripts) == 7


def test_one_that_waits_in_vain_is_not_waited_for(experiment: Compose, slurm: Slurm, tmp_path: Path) -> None:
    (run,) = runs_of(experiment, tmp_path / "runs", [])
    submit([run])
    slurm.jobs["2_0"] = Job("2_0", "PENDING", reason="Dependency")
    assert state_of(run.run.record(), slurm.jobs).why == f"waits for its learning-rate finder {run.finder.run.id}"  # type: ignore[union-attr]
    slurm.jobs["1_0"] = Job("1_0", "CANCELLED")
    slurm.jobs["2_0"] = Job("2_0", "PENDING", reason="DependencyNeverSatisfied")
    told = state_of(run.run.record(), slurm.jobs)
    assert (told.state, told.live) == ("CANCELLED", False) and "is CANCELLED: cancelled; " in told.why


# -- without Slurm, and what is shown --------------------------------------------------------------------------

BACKEND = """
from truba_runner.config import lr_find
from truba_runner.training import rate_suggestions
from truba_runner.training.found_rate import found_rate, record

def train(context):
    rate = found_rate(context, lambda finder: look(context, finder))
    return {"metrics": {"val_loss": rate}, **record(context)}

def find(context):
    return {"suggestions": look(context, lr_find.stage_of(context.experiment))}

def look(context, finder):
    if context.experiment.train.seed == 1:
        raise RuntimeError("no curve")
    rates = [1e-7 * 1e8 ** (step / 100) for step in range(100)]
    losses = [2 + (step - 60 - context.experiment.train.seed) ** 2 / 1000 for step in range(100)]
    return rate_suggestions.keep(context, finder, rates, losses)
"""
REGISTERED = """
import os
import truba_runner.training
from truba_runner.config import backends
backends.TRAITS["tiny"] = backends.Traits(task_per_gpu=False, multi_node=False)
truba_runner.training.__path__.append(os.path.dirname(__file__))
"""


@pytest.mark.programs
def test_without_slurm_each_finder_runs_before_its_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site" / "tiny").mkdir(parents=True)
    (tmp_path / "site" / "sitecustomize.py").write_text(REGISTERED)
    (tmp_path / "site" / "tiny" / "train.py").write_text(BACKEND)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "none.py").write_text("")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path / 'site'}"}

    def submit(*arguments: str) -> CompletedProcess[str]:
        with knowing(tmp_path / "site"):
            return truba(*arguments, cwd=tmp_path, environment=environment)

    own = ["+experiment=mnist", "cluster=local", "resources.gpus=0", "data.name=digits", "job.module=none"]
    own += ["job.backend=tiny", "train.lr_find=minimum*2"]
    done = submit("-m", "sweep=lr_find", *own, "train.seed=0,1")
    assert done.returncode == 1 and "1 trained, 1 failed" in done.stdout and "no curve" in done.stderr, done.stderr
    monkeypatch.chdir(tmp_path)
    (sweep,) = (tmp_path / "runs" / ".sweeps").iterdir()
    assert main(["status", sweep.name, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["runs"]
    # The lowest point is at the 60th step; what is suggested is a tenth of its rate.
    rate = pytest.approx(2 * 1e-7 * 1e8**0.6 / 10, rel=1e-6)
    assert first["lr_find"]["learning_rate"] == rate and first["metrics"] == {"val_loss": rate}
    assert first["lr_find"]["takes"] == "minimum*2" and set(first["lr_find"]["suggestions"]) == {
        "minimum", "steep", "valley", "slide",
    }  # fmt: skip
    assert second["lr_find"]["state"] == "FAILED" and second["lr_find"]["learning_rate"] is None
    assert "its learning-rate finder mnist-lr_find-" in second["why"] and "no curve" in second["why"]

    assert main(["status", sweep.name, "--csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("run,train.seed,found_rate,lr_find_minimum,lr_find_steep,lr_find_valley,lr_find_slide,")
    assert main(["status", sweep.name]) == 0
    shown = capsys.readouterr().out
    assert "found rate" in shown and "0.00126 (minimum*2)" in shown
    assert main(["status"]) == 0
    assert "lr_find" not in capsys.readouterr().out, "a finder shows in its sweep's table"
    assert main(["status", sweep.name, "--plot"]) == 0
    pictures = [Path(line) for line in capsys.readouterr().out.split()]
    assert [file.name for file in pictures] == ["lr_find.png", "val_loss.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in pictures)

    # A single run does both itself, and is the same run.
    done = submit("sweep=lr_find", *own)
    assert done.returncode == 0 and f"{first['run']} has finished already" in done.stdout
    done = submit("sweep=lr_find", *own, "fresh=true")
    assert done.returncode == 0, done.stderr
    anew = RunDir(tmp_path / "runs" / f"{first['run']}.2")
    assert anew.rate_curve("find").suggestions == first["lr_find"]["suggestions"]
    assert anew.result()["lr_find"]["learning_rate"] == rate and anew.result()["lr_find"]["finder"] == anew.id
