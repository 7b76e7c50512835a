"""A search by workers that are stopped and killed at any moment comes to what one undisturbed worker finds."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cluster import ENDED, Cluster
from truba import ROOT, Truba, run_dirs

from truba_runner.runs import damage
from truba_runner.runs.run_directory import RunDir

_names = (f"search{number}" for number in itertools.count())

EXPERIMENT = """# @package _global_
name: parabola
job: {module: nothing, backend: plain, options: {rate: 0.1, shift: 0, pause: 0}}
data: {name: none}
train: {epochs: 2}
sweep:
  direction: min
  lease_seconds: 4
  space:
    job.options.rate: {float: {min_value: 0.001, max_value: 0.4, sampling: log}}
    job.options.shift: {float: {min_value: 0.0, max_value: 0.1}}
"""


class Search:
    """A search on the cluster, as a test watches it."""

    # What chooses the experiment.
    experiment = ["+experiment=parabola"]
    python_path = f"{ROOT}:{ROOT / 'tests' / 'plain_backend'}"
    job = ""

    def __init__(self, truba: Truba, *overrides: str) -> None:
        self.truba = truba
        truba.environment["PYTHONPATH"] = self.python_path
        (truba.project / "conf" / "experiment").mkdir(parents=True, exist_ok=True)
        truba.write("conf/experiment/parabola.yaml", EXPERIMENT)
        truba.write("jobs/nothing.py", self.job)
        self.command = [*self.experiment, f"name={truba.project.name}", truba.runs_folder(), *overrides]
        self.told_at_submission = self.submit()
        (self.path,) = run_dirs(truba.project)

    def submit(self) -> str:
        done = self.truba(*self.command, timeout=600)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def state(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.path / "state.json").read_text()))
        except FileNotFoundError:
            return {"trials": {}, "open": {}, "oracle": {"end_order": []}}

    def told(self) -> int:
        return len(self.state()["oracle"]["end_order"])

    def over(self) -> bool:
        return (self.path / "result.json").exists()

    def processes(self) -> list[int]:
        """Of workers and what they have started, wherever they run."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                here = entry.name.isdigit() and Path(os.readlink(entry / "cwd")).is_relative_to(self.path)
                if here and b"truba_runner.search" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def job_ids(self) -> set[str]:
        jobs = set()
        for worker in (self.path / "workers").iterdir():
            lines = (worker / "submissions.jsonl").read_text().splitlines() if worker.name[0] != "." else []
            jobs |= {json.loads(line)["job_id"] for line in lines if '"submitted"' in line}
        return jobs

    def stopped(self) -> bool:
        """Whether all workers are cancelled; one that is being preempted does not listen until it waits again."""
        self.truba.cluster.run(["scancel", *self.job_ids()], check=False)
        rows = [row.split("|") for row in self.queue().splitlines()]
        return all(state in ENDED for job, state in rows if job in self.job_ids())

    def queue(self) -> str:
        return self.truba.cluster.run(["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T"]).stdout

    def log(self) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted((self.path / "logs").iterdir()))

    def wait_until(self, condition: Callable[[], bool], seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not in time: {self.told()} told\n{self.log()[-5000:]}"
            time.sleep(0.05)

    def result(self, seconds: float = 400) -> dict[str, Any]:
        self.wait_until(self.over, seconds)
        return dict(json.loads((self.path / "result.json").read_text()))

    def found(self) -> dict[Any, float]:
        """The score of each trial, by its bracket, its round and its values: whatever its number."""
        scores = {}
        for trial in self.state()["trials"].values():
            values = {name: value for name, value in trial["hyperparameters"]["values"].items() if name[-3:] != "_id"}
            scores[tuple(sorted(values.items()))] = trial["score"]
        return scores


@pytest.fixture
def truba(cluster: Cluster) -> Iterator[Truba]:
    made = Truba(cluster, next(_names))
    yield made
    cluster.run(["scancel", "--user", made.user], check=False)


def check_told_once(search: Search, trials: int, objective: str = "val_loss") -> None:
    state = search.state()
    assert sorted(state["oracle"]["end_order"]) == sorted(state["trials"]), "none lost, none told twice"
    assert len(state["trials"]) == trials and not state["open"]
    for trial in state["trials"].values():
        (seen,) = trial["metrics"]["metrics"][objective]["observations"]
        assert len(seen["value"]) == 1
    lines = [line for line in search.log().splitlines() if line.startswith("trial ") and f": {objective} " in line]
    # One that was killed between telling and printing has told all the same.
    assert len(lines) == len({line.split()[1] for line in lines}) <= trials
    runs = [RunDir(path) for folder in ("trials", "workers") for path in (search.path / folder).iterdir()]
    assert not [*filter(None, map(damage.of_run, runs))], "what is written is what is read"


def test_six_workers_that_are_killed_every_few_seconds(truba: Truba, cluster: Cluster) -> None:
    settings = ["sweep=hyperband", "sweep.max_epochs=9", "job.options.pause=0.3"]
    alone = Search(Truba(cluster, f"{truba.project.name}-alone"), *settings, "job.options.pause=0", "cluster=local")
    expected = alone.found()
    search = Search(truba, *settings, "sweep.workers=6", "resources.partition=lowprio")
    chance, node = random.Random(5), ""
    search.wait_until(lambda: search.told() >= 1)
    for turn in range(12):
        if search.over():
            break
        before = search.told()
        if turn == 2:
            node = node_of(search)
            cluster.node_down(node)
        elif turn == 4:
            preempt(cluster)
        elif turn == 6:
            search.wait_until(search.stopped)
            assert "submitted 6 jobs" in search.submit()
        elif victims := search.processes():
            with suppress(ProcessLookupError):
                os.kill(chance.choice(victims), signal.SIGKILL)
        time.sleep(chance.uniform(1, 2.5))  # The moment is the test's subject.
        # Something in between, so that it comes to an end.
        search.wait_until(lambda before=before: search.told() > before or search.over())  # type: ignore[misc]
    result = search.result()
    if node:
        cluster.node_up(node)
    assert search.found() == expected
    check_told_once(search, len(expected))
    best = min(expected.values())
    assert result["trials"] == len(expected) and result["best"][0]["score"] == best
    assert result["best"][0]["metrics"]["test_loss"] == best
    assert max(len([*trial.rglob("*")]) for trial in (search.path / "trials").iterdir()) <= 12


class HelpedSearch(Search):
    """Whose job begins with a module of the project's."""

    job = "import helper\n\nhelper.begin()\n"


def test_a_search_trains_what_was_submitted_and_tells_of_a_fault_in_the_users_own_file(truba: Truba) -> None:
    truba.write("helper.py", 'def begin():\n    raise ValueError(f"as in {__file__}")\n')
    search = HelpedSearch(truba, "sweep=random", "sweep.max_trials=3", "resources.gpus=1", "job.options.pause=0.2")
    (job_id,) = search.job_ids()
    truba.cluster.wait_for_state(f"{job_id}", "FAILED", timeout=240)
    own, job = truba.project / "helper.py", truba.project / "jobs" / "nothing.py"
    assert (
        f'File "{own}", line 2, in begin\n    raise ValueError' in search.log() and "/truba-60001" not in search.log()
    )
    error = json.loads((search.path / "workers" / f"{search.path.name}-w0" / "progress.json").read_text())["error"]
    assert error["message"] == f"ValueError: as in {own} at {job}:3: helper.begin()"
    # Mended, the same command goes on; what is edited from then on is none of the search's.
    truba.write("helper.py", "from pathlib import Path\n\ndef begin():\n    Path('began').touch()\n")
    assert "submitted 1 job" in search.submit()
    search.wait_until(lambda: search.told() >= 1)
    truba.write("helper.py", "raise RuntimeError('edited while it goes on')\n")
    assert (search.result()["trials"], search.result()["failed"]) == (3, 0)
    assert all((trial / "began").exists() for trial in (search.path / "trials").iterdir())


def test_another_users_directory_is_refused(truba: Truba, cluster: Cluster) -> None:
    search = Search(truba, "sweep=random", "sweep.max_trials=1", "sweep.directory=mine", "resources.gpus=1")
    before = search.result()
    stranger = Truba(cluster, f"{truba.project.name}-stranger", user="mehmet")
    stranger.environment["PYTHONPATH"] = truba.environment["PYTHONPATH"]
    (stranger.project / "conf" / "experiment").mkdir(parents=True)
    stranger.write("conf/experiment/parabola.yaml", EXPERIMENT)
    stranger.write("jobs/nothing.py", "")
    refused = stranger(*search.command)
    assert refused.returncode == 2 and "it belongs to another user" in refused.stderr, refused.stderr
    assert search.result() == before
    assert search.path.stat().st_mode & 0o077 == 0


class PetsSearch(Search):
    """Over the lesson's breeds: a small network, on small crops of the photographs that the packages bring."""

    experiment = [
        "+experiment=pets", "data.name=crops", "data.workers=0", "data.options.size=32", "+data.options.item_size=40",
        "train.batch_size=8", "train.epochs=1", "job.options.arch=squeezenet1_1", "job.options.pretrained=false",
        "sweep.objective=val_error_rate", "sweep.direction=min", "tensorboard.enabled=false",
        "+sweep.space={train.learning_rate:{float:{min_value:1e-4,max_value:1e-2,sampling:log}}}",
    ]  # fmt: skip
    python_path = str(ROOT)


def test_two_workers_search_over_a_learner_and_the_command_waits_for_them(truba: Truba) -> None:
    data = f"data.folder={truba.project / 'data'}"
    search = PetsSearch(truba, data, "sweep=random", "sweep.max_trials=2", "sweep.workers=2", "launcher.wait=true")
    result = search.result(seconds=0)
    check_told_once(search, 2, "val_error_rate")
    best = min(trial["score"] for trial in search.state()["trials"].values())
    assert result["metrics"]["val_error_rate"] == result["best"][0]["metrics"]["val_error_rate"] == best
    assert len(search.job_ids()) == 2
    assert 0 < best < 1 and f"val_error_rate {best:.4f}" in search.told_at_submission


def test_a_command_waits_for_all_of_its_searches_and_tells_of_one_that_fails(truba: Truba) -> None:
    settings = ["sweep.max_trials=1", "sweep.max_consecutive_failed_trials=1", "launcher.wait=true", "resources.gpus=1"]
    search = Search(truba, "sweep=random", *settings)
    assert search.over()
    both = ["sweep=random,grid", "+job.options.fail=true"]
    failing = truba("-m", *(one for one in search.command if one != "sweep=random"), *both, timeout=300)
    assert failing.returncode == 1 and failing.stderr.count("has not finished") == 2, failing.stderr
    assert failing.stdout.count("submitted 1 job as array") == 2


def node_of(search: Search) -> str:
    for worker in (search.path / "workers").iterdir():
        lines = (worker / "submissions.jsonl").read_text().splitlines() if worker.name[0] != "." else []
        for line in reversed(lines):
            if '"started"' in line:
                return str(json.loads(line)["host"])
    raise AssertionError("no worker has started")


def preempt(cluster: Cluster) -> None:
    """A job that wants every node on which the search may run."""
    every = ("akya1", "akya2", "akya3", "akya4")
    cluster.preempt([node for node in every if cluster.wait_for_node(node, ANY_STATE)[:4] != "down"])


ANY_STATE = {
    *("idle", "mixed", "allocated", "down", "down*", "idle*", "mixed*", "allocated*", "completing", "completing*"),
    *("draining", "drained", "draining*", "drained*"),
}
