"""A sweep's table, pictures and records, and what its jobs may ask for."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from in_process import truba

from truba_runner.cli.main import main
from truba_runner.config.schema import Experiment, Sweep, experiment_from
from truba_runner.errors import Failed, Problem, Refused
from truba_runner.launch import wait
from truba_runner.rules import sweep as rules
from truba_runner.rules.experiment import plan
from truba_runner.runs import events
from truba_runner.runs.checkpoints import CheckpointStore, Position
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.record_shapes import ErrorRecord
from truba_runner.runs.run_directory import RunDir, config_text
from truba_runner.runs.sweep_directory import Member, SweepDir, identity
from truba_runner.slurm import capacity, client, commands, jobs
from truba_runner.status.sweep_plots import draw
from truba_runner.status.sweep_table import table
from truba_runner.storage.files import write_atomically
from truba_runner.submission.already import settled
from truba_runner.submission.outcome import Outcome
from truba_runner.submission.prepared import Prepared
from truba_runner.sweeps import array, submission
from truba_runner.training.summaries import hparams
from truba_runner.worker import canary

ROOT = Path(__file__).resolve().parents[3]
RATES, SEEDS = (0.1, 0.001, None), (0, 1)


@pytest.fixture
def sweep(tmp_path: Path) -> SweepDir:
    """Six runs: val_loss falls by epoch to rate + seed / 10 and rises again; the ones without a rate have no epoch."""
    made = SweepDir.of(tmp_path / "runs", "mnist-sweep-00000000")
    values = [{"train.learning_rate": rate, "train.seed": seed} for rate in RATES for seed in SEEDS]
    members = [Member(f"mnist-{number}", of) for number, of in enumerate(values)]
    made.describe(members, name="mnist", monitor="val_loss", mode="min")
    for member in members:
        run = made.run(member.run)
        run.create()
        run.append_submission(Event(Kind.LOCAL, job_id="local-1", pid=1, host="elsewhere"))
        if (rate := member.values["train.learning_rate"]) is not None:
            losses = [5.0, rate + member.values["train.seed"] / 10, 1.0, math.nan]
            run.write_history(
                [{"epoch": epoch, "val_loss": loss, "acc": epoch} for epoch, loss in enumerate(losses, 1)]
            )
            run.write_result({"metrics": {"val_loss": math.nan, "test_acc": 0.5}})
    return made


def test_last_and_best_are_told_apart(sweep: SweepDir) -> None:
    shown = table(sweep, {})
    assert (shown.metric, shown.mode, shown.keys) == ("val_loss", "min", ["train.learning_rate", "train.seed"])
    assert [row.best("val_loss", "min") for row in shown.rows] == [
        (0.1, 2), (0.2, 2), (0.001, 2), (0.101, 2), None, None,
    ]  # fmt: skip
    assert [row.state for row in shown.rows] == ["COMPLETED"] * 4 + ["UNKNOWN"] * 2
    assert math.isnan(shown.rows[0].last("val_loss") or 0) and shown.rows[0].last("acc") == 4
    assert table(sweep, {}, "acc").rows[0].best("acc", "max") == (4, 4)
    assert shown.rows[0].best("test_acc", "max") == (0.5, 0), "the result's own"


def test_sorting_puts_the_best_first_and_what_has_no_value_last(sweep: SweepDir) -> None:
    shown = table(sweep, {})
    assert [row.run for row in shown.sorted_by("val_loss")] == [f"mnist-{n}" for n in (2, 0, 3, 1, 4, 5)]
    upwards = table(sweep, {}, "val_loss", "max")
    assert upwards.rows[0].best("val_loss", upwards.mode) == (5.0, 1)
    rates = [row.values["train.learning_rate"] for row in shown.sorted_by("train.learning_rate")]
    assert rates == [0.001, 0.001, 0.1, 0.1, None, None]


def test_mean_and_spread_are_over_the_seeds_of_each_choice(sweep: SweepDir) -> None:
    groups = table(sweep, {}).over_seeds()
    assert [group["values"]["train.learning_rate"] for group in groups] == [0.1, 0.001, None]
    assert groups[0]["best"] == pytest.approx({"mean": 0.15, "spread": 0.1 / math.sqrt(2), "least": 0.1, "most": 0.2})
    assert groups[2]["best"] == {"mean": None, "spread": None, "least": None, "most": None}


def test_the_command_shows_it_in_every_form(sweep: SweepDir, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["status", "mnist-sw", "--runs", str(sweep.runs_folder)]
    assert main([*own, "--best", "val_loss", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [run["run"] for run in told["runs"]] == ["mnist-2"] and told["runs"][0]["last"] is None
    assert main([*own, "--csv", "--sort", "val_loss"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("run,train.learning_rate,train.seed,state,epoch,last_val_loss,best_val_loss,best_epoch")
    assert lines[1].startswith("mnist-2,0.001,0,COMPLETED,,nan,0.001,2,")
    assert main(own) == 0
    shown = capsys.readouterr().out
    assert "6 runs, 4 COMPLETED, 2 UNKNOWN" in shown and "0.1500 ± 0.0707" in shown
    assert main(["status", "--runs", str(sweep.runs_folder)]) == 0
    assert "4 COMPLETED, 2 UNKNOWN" in capsys.readouterr().out
    assert main([*own, "--best", "val_los"]) == 2
    assert "Did you mean val_loss" in capsys.readouterr().err
    assert main(["status", "mnist-0", "--runs", str(sweep.runs_folder), "--csv"]) == 2
    assert "these options need exactly one sweep" in capsys.readouterr().err


def test_the_picture_has_a_panel_a_key_and_one_over_all(sweep: SweepDir, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    panels: list[list[str]] = []
    saved = Figure.savefig

    def spy(self: Figure, *arguments: Any, **options: Any) -> None:
        panels.append([axes.get_xlabel() or axes.get_ylabel() for axes in self.axes])
        lines = self.axes[0].lines[0]
        assert sorted(lines.get_xdata()) == [0.001, 0.001, 0.1, 0.1] and self.axes[0].get_xscale() == "log"
        assert sorted(lines.get_ydata()) == [0.001, 0.1, 0.101, 0.2] and len(self.axes[2].lines) == 4
        saved(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", spy)
        file = draw(table(sweep, {}), tmp_path / "sweep.png")
    assert panels == [["train.learning_rate", "train.seed", "", "val_loss"]]
    assert file.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(Failed, match="nothing to draw"):
        draw(replace(table(sweep, {}), rows=table(sweep, {}).rows[4:]), tmp_path / "none.png")


def test_a_sweep_is_the_same_in_any_order_and_grows_in_batches(sweep: SweepDir) -> None:
    assert identity(["a", "a"], ["x", "y"]) == identity(["a"], ["y", "x"]) != identity(["a"], ["x"])
    assert identity(["a", "b"], ["x"]).startswith("several-sweep-")
    sweep.describe([Member("mnist-9", {"train.epochs": 3}), Member("mnist-0", {"train.seed": 99})])
    assert [member.run for member in sweep.members()][-2:] == ["mnist-5", "mnist-9"]
    assert sweep.values_of("mnist-0") == {"train.learning_rate": 0.1, "train.seed": 0}
    assert sweep.description()["keys"] == ["train.learning_rate", "train.seed", "train.epochs"]


def test_a_run_knows_what_slurm_told_of_its_array(sweep: SweepDir) -> None:
    run = sweep.run("mnist-0")
    run.append_submission(Event(Kind.INTENT, token="t", sweep=sweep.id, array_index=3), durable=False)
    sweep.append(Event(Kind.INTENT, token="t", job_file="job.py", tasks=[["mnist-0"]]))
    sweep.append(Event(Kind.INTENT, token="u", job_file="other.py", tasks=[]))
    assert run.submissions()[-1] == Event(Kind.INTENT, token="t", sweep=sweep.id, array_index=3, job_file="job.py")
    sweep.append(Event(Kind.SUBMITTED, token="t", job_id="7"))
    sweep.append(Event(Kind.SUBMITTED, token="u", job_id="8"))
    assert run.submissions()[-1] == Event(Kind.SUBMITTED, token="t", job_id="7_3")
    assert run.is_last_given_to("t") and not run.is_last_given_to("u")


def test_hparams_are_what_tensorboard_reads_back(tmp_path: Path) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    for _ in range(2):  # A run that is started again has one session all the same.
        values, metrics = {"train.seed": 3, "optimizer": "adam", "lr": None}, {"test_accuracy": 0.5, "note": None}
        hparams.write(tmp_path / "tensorboard", "mnist-0", values, True, metrics)
    (file,) = (tmp_path / "tensorboard").iterdir()
    reader, told = PyRecordReader_New(str(file)), {}
    for _ in range(3):
        reader.GetNext()
        for value in Event.FromString(reader.record()).summary.value:
            assert value.metadata.plugin_data.plugin_name == "hparams"
            told[value.tag] = HParamsPluginData.FromString(value.metadata.plugin_data.content)
    start = told["_hparams_/session_start_info"].session_start_info
    assert start.group_name == "mnist-0" and start.hparams["train.seed"].number_value == 3
    assert (start.hparams["optimizer"].string_value, start.hparams["lr"].string_value) == ("adam", "None")
    assert told["_hparams_/session_end_info"].session_end_info.status == 1
    reader.GetNext()
    points = Event.FromString(reader.record()).summary.value
    assert [(point.tag, point.simple_value) for point in points] == [("test_accuracy", 0.5)]


def test_hparams_of_a_single_run_are_what_decides_its_training() -> None:
    experiment = experiment_from(
        {
            "name": "mnist",
            "job": {"module": "mnist", "options": {"units": 32}},
            "data": {"name": "digits"},
            "train": {"learning_rate": 0.1, "optimizer": "sgd", "callbacks": ["EarlyStopping"]},
            "cluster": {"name": "test"},
            "environment": {"name": "test"},
            "resources": {"partition": "", "gpus": 0, "account": ""},
        }
    )
    values = hparams.values_of(experiment)
    assert {key: values[key] for key in ("train.learning_rate", "train.optimizer", "job.options.units")} == {
        "train.learning_rate": 0.1, "train.optimizer": "sgd", "job.options.units": 32,
    }  # fmt: skip
    assert values["data.name"] == "digits" and values["train.callbacks"] == ["EarlyStopping"]
    assert "train.loss" not in values and "train.metrics" not in values


PACKS = [
    (Sweep(pack=4), [], (4, 40, 1)),
    (Sweep(pack=4, share_gpus=True), [], (1, 10, 1)),
    (Sweep(pack=3), ["resources.partition=barbun", "resources.gpus=0"], (0, 20, 1)),
    (Sweep(pack=1), ["resources.gpus=2"], (2, 20, 1)),
]


@pytest.mark.parametrize(("asked", "overrides", "whole"), PACKS)
def test_a_job_for_several_runs_asks_for_all_of_them(
    experiment: Callable[..., Experiment], asked: Sweep, overrides: list[str], whole: tuple[int, int, int]
) -> None:
    one = replace(experiment(*overrides), sweep=asked)
    request = rules.allocation(plan(one).request, one)
    assert (request.gpus, request.cores, request.tasks_per_node) == whole
    assert not list(rules.problems(one, plan(one).request))


WRONG = [
    (Sweep(pack=5), [], "GPUs, and a node of akya-cuda has 4. Set sweep.pack=4 or less, or let the runs share"),
    (Sweep(pack=0), [], "it must be 1 or more"),
    (Sweep(max_parallel=0), [], "it must be 1 or more"),
    (Sweep(max_parallel=2, pack=3), [], "Set sweep.pack=2 or less, or sweep.max_parallel=3 or more"),
    (Sweep(pack=2), ["resources.nodes=2", "resources.gpus=2"], "cannot share them with other runs"),
    (Sweep(pack=3), ["resources.memory_gb=200"], "together ask for 600 GB"),
]


@pytest.mark.parametrize(("asked", "overrides", "words"), WRONG)
def test_what_a_sweep_may_not_ask(
    experiment: Callable[..., Experiment], asked: Sweep, overrides: list[str], words: str
) -> None:
    one = replace(experiment(*overrides), sweep=asked)
    assert words in "\n".join(str(problem) for problem in rules.problems(one, plan(one).request))


ASSOC = (
    "ClusterName=c Account=root UserName= Partition= GrpTRES=cpu=8(0),mem=N(0) GrpTRESMins=cpu=N(0)\n"
    "ClusterName=c Account=proj UserName= Partition= GrpJobs=N(0) GrpTRES=cpu=160(0),mem=N(0) GrpTRESMins=cpu=4(0)\n"
    "ClusterName=c Account=proj UserName=me(7) Partition= GrpTRES=cpu=40(0),mem=N(0) GrpTRESMins=cpu=N(0)\n"
    "ClusterName=c Account=proj UserName=other(8) Partition= GrpTRES=cpu=2(0),mem=N(0) GrpTRESMins=cpu=N(0)\n"
)


@pytest.mark.parametrize(("told", "limit"), [(ASSOC, 40), (ASSOC.replace("40(0)", "N(0)"), 160), ("", 0)])
def test_the_core_limit_is_the_accounts_or_ones_own(told: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "query", lambda argv: told)
    monkeypatch.setattr("getpass.getuser", lambda: "me")
    assert capacity.core_limit("proj") == limit


def test_a_shared_record_is_read_again_once_it_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    assert events.read(file) == []
    for count in (1, 2, 3):
        events.append(file, Event(Kind.LOCAL, job_id=str(count)))
        assert len(events.read(file)) == count


def test_a_local_sweep_has_a_table_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "broken.py").write_text("raise RuntimeError('on purpose')\n")
    own = ["+experiment=mnist", "cluster=local", "resources.gpus=0", "data.name=digits", "job.module=broken"]
    done = truba("-m", *own, "train.seed=1,2", cwd=tmp_path, environment=os.environ)
    assert done.returncode == 1, done.stderr
    (sweep,) = (tmp_path / "runs" / ".sweeps").iterdir()
    assert main(["status", sweep.name, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["runs"]
    assert [(row["values"], row["state"]) for row in rows] == [
        ({"train.seed": 1}, "FAILED"), ({"train.seed": 2}, "FAILED"),
    ]  # fmt: skip


def test_a_run_whose_sweep_has_gone_knows_what_it_had_itself(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "runs" / "mnist-1")
    run.create()
    run.append_submission(Event(Kind.INTENT, token="t", sweep="gone", array_index=0))
    assert run.submissions() == [Event(Kind.INTENT, token="t", sweep="gone", array_index=0)]


def test_of_the_runs_of_an_array_none_draws_a_picture(experiment: Callable[..., Experiment], sweep: SweepDir) -> None:
    one = experiment()
    prepared = Prepared(one, sweep.run("mnist-new"), plan(one).request, ROOT / "jobs" / "mnist.py")
    given = {"tasks": [[prepared]], "allocation": prepared.request, "places": 1, "max_parallel": 1}
    array.ArraySubmission(prepared, sweep=sweep, **given).record_intent()
    assert one.finish.plots
    assert prepared.run.read_config() == {**asdict(one), "finish": {"evaluate": True, "plots": False}}


def test_configs_that_are_written_together_read_as_those_that_are_written_alone(
    experiment: Callable[..., Experiment],
) -> None:
    made = experiment(
        "train.optimizer={class_name: SGD, config: {momentum: 0.9, nesterov: true}}", "train.metrics=[]",
        "+job.options.text='a\n\nb: #c'", "+job.options.deep={a: [1, {b: null}], c: ''}",
        "+train.class_weight={0: 1.0}",
    )  # fmt: skip
    texts = array._ConfigTexts()
    for rate in (0.1, 1e-05, None, 0.1):
        for seed in range(3):
            one = replace(made, train=replace(made.train, seed=seed, learning_rate=rate))
            assert yaml.safe_load(texts.of(one)) == yaml.safe_load(config_text(asdict(one))) == asdict(one)


@pytest.mark.parametrize(
    ("told", "size"), [("MailProg = x\nMaxArraySize            = 2001\nMaxJobCount = 7\n", 2001), ("nothing", 1001)]
)
def test_slurm_is_asked_how_large_an_array_may_be(told: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "query", lambda argv: told)
    assert capacity.max_array_size() == size


def test_tasks_of_an_array_that_never_began_are_known_to_accounting_each(monkeypatch: pytest.MonkeyPatch) -> None:
    told = "7_1|COMPLETED|p|0:01|1:00|n|0:0\n7_[0,3-5,9-13:2%4]|CANCELLED by 1000|p|0:00|1:00|None|0:0\n"
    monkeypatch.setattr(client, "query", lambda argv: told)
    known = jobs.accounting(["7_3"])
    assert {job_id: job.state for job_id, job in known.items()} == {
        "7_1": "COMPLETED", **{f"7_{task}": "CANCELLED" for task in (0, 3, 4, 5, 9, 11, 13)}
    }  # fmt: skip


@pytest.fixture
def begun(
    experiment: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], Prepared]:
    """Runs that Slurm has been given, as jobs 7_0, 7_1, …"""
    one, sweep = experiment(), SweepDir.of(tmp_path / "runs", "mnist-sweep-00000000")
    sweep.describe([])
    sweep.append(Event(Kind.INTENT, token="t", job_name="mnist-x2.t", job_sha256="then", tasks=[]))
    sweep.append(Event(Kind.SUBMITTED, token="t", job_id="7"))
    monkeypatch.setattr(jobs, "queue", dict)

    def make(index: int) -> Prepared:
        run = sweep.run(f"mnist-{index}")
        run.create()
        run.append_submission(Event(Kind.INTENT, token="t", sweep=sweep.id, array_index=index))
        return Prepared(one, run, plan(one).request, ROOT / "jobs" / "mnist.py")

    return make


def test_a_run_that_ends_while_slurm_is_asked_is_not_submitted_again(
    begun: Callable[[int], Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, fails = begun(0), begun(1)

    def queue() -> dict[str, jobs.Job]:
        ends.run.write_result({"metrics": {}})
        return {}

    monkeypatch.setattr(jobs, "queue", queue)
    outcomes = settled([ends, fails])
    assert [outcome and outcome.action for outcome in outcomes.values()] == ["finished", None]
    (ends.run.path / "result.json").unlink()
    again = settled([ends])[ends.run.id]
    assert again is not None and again.action == "finished"


def test_a_command_that_waits_goes_on_when_slurm_does_not_answer_for_a_while(
    begun: Callable[[int], Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(0).run
    answers = iter([True, True, False])

    def queue() -> dict[str, jobs.Job]:
        raise client.SlurmError("squeue", "no such thing", transient=next(answers))

    monkeypatch.setattr(jobs, "queue", queue)
    monkeypatch.setattr(wait, "_WAIT_SECONDS", 0)
    with pytest.raises(Failed, match="no such thing"):
        wait.wait_for([Outcome(run.id, str(run.path), "submitted", "7_0")])
    assert next(answers, None) is None


def test_nothing_that_goes_wrong_with_the_runs_that_wait_fails_the_canary(
    begun: Callable[[int], Prepared], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, sweep = begun(0).run, SweepDir.of(begun(0).run.path.parent, "mnist-sweep-00000000")
    sweep.append(Event(Kind.INTENT, token="ahead", goes_ahead=True, tasks=[[run.id]]))
    run.append_submission(Event(Kind.INTENT, token="ahead", sweep=sweep.id, array_index=0))
    # One of the arrays that wait is on record with its number.
    for token in ("noted", "sent"):
        sweep.append(Event(Kind.INTENT, token=token, canary=run.id, job_name=token, tasks=[]))
    sweep.append(Event(Kind.SUBMITTED, token="noted", job_id="8"))
    silence = client.SlurmError("squeue", "no answer", transient=True)

    def silent(_: str) -> list[str]:
        raise silence

    released: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(jobs, "jobs_named", silent)
        watch = canary.watcher(run)
        assert watch is not None
        watch()
        assert "could not be released (squeue: no answer)" in capsys.readouterr().err
        canary.failed(run, ErrorRecord("ValueError", "no"))
    monkeypatch.setattr(jobs, "jobs_named", lambda name: ["9"] if name == "sent" else [])
    with monkeypatch.context() as patched:
        patched.setattr(commands, "release", released.append)
        patched.setattr(os, "fsync", full)
        watch()
        assert released == ["8", "9"] and capsys.readouterr().err.count("No space left") == 2


def test_runs_that_were_begun_with_other_code_are_refused_together(begun: Callable[[int], Prepared]) -> None:
    runs = [begun(index) for index in range(3)]
    for one in runs[:2]:
        CheckpointStore(one.run.checkpoints).save(Position(1, 0), lambda file: file.write(b"{}"))
    with pytest.raises(Refused) as refused:
        settled(runs)
    (problem,) = refused.value.problems
    assert problem.received == "mnist-0" and "The same is true of 1 more of the sweep." in problem.rule


def test_what_slurm_refuses_halfway_is_told_with_what_it_has_already(
    begun: Callable[[int], Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: array.ArraySubmission, lock: int) -> str:
        raise Refused(Problem("sbatch", "Slurm itself refused the job.", "Look."))

    monkeypatch.setattr(array.ArraySubmission, "send", refuse)
    prepared = begun(0)
    sweep = SweepDir.of(prepared.run.path.parent, "mnist-sweep-00000000")
    given = {"tasks": [[prepared]], "allocation": prepared.request, "places": 1, "max_parallel": 1}
    whole = array.ArraySubmission(prepared, sweep=sweep, **given)
    for before, words in (
        (0, "Look."),
        (2, "Look. 2 of the sweep's 3 job arrays were submitted before this and stay in the queue."),
    ):
        with pytest.raises(Refused) as refused:
            submission._sent(whole, 0, before, 3)
        assert refused.value.problems[0].remedy == words


def full(handle: int) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_named_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full)
    for write in (lambda file: events.append(file, Event()), lambda file: write_atomically(file, b"x")):
        with pytest.raises(OSError, match="No space left") as error:
            write(tmp_path / "file")
        assert error.value.filename == str(tmp_path / "file")
