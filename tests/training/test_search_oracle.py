"""The oracle's steps against plain Keras Tuner: the same trials, value for value, though each begins from a file."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from truba_runner.config import schema
from truba_runner.errors import Failed
from truba_runner.search.directory import SearchDir
from truba_runner.search.leases import Lease
from truba_runner.search.worker import oracle, steps

# As the tutorial's, and with what makes a space hard: logarithms, conditions, names that only show on a branch.
JOB = """
def build_model(hp):
    hp.Int("units", min_value=32, max_value=512, step=32)
    hp.Float("rate", 1e-4, 1e-1, sampling="log")
    if hp.Boolean("deep"):
        hp.Choice("second", values=[8])
    kind = hp.Choice("kind", values=["plain", "dropout"])
    with hp.conditional_scope("kind", ["dropout"]):
        hp.Float("dropout", 0.1, 0.5, step=0.1)
"""
SEEDS = [1, 7]
# Keras Tuner's own.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]


def score(values: dict[str, Any], epoch: int, execution: int) -> float:
    """A metric that falls and rises again, and depends on everything."""
    rate = values["rate"]
    wave = abs(hash((values["units"], round(rate, 9), values.get("dropout"), execution)) % 1000) / 1000
    return 1 / (1 + epoch) + wave + (0.02 * (epoch - 4) ** 2) * rate * 10


def histories(values: dict[str, Any], executions: int) -> list[dict[str, list[float]]]:
    """A trial's metrics, one mapping an execution; None stands for a trial that raises."""
    first, last = int(values.get("tuner/initial_epoch", 0)), int(values.get("tuner/epochs", 3))
    return [
        {
            "loss": [score(values, epoch, 0) for epoch in range(first, last)],
            "val_loss": [score(values, epoch, execution) for epoch in range(first, last)],
        }
        for execution in range(executions)
    ]


def fails(values: dict[str, Any]) -> bool:
    return values["units"] % 128 == 0


def asked(values: dict[str, Any]) -> dict[str, Any]:
    """What build_model has asked for, as the Keras backend tells it."""
    import keras_tuner

    module: dict[str, Any] = {}
    exec(JOB, module)
    hp = keras_tuner.HyperParameters()
    hp.values = {name: value for name, value in values.items() if not name.startswith("tuner/")}
    if "hp" in module["build_model"].__code__.co_varnames:
        module["build_model"](hp)
    return dict(hp.get_config())


def settings(kind: str, **changes: Any) -> dict[str, Any]:
    given = {"kind": kind, "objective": "val_loss", "max_epochs": 9, "seed": 1, **changes}
    if kind in {"random", "bayesian", "grid"}:
        given.setdefault("max_trials", 16)
    return given


# -- here ----------------------------------------------------------------------------------------------------------


class Here:
    """A search whose trials are not trained: their metrics are written down as a run would."""

    def __init__(self, folder: Path, **sweep: Any) -> None:
        self.search = SearchDir(folder / "search")
        self.search.create()
        job = folder / "job.py"
        job.write_text(JOB)
        values = {
            "name": "test",
            "job": {"module": "job"},
            "data": {"name": "none", "folder": str(folder)},
            "train": {"epochs": 3},
            "resources": {"partition": "", "account": "", "gpus": 0},
            "cluster": {"name": "test"},
            "environment": {"name": "test"},
            "sweep": sweep,
        }
        self.experiment = schema.experiment_from(values)
        self.search.write_config(asdict(self.experiment))
        self.failing = False
        # Trials whose checkpoints are taken away.
        self.over: set[str] = set()
        self.about = steps.describe(self.experiment)
        steps.begin(str(self.search.path), self.about, ["w0", "start"], {"job_file": str(job)}, str(folder))

    def train(self, answer: dict[str, Any]) -> dict[str, Any]:
        lease = Lease(*answer["lease"])
        message = {"lease": asdict(lease), "status": "COMPLETED", "message": ""}
        if self.failing and fails(answer["values"]):
            return {**message, "status": "INVALID", "message": "ValueError: on purpose"}
        after = int(answer["values"].get("tuner/initial_epoch", 0))
        for index, metrics in enumerate(histories(answer["values"], self.experiment.sweep.executions_per_trial)):
            run = self.search.trial(lease.trial, index, lease.retry)
            run.create()
            # A run that goes on from another's checkpoint has that one's epochs in its history too.
            rows = [{"epoch": epoch + 1, **dict.fromkeys(metrics, 0.001)} for epoch in range(after)]
            rows += [
                {"epoch": after + index + 1, **{name: values[index] for name, values in metrics.items()}}
                for index in range(len(metrics["loss"]))
            ]
            run.write_history(rows)
            run.write_result({"metrics": rows[-1], "hyperparameters": asked(answer["values"])})
        return message

    def step(
        self, outcome: dict[str, Any] | None, worker: str = "w0", ask: bool = True, start: str = "start"
    ) -> dict[str, Any]:
        answer = steps.step(str(self.search.path), self.about, [worker, start], [], outcome, ask)
        assert self.over <= set(answer["over"]), "what is over stays so, also for workers that have not heard of it"
        self.over = set(answer["over"])
        assert answer.get("values", {}).get("tuner/trial_id") not in self.over
        return answer

    def run(self) -> list[dict[str, Any]]:
        answer = self.step(None)
        while "lease" in answer:
            answer = self.step(self.train(answer))
        return self.trials()

    def trials(self) -> list[dict[str, Any]]:
        return list(json.loads(self.search.state_file.read_text())["trials"].values())


# -- plain Keras Tuner ---------------------------------------------------------------------------------------------


def plain(folder: Path, failing: bool = False, **sweep: Any) -> list[dict[str, Any]]:
    import keras
    import keras_tuner

    module: dict[str, Any] = {}
    exec(JOB, module)
    kind, executions = sweep.pop("kind"), sweep.pop("executions_per_trial", 1)
    classes = {
        "hyperband": keras_tuner.Hyperband,
        "random": keras_tuner.RandomSearch,
        "bayesian": keras_tuner.BayesianOptimization,
        "grid": keras_tuner.GridSearch,
    }
    if kind != "hyperband":
        sweep.pop("max_epochs")

    class Plain(classes[kind]):  # type: ignore[misc]
        def run_trial(self, trial: Any, *arguments: Any, **named: Any) -> Any:
            values = trial.hyperparameters.values
            module["build_model"](trial.hyperparameters)
            if failing and fails(values):
                raise ValueError("on purpose")
            found = []
            for metrics in histories(values, executions):
                record = keras.callbacks.History()
                record.history = metrics
                found.append(record)
            return found

    tuner = Plain(module["build_model"], directory=str(folder), project_name="plain", **sweep)
    tuner.search(verbose=0)
    return [trial.get_state() for trial in tuner.oracle.trials.values()]


def told(trials: list[dict[str, Any]]) -> list[Any]:
    """What has to be equal of trials; Python's hash differs from process to process, not within one."""
    return [
        (
            trial["trial_id"], trial["hyperparameters"]["values"], trial["status"], trial["score"], trial["best_step"],
            trial["metrics"],
        )
        for trial in trials
    ]  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("hyperband", {}),
        ("hyperband", {"hyperband_iterations": 2, "factor": 2, "max_epochs": 4, "executions_per_trial": 2}),
        ("random", {"executions_per_trial": 3}),
        ("bayesian", {}),
        ("grid", {"max_trials": 40}),
    ],
)
def test_one_workers_trials_are_those_of_keras_tuner(tmp_path: Path, kind: str, changes: Any, seed: int) -> None:
    sweep = settings(kind, **{**changes, "seed": seed})
    ours, theirs = Here(tmp_path, **sweep).run(), plain(tmp_path, **sweep)
    assert len(ours) > 10
    assert told(ours) == told(theirs)


@pytest.mark.parametrize("kind", ["hyperband", "random"])
def test_trials_that_fail_are_retried_and_passed_over_as_in_keras_tuner(tmp_path: Path, kind: str) -> None:
    sweep = settings(kind, max_retries_per_trial=1, max_consecutive_failed_trials=9)
    here = Here(tmp_path, **sweep)
    here.failing = True
    ours, theirs = here.run(), plain(tmp_path, failing=True, **sweep)
    assert "FAILED" in {trial["status"] for trial in ours}
    assert told(ours) == told(theirs)


def test_a_search_with_too_many_failures_in_a_row_is_given_up(tmp_path: Path) -> None:
    here = Here(tmp_path, **settings("random", max_consecutive_failed_trials=2))
    answer = here.step(None)
    for _ in range(2):
        answer = here.step({"lease": asdict(Lease(*answer["lease"])), "status": "INVALID", "message": "broken"})
    assert "consecutive failures" in answer["failed"] and "broken" in answer["failed"]
    assert "consecutive" in here.step(None)["failed"]


def test_a_metric_that_training_has_not_ends_the_search_at_its_first_trial(tmp_path: Path) -> None:
    here = Here(tmp_path, **settings("random", objective="val_los", direction="min"))
    assert "Did you mean val_loss" in here.step(here.train(here.step(None)))["failed"]


def test_an_objective_without_a_direction_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="sweep.direction"):
        Here(tmp_path, **settings("random", objective="error_rate"))


def test_a_space_that_is_empty_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.JOB", "def build_model():\n    pass\n")
    with pytest.raises(Failed, match="nothing to search"):
        Here(tmp_path, **settings("random"))


@pytest.mark.parametrize("kind", ["hyperband", "grid"])
def test_steps_that_are_killed_at_every_write_come_to_the_same_trials(tmp_path: Path, kind: str) -> None:
    sweep = settings(kind, max_epochs=3, max_trials=8)
    here, kills = Here(tmp_path, **sweep), 0

    def step(outcome: dict[str, Any] | None) -> dict[str, Any]:
        nonlocal kills
        for number in itertools.count(1):
            # A new start each time: what the one before has leased and not said is free.
            made = stopped_at_event(number, lambda number=number: here.step(outcome, start=f"start{number}"))
            if made is not None:
                return made
            kills += 1
        raise AssertionError

    answer = step(None)
    while "lease" in answer:
        answer = step(here.train(answer))
    sweep.pop("max_trials") if kind == "hyperband" else None
    assert kills > 5 * len(here.trials())
    assert told(here.trials()) == told(plain(tmp_path, **sweep))


def stopped_at_event(number: int, work: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """What `work` returns in a process of its own; None if that was killed at its number-th open, rename or lock."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        seen = 0

        def audit(event: str, arguments: Any) -> None:
            nonlocal seen
            if event in {"open", "os.rename", "os.link", "os.remove", "fcntl.lockf"}:
                seen += 1
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(audit)
        try:
            answer = work()
            seen = -1000  # What comes now is the test's.
            os.write(writer, json.dumps(answer).encode())
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (0 if text else -signal.SIGKILL)
    return dict(json.loads(text)) if text else None


# -- several workers -----------------------------------------------------------------------------------------------


def rounds(trials: list[dict[str, Any]]) -> set[Any]:
    """The trials of each bracket and round, whatever their number and whoever trained them."""
    found = [{**trial["hyperparameters"]["values"]} for trial in trials]
    for values in found:
        values.pop("tuner/trial_id", None)
    return {tuple(sorted(values.items())) for values in found}


@pytest.mark.parametrize("order", ["last", "first", "turns"])
def test_hyperbands_trials_hang_on_no_workers_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    # A name that a model asks for on a branch alone joins the space when the first such trial is told, sooner or later.
    monkeypatch.setattr(f"{__name__}.JOB", JOB.replace('if hp.Boolean("deep")', 'hp.Boolean("deep")\n    if True'))
    sweep = settings("hyperband")
    alone = Here(tmp_path / "alone", **sweep) if (tmp_path / "alone").mkdir() is None else None
    assert alone is not None
    expected = rounds(alone.run())
    here = Here(tmp_path, **sweep)
    pick: Callable[[list[str]], str] = {
        "last": lambda busy: busy[-1],
        "first": lambda busy: busy[0],
        "turns": lambda busy: busy[len(here.trials()) % len(busy)],
    }[order]
    workers = [f"w{index}" for index in range(6)]
    busy: dict[str, Any] = {}
    while True:
        # Whoever is idle asks; one of the busy then ends.
        answers = {worker: here.step(None, worker) for worker in workers if worker not in busy}
        busy |= {worker: answer for worker, answer in answers.items() if "lease" in answer}
        if any(answer.get("finished") for answer in answers.values()):
            break
        worker = pick([*busy])
        here.step(here.train(busy.pop(worker)), worker, ask=False)
    assert not busy
    assert rounds(here.trials()) == expected and len(here.trials()) == len(expected)


def test_a_bayesian_search_takes_a_running_trial_for_no_better_than_it_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A process that was never fitted takes a running trial for one that came to about 1, whatever the others came to.
    monkeypatch.setattr(f"{__name__}.score", lambda values, epoch, execution: 100 + values["rate"])
    here = Here(tmp_path, **settings("bayesian", num_initial_points=4))
    answer = here.step(None)
    for _ in range(4):
        answer = here.step(here.train(answer))
    state = json.loads(here.search.state_file.read_text())
    made = oracle.load(here.experiment.sweep, state["oracle"], state["trials"])
    fitted: list[Any] = []
    fit = made.gpr.fit
    monkeypatch.setattr(made.gpr, "fit", lambda x, y: (fitted.append(y), fit(x, y)))
    found = {"fun": 0.0, "nit": 1, "status": 0, "success": True, "message": ""}
    monkeypatch.setattr("scipy.optimize.minimize", lambda function, x0, **_: SimpleNamespace(x=x0, **found))
    made.populate_space("next")
    assert len(fitted[-1]) == 5 and min(fitted[-1]) > 90


def test_what_a_space_from_yaml_asks_is_what_hp_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.JOB", "def build_model():\n    pass\n")
    space = {
        "units": {"int": {"min_value": 32, "max_value": 512, "step": 32}},
        "rate": {"float": {"min_value": 1e-4, "max_value": 0.1, "sampling": "log"}},
        "train.optimizer": {"choice": ["adam", "sgd"]},
        "data.options.flip": {"boolean": None},
    }
    ours = Here(tmp_path, **settings("random", space=space)).run()
    monkeypatch.setattr(
        f"{__name__}.JOB",
        """
def build_model(hp):
    hp.Int("units", min_value=32, max_value=512, step=32)
    hp.Float("rate", 1e-4, 1e-1, sampling="log")
    hp.Choice("train.optimizer", ["adam", "sgd"])
    hp.Boolean("data.options.flip")
""",
    )
    assert told(ours) == told(plain(tmp_path, **settings("random")))
