"""What a job does with what was seen on its nodes."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from truba_runner.config.schema import Experiment
from truba_runner.errors import Failed
from truba_runner.nodes import leave, ledger
from truba_runner.nodes.fault import Fault
from truba_runner.nodes.look import Look
from truba_runner.nodes.subject import Subject
from truba_runner.runs import restarts
from truba_runner.runs.checkpoints import Position
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.run_directory import RunDir
from truba_runner.slurm import job_environment
from truba_runner.worker import several_nodes

Compose = Callable[..., Experiment]


@pytest.fixture
def subject(experiment: Compose, tmp_path: Path) -> Subject:
    run = RunDir(tmp_path / "runs" / "mnist-0")
    run.create()
    return Subject([run], experiment(f"cluster.runs_folder={tmp_path}/runs", "resources.partition=akya-cuda"))


def looks_of(subject: Subject, monkeypatch: pytest.MonkeyPatch, nodes: str, *looks: Look) -> list[tuple[str, str]]:
    """The faults of the job's nodes, by node and check."""
    monkeypatch.setenv("SLURM_JOB_NODELIST", nodes)
    lines = "".join(json.dumps(asdict(seen)) + "\n" for seen in looks)
    printed = io.StringIO("srun: a line of Slurm's\n" + lines)
    faults = several_nodes.seen_on_several(subject.experiment.cluster.node_check, printed)[1]
    return [(fault.node, fault.check) for fault in faults]


def seen_on(node: str, ahead: float = 0.0, fault: str = "") -> Look:
    now = time.time()
    return Look(node, now + ahead, 0.1, {}, Fault(node, fault, "", now) if fault else None)


def test_of_several_nodes_each_fault_and_each_silent_node_counts(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert looks_of(subject, monkeypatch, "akya[1-2]", seen_on("akya1"), seen_on("akya2")) == []
    seen = seen_on("akya1", fault="gpus"), seen_on("akya2")
    assert looks_of(subject, monkeypatch, "akya[1-3]", *seen) == [("akya1", "gpus"), ("akya3", "answer")]


def test_if_no_node_answers_the_fault_is_not_theirs(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    assert looks_of(subject, monkeypatch, "akya[1-2]") == []


def test_a_clock_is_compared_with_those_of_the_other_nodes(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = seen_on("akya1"), seen_on("akya2", ahead=300), seen_on("akya3")
    assert looks_of(subject, monkeypatch, "akya[1-3]", *seen) == [("akya2", "clock")]
    # Of two nobody can say which one is wrong.
    assert looks_of(subject, monkeypatch, "akya[1-2]", *seen[:2]) == []


def bad(run: RunDir, node: str) -> None:
    run.append_submission(Event(Kind.LOOKED, time.time(), "7", node=node))
    run.append_submission(Event(Kind.BAD_NODE, time.time(), "7", node=node, check="gpus", message="no GPU"))


def left_in_the_end(subject: Subject, nodes: list[str], here: job_environment.Allocation) -> str:
    """What ends the run when it has met the nodes one after the other."""
    *before, last = nodes
    for node in before:
        bad(subject.runs[0], node)
        ledger.record_bad(Path(subject.experiment.cluster.runs_folder), "", Fault(node, "gpus", "no GPU", time.time()))
    with pytest.raises(Failed) as ended:
        leave.leave(subject.runs, here, subject.experiment, [Fault(last, "gpus", "no GPU", time.time())])
    return str(ended.value)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> job_environment.Allocation:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return job_environment.current()


def test_three_bad_nodes_in_a_row_may_be_the_jobs_fault(subject: Subject, here: job_environment.Allocation) -> None:
    said = left_in_the_end(subject, ["akya1", "akya2", "akya3"], here)
    assert all(f"{node}: gpus: no GPU" in said for node in ("akya1", "akya2", "akya3"))


def test_a_site_that_requeues_no_job_says_what_to_do(
    experiment: Compose, subject: Subject, here: job_environment.Allocation
) -> None:
    subject.experiment.cluster.requeue = False
    assert "the same command submits the run again" in left_in_the_end(subject, ["akya1"], here)
    (entry,) = ledger.bad_nodes(Path(subject.experiment.cluster.runs_folder), "", 7)
    assert entry.node == "akya1"


def test_a_node_that_the_user_named_is_not_left(subject: Subject, here: job_environment.Allocation) -> None:
    subject.experiment.resources.nodelist = "akya[1-2]"
    assert "resources.nodelist names bad nodes: akya1" in left_in_the_end(subject, ["akya1"], here)


def test_starts_that_left_a_bad_node_are_not_in_vain(subject: Subject) -> None:
    (run,) = subject.runs
    for node in ("akya1", "akya2"):
        bad(run, node)
    for number in range(restarts.FRUITLESS_STARTS):
        run.append_submission(Event(Kind.LOOKED, time.time(), "7", node=f"akya{number}"))
        restarts.begin(run, "7", Position(0, 0), Event())
        run.append_submission(Event(Kind.BAD_NODE, time.time(), "7", node=f"akya{number}", check="convolution"))
    restarts.begin(run, "7", Position(0, 0), Event())
    with pytest.raises(restarts.GaveUp):
        for _ in range(restarts.FRUITLESS_STARTS):
            restarts.begin(run, "7", Position(0, 0), Event())
