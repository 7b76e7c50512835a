"""`truba drill RUN-OR-EXPERIMENT`: rehearse interruptions of a run, to be sure of them before a three-day job."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truba_runner.commands import parser
from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.runs import runs_folders
from truba_runner.runs.run_directory import RunDir
from truba_runner.status.printing import print_json

if TYPE_CHECKING:
    from truba_runner.config.schema import Drill, Experiment, Train

# A run that is interrupted twice starts three times; if the fourth start does not finish it, it never will.
_MOST_STARTS = 4
# Columns of history.csv that may differ between two runs of the same config.
_CLOCKS = {"seconds"}
# Prefixes of warnings in both languages: the log's may be another than the reader's.
_WARNS = ("WARNING: ", "UYARI: ")


def main(arguments: Sequence[str]) -> int:
    """Train the experiment twice, once interrupted on purpose, and compare; return 0 if the results are identical."""
    options = parser(
        "drill",
        _("Trains a short run twice, one of them interrupted by a signal and by SIGKILL, and compares the results."),
    )
    options.add_argument(
        "what", nargs="+", help=_("a run, or an experiment as for a run: +experiment=mnist KEY=VALUE…")
    )
    options.add_argument(
        "--epochs", type=int, default=2, metavar="N", help=_("train at most this many epochs (default: 2)")
    )
    given = options.parse_args(arguments)

    from truba_runner.config.schema import Drill
    from truba_runner.slurm.request import processes

    experiment = _experiment(given.what, given.runs)
    experiment = replace(experiment, train=_short(experiment.train, given.epochs))
    # A search would verify each of its trials, and only training in a single process can be verified.
    verify = not experiment.sweep.kind and processes(experiment) == 1
    whole = _trained(experiment, "whole", Drill(verify=verify), given.what)
    steps = whole.result()["steps"]
    cut = _trained(experiment, "cut", Drill(steps // 3, 2 * steps // 3), given.what)
    report = compared(whole, cut)
    if given.json:
        print_json(report)
    else:
        _print(report)
    same = report["same_weights"] and report["same_history"] and report["first_difference"] is None
    return 0 if same and report["restarts"] == 2 else 1


def _short(train: Train, epochs: int) -> Train:
    """Limit the training, or each stage of its recipe, to `epochs` epochs."""
    from truba_runner.config import recipe

    if train.recipe:
        stages = recipe.shortened(train.recipe, epochs)
        return replace(train, recipe=stages, epochs=1)
    return replace(train, epochs=min(train.epochs, epochs))


def _experiment(what: Sequence[str], runs_folder: Path | None) -> Experiment:
    from truba_runner.config.composing.compose import composed
    from truba_runner.config.schema import experiment_from

    if len(what) == 1 and "=" not in what[0]:
        return experiment_from(runs_folders.find(what[0], runs_folder).read_config())
    return composed(what)


def _trained(experiment: Experiment, which: str, drill: Drill, overrides: Sequence[str]) -> RunDir:
    """Train a run of the experiment to its end; restart it after each interruption if Slurm does not requeue it."""
    from truba_runner.launch.run import launch

    named = replace(experiment, name=f"{experiment.name}-drill-{which}", drill=drill)
    named = replace(named, launcher=replace(experiment.launcher, wait=True), fresh=True)
    for _start in range(_MOST_STARTS):
        outcome = launch(named, " ".join(overrides))
        run = RunDir(Path(outcome.run_dir))
        if run.result():
            return run
        named = replace(named, fresh=False)
        if experiment.cluster.scheduler == "slurm" and experiment.cluster.requeue:
            break
    raise Failed("the drill's run {run} did not finish; truba logs {run} shows why", run=run.id)


def compared(whole: RunDir, cut: RunDir) -> dict[str, Any]:
    """Compare the results of both runs, and return what the interruptions cost."""
    one, other = whole.result(), cut.result()
    return {
        "runs": [whole.id, cut.id],
        "steps": one["steps"],
        "same_weights": one["weights_sha256"] == other["weights_sha256"],
        "same_history": _history(whole) == _history(cut),
        **{key: other[key] for key in ("restarts", "requeues", "steps_lost", "seconds_restoring")},
        "first_difference": one.get("verified", {}).get("first_difference"),
        "warnings": _warnings(cut),
    }


def _warnings(run: RunDir) -> list[str]:
    """Return the run's distinct warnings, which may explain a different result."""
    logs = sorted(run.logs.glob("*_log.out"), key=lambda log: log.stat().st_mtime)
    found: dict[str, None] = {}
    for log in logs:
        with log.open(errors="replace") as lines:
            # TensorFlow's own log lines begin with the same word.
            warned = (line.rstrip("\n") for line in lines if line.startswith(_WARNS) and "absl::" not in line)
            found |= dict.fromkeys(warned)
    return list(found)


def _history(run: RunDir) -> list[dict[str, str]]:
    with (run.path / "history.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name not in _CLOCKS} for row in csv.DictReader(file)]


def _print(report: dict[str, Any]) -> None:
    whole, cut = report["runs"]
    print(_("{cut} was interrupted by a signal and by SIGKILL, {whole} was not; {steps} steps each",
            cut=cut, whole=whole, steps=report["steps"]))  # fmt: skip
    words = {
        "same_weights": _("same weights"),
        "same_history": _("same history"),
        "restarts": _("restarts"),
        "requeues": _("requeues"),
        "steps_lost": _("steps lost"),
        "seconds_restoring": _("seconds restoring"),
    }
    for key, word in words.items():
        value = report[key]
        if isinstance(value, bool):
            value = _("yes, bit for bit") if value else _("NO")
        print(f"  {word:20} {value}")
    if found := report["first_difference"]:
        word = _("first difference")
        print(f"  {word:20} {found['text']}")
    for line in report["warnings"]:
        print(f"  {line}")
