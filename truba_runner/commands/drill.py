"""`truba drill RUN-OR-EXPERIMENT`: rehearses an interruption, so that people can trust it before a three-day job."""

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

# A run that is broken twice is started three times; one more start means that it does not come through.
_MOST_STARTS = 4
# What two runs of the same config may differ in.
_CLOCKS = {"seconds"}
# How a run begins to warn, in either language: its log may be in another than the one that is read here.
_WARNS = ("WARNING: ", "UYARI: ")


def main(arguments: Sequence[str]) -> int:
    """Trains the experiment twice, once broken on purpose, and compares; 0 where nothing was lost."""
    options = parser(
        "drill", _("Trains a short run twice, once interrupted by a signal and by a kill, and compares both.")
    )
    options.add_argument(
        "what", nargs="+", help=_("a run, or an experiment as for a run: +experiment=mnist KEY=VALUE…")
    )
    options.add_argument(
        "--epochs", type=int, default=2, metavar="N", help=_("train so many epochs at most (default: 2)")
    )
    given = options.parse_args(arguments)

    from truba_runner.config.schema import Drill
    from truba_runner.slurm.request import processes

    experiment = _experiment(given.what, given.runs)
    experiment = replace(experiment, train=_short(experiment.train, given.epochs))
    # A search has trials, of which each would be verified; and only a single process can be.
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
    """The same training, of so many epochs at most; of a recipe each stage."""
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
    """A run of the experiment, waited for, and on a local machine started again after each break."""
    from truba_runner.launch.run import launch

    named = replace(experiment, name=f"{experiment.name}-drill-{which}", drill=drill)
    named = replace(named, launcher=replace(experiment.launcher, wait=True), fresh=True)
    for _start in range(_MOST_STARTS):
        outcome = launch(named, " ".join(overrides))
        run = RunDir(Path(outcome.run_dir))
        if run.result():
            return run
        named = replace(named, fresh=False)
        if experiment.cluster.scheduler == "slurm":
            break
    raise Failed(_("the drill's run {run} did not come through; truba logs {run} shows why", run=run.id))


def compared(whole: RunDir, cut: RunDir) -> dict[str, Any]:
    """What the interruptions cost, and whether the result is the same."""
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
    """What the run warned of, which may be why it came to something else; each once."""
    logs = sorted(run.logs.glob("*_log.out"), key=lambda log: log.stat().st_mtime)
    found: dict[str, None] = {}
    for log in logs:
        with log.open(errors="replace") as lines:
            # TensorFlow begins a line of its own like that.
            warned = (line.rstrip("\n") for line in lines if line.startswith(_WARNS) and "absl::" not in line)
            found |= dict.fromkeys(warned)
    return list(found)


def _history(run: RunDir) -> list[dict[str, str]]:
    with (run.path / "history.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name not in _CLOCKS} for row in csv.DictReader(file)]


def _print(report: dict[str, Any]) -> None:
    whole, cut = report["runs"]
    print(_("{cut} was interrupted by a signal and by a kill, {whole} was not; {steps} steps each",
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
