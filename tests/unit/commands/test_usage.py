"""`truba usage`, and the warning of a submission that exceeds what is left; on the real Slurm in tests/slurm."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from truba_runner.commands import usage
from truba_runner.config.schema import Experiment
from truba_runner.rules.experiment import plan
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.sweep_directory import Member, SweepDir
from truba_runner.search.directory import SearchDir
from truba_runner.slurm import budget, jobs, queries
from truba_runner.slurm.budget import Asked
from truba_runner.slurm.client import SlurmError
from truba_runner.slurm.jobs import Use
from truba_runner.slurm.queries import Limit
from truba_runner.slurm.request import Request
from truba_runner.submission.prepared import Prepared
from truba_runner.submission.submission import Submission

REQUEST = Request(
    partition="akya-cuda", account="ayse", nodes=2, tasks_per_node=1, cpus_per_task=20, gpus=2, memory_gb=None,
    time_minutes=60, signal_seconds=90, constraint="",
)  # fmt: skip


def limited(monkeypatch: pytest.MonkeyPatch, *limits: Limit) -> None:
    monkeypatch.setattr(queries, "limits", lambda account: list(limits))


def test_a_submission_is_warned_of_that_exceeds_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    # 40 cores for an hour are 2,400 core-minutes.
    limited(monkeypatch, Limit("ayse", "GrpTRESMins", "cpu", "10000", "7600"))
    assert list(budget.warnings([Asked(REQUEST, 1, 60)])) == []
    (warning,) = budget.warnings([Asked(REQUEST, 2, 60)])
    assert warning.startswith("this submission may use up to 80 core-hours, but the account ayse has only 40 left")
    # Two arrays of a sweep exceed together what each would find; one of another account does not count.
    assert list(budget.warnings([Asked(REQUEST, 1, 60), Asked(replace(REQUEST, account="proj1"), 1, 60)])) == []
    assert list(budget.warnings([Asked(REQUEST, 1, 30), Asked(REQUEST, 3, 30)])) == [warning]
    limited(monkeypatch, Limit("ayse", "GrpTRESMins", "gres/gpu", "600", "600"))
    assert "4 GPU-hours" in next(budget.warnings([Asked(REQUEST, 1, 60)]))
    limited(monkeypatch, Limit("ayse", "GrpTRES", "cpu", "1", "1"), Limit("ayse", "GrpTRESMins", "mem", "1", "1"))
    assert list(budget.warnings([Asked(REQUEST, 1, 60)])) == []


def test_silence_of_slurm_stops_no_submission(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(account: str) -> list[Limit]:
        raise SlurmError("scontrol", "no answer", transient=True)

    monkeypatch.setattr(queries, "limits", silent)
    assert list(budget.warnings([Asked(REQUEST, 1, 60)])) == []


def test_a_chain_of_jobs_is_warned_of_as_a_whole(experiment: Callable[..., Experiment], tmp_path: Path) -> None:
    made = experiment("resources.time=10h", "resources.segment=2h")
    run = RunDir(tmp_path / "mnist-1")
    asked = Submission(Prepared(made, run, plan(made).request, Path("mnist.py"))).most()
    assert (asked.minutes, asked.of("cpu"), asked.of("gres/gpu")) == (600, 6000, 600)


def a_run(folder: Path, name: str, *job_ids: str, **intent: object) -> RunDir:
    run = RunDir(folder / name)
    run.create()
    run.append_submission(Event(Kind.INTENT, token=name, request={"account": "ayse"}, **intent))
    for job_id in job_ids:
        run.append_submission(Event(Kind.SUBMITTED, token=name, job_id=job_id))
    return run


def test_by_experiment_and_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run(tmp_path, "mnist-1", "1", "2")
    # Two that trained side by side in job 3: half of it each.
    a_run(tmp_path, "mnist-2", "3")
    a_run(tmp_path, "pets-1", "3")
    a_run(tmp_path, "pets-2", "local-7")
    sweep = SweepDir.of(tmp_path, "mnist-sweep-x")
    sweep.describe([Member("mnist-3", {"train.seed": 1})])
    sweep.append(Event(Kind.INTENT, token="mnist-3", tasks=[["mnist-3"]]))
    sweep.append(Event(Kind.SUBMITTED, token="mnist-3", job_id="4"))
    a_run(tmp_path, "mnist-3", sweep="mnist-sweep-x", array_index=0)
    used = {"1": Use(1, 3600, 0), "2": Use(2, 7200, 3600), "3": Use(1, 36_000, 7200), "4_0": Use(1, 1800, 0)}
    monkeypatch.setattr(jobs, "used", lambda ids: {job_id: used[job_id] for job_id in set(ids)})
    limited(monkeypatch, Limit("ayse", "GrpTRESMins", "cpu", "60000", "1500"))
    # For programs its words are the same in every language.
    with monkeypatch.context() as turkish:
        turkish.setenv("TRUBA_LANG", "tr")
        assert usage.main(["--json", "--runs", str(tmp_path)]) == 0
    in_turkish = capsys.readouterr().out
    assert usage.main(["--json", "--runs", str(tmp_path)]) == 0
    told = json.loads(out := capsys.readouterr().out)
    assert out == in_turkish
    rows = {(row["kind"], row["name"]): row for row in told["usage"]}
    mnist = rows["experiment", "mnist"]
    assert (mnist["runs"], mnist["starts"], mnist["core_hours"], mnist["gpu_hours"]) == (3, 5, 8.5, 2.0)
    assert (rows["experiment", "pets"]["runs"], rows["experiment", "pets"]["core_hours"]) == (2, 5.0)
    assert rows["sweep", "mnist-sweep-x"]["core_hours"] == 0.5
    assert told["limits"] == [{"account": "ayse", "unit": "core-hours", "limit": 1000.0, "left": 975.0}]
    assert usage.main(["--runs", str(tmp_path)]) == 0
    assert "account ayse: 25.0 of 1,000 core-hours used" in capsys.readouterr().out


def test_a_site_without_accounting_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limited(monkeypatch)
    a_run(tmp_path, "mnist-1", "local-7")
    monkeypatch.setattr(jobs, "used", lambda ids: {})
    assert usage.main(["--runs", str(tmp_path)]) == 0 and capsys.readouterr().err == ""
    a_run(tmp_path, "mnist-2", "1")
    assert usage.main(["--runs", str(tmp_path)]) == 0
    assert "accounting has no record of these runs' jobs" in capsys.readouterr().err


def test_a_searchs_workers_and_a_sweepers_job_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    search = SearchDir(tmp_path / "mnist-1")
    search.create()
    search.append_submission(Event(Kind.SEARCH))
    for index, job_id in enumerate(("7_0", "7_1")):
        worker = search.create_worker(index)
        worker.append_submission(Event(Kind.INTENT, token="t", request={"account": "proj1"}))
        worker.append_submission(Event(Kind.SUBMITTED, token="t", job_id=job_id))
    sweep = SweepDir.of(tmp_path, "mnist-sweep-x")
    sweep.describe([])
    a_run(sweep.path, "sweeper", "8")
    used = {"7_0": Use(1, 3600, 0), "7_1": Use(1, 7200, 0), "8": Use(1, 36_000, 0)}
    monkeypatch.setattr(jobs, "used", lambda ids: {job_id: used[job_id] for job_id in set(ids)})
    asked: list[str] = []
    monkeypatch.setattr(queries, "limits", lambda account: asked.append(account) or [])
    assert usage.main(["--json", "--runs", str(tmp_path)]) == 0
    rows = {(row["kind"], row["name"]): row for row in json.loads(capsys.readouterr().out)["usage"]}
    assert (rows["experiment", "mnist"]["runs"], rows["experiment", "mnist"]["core_hours"]) == (1, 3.0)
    assert (rows["sweep", "mnist-sweep-x"]["runs"], rows["sweep", "mnist-sweep-x"]["core_hours"]) == (0, 10.0)
    assert len(rows) == 2 and set(asked) == {"proj1", "ayse"}
