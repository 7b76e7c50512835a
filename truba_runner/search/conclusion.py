"""Conclude a search: evaluate the models of its best trials on the held-out split, and write the best experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from truba_runner.config.schema import Experiment
from truba_runner.language import _, counted
from truba_runner.runs.run_directory import RunDir
from truba_runner.search import trials
from truba_runner.search.directory import SearchDir
from truba_runner.search.state import State
from truba_runner.search.trial_records import own_values, ranked, values_of
from truba_runner.storage.files import write_atomically

_SHOWN = 10


def conclude(
    search: SearchDir, experiment: Experiment, state: State, evaluate: Callable[[RunDir], int]
) -> dict[str, Any]:
    """Print a search's summary and return its result. `evaluate` starts a run, here for no epoch; returns exit status.

    Keys: `metrics` of the best model, `objective`, `direction`, `trials`, `failed`, `seconds_training` over all trials,
    `experiment` (a file) and `best`: `trial`, `values`, `score`, `epoch`, `metrics`, `model` of each evaluated trial.
    """
    best = ranked(state)
    _print_summary(state, best)
    found = []
    for trial in best[: experiment.sweep.best_models]:
        run, epoch = prepare_best(search, experiment, state, trial)
        if not run.result() and evaluate(run):
            message = _(
                "the model of trial {trial} could not be evaluated; see {logs}", trial=trial["trial_id"], logs=run.logs
            )
            print(message, flush=True)
        result = run.result()
        model = str(run.path / result["model"]) if "model" in result else ""
        metrics = result.get("metrics", {})
        found.append({**_about(trial), "epoch": epoch, "metrics": metrics, "model": model})
    if best:
        (search.path / "best").mkdir(mode=0o700, exist_ok=True)
        write_atomically(
            search.path / "best" / "experiment.yaml", experiment_yaml(search, experiment, state, best[0]).encode()
        )
    everything = [trial for trial in state["trials"].values()]
    runs = [RunDir(path) for path in search.trials_folder.iterdir()]
    return {
        "metrics": {**(found[0]["metrics"] if found else {}), state["objective"]["name"]: best[0]["score"]}
        if best
        else {},
        "objective": state["objective"]["name"],
        "direction": state["objective"]["direction"],
        "trials": len(everything),
        "failed": sum(trial["status"] == "FAILED" for trial in everything),
        "seconds_training": round(sum(run.record().result.seconds_training or 0.0 for run in runs), 3),
        "experiment": "best/experiment.yaml" if best else "",
        "best": found,
        "data": {"name": experiment.data.name},
    }


def _about(trial: Mapping[str, Any]) -> dict[str, Any]:
    return {"trial": trial["trial_id"], "values": own_values(trial), "score": trial["score"]}


def _print_summary(state: State, best: Sequence[Mapping[str, Any]]) -> None:
    objective = state["objective"]
    failed = sum(trial["status"] == "FAILED" for trial in state["trials"].values())
    message = counted(
        "results: {count} trial with a score, {failed} failed; {objective}, {direction}",
        "results: {count} trials with a score, {failed} failed; {objective}, {direction}",
        len(best),
        failed=failed,
        objective=objective["name"],
        direction=objective["direction"],
    )
    print(f"\n{message}")
    for trial in best[:_SHOWN]:
        values = "  ".join(f"{name} {value}" for name, value in own_values(trial).items())
        message = _("trial {trial}: {score:.6g}", trial=trial["trial_id"], score=trial["score"])
        print(f"  {message}  {values}", flush=True)


# -- the best model ----------------------------------------------------------------------------------------------


def prepare_best(
    search: SearchDir, experiment: Experiment, state: State, trial: Mapping[str, Any]
) -> tuple[RunDir, int]:
    """Return a run that resumes at a trial's best epoch only to be evaluated, with no epoch left; and that epoch."""
    name, direction = state["objective"]["name"], state["objective"]["direction"]
    values = values_of(trial)
    last_alone = trials.last_epoch_counts(experiment.job.backend)
    runs = _runs(search, experiment, state, trial)
    sign = -1 if direction == "max" else 1
    found = [(sign * score, index, epoch) for index, (epoch, score) in
             enumerate(trials.best_epoch(run, name, direction, values, last_alone) for run in runs)]  # fmt: skip
    _, index, epoch = min(found)
    run = search.best(trial["trial_id"])
    if not run.exists():
        run.create()
        run.checkpoints.mkdir(mode=0o700, exist_ok=True)
        trials.link_best(runs[index], run, epoch)
        config = runs[index].read_config()
        if not last_alone:
            config["train"]["epochs"] = epoch
        config["checkpoint"]["save_model"] = True
        config["tensorboard"]["enabled"] = False
        run.write_config({**config, "finish": asdict(experiment.finish)})
    return run, epoch


def _runs(search: SearchDir, experiment: Experiment, state: State, trial: Mapping[str, Any]) -> list[RunDir]:
    """Return the executions that a trial's score comes from."""
    retry = max(0, int(state["oracle"]["run_times"].get(trial["trial_id"], 1)) - 1)
    return trials.executions(search, experiment.sweep, trial["trial_id"], retry)


def experiment_yaml(search: SearchDir, experiment: Experiment, state: State, trial: Mapping[str, Any]) -> str:
    """Return a file for conf/experiment/ that retrains a trial, for as many epochs and to the same weights."""
    import yaml

    best = _runs(search, experiment, state, trial)[0].read_config()
    about = _("The best of a search ({kind}): trial {trial}, {objective} {score:.6g}.", kind=experiment.sweep.kind,
              trial=trial["trial_id"], objective=state["objective"]["name"], score=trial["score"])  # fmt: skip
    config: dict[str, Any] = {
        "name": f"{experiment.name}-best",
        "job": best["job"],
        "data": {key: value for key, value in best["data"].items() if key != "folder"},
        "train": best["train"],
        "checkpoint": {
            "monitor": state["objective"]["name"],
            "mode": state["objective"]["direction"],
            "best_model": True,
        },
    }
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    return f"# @package _global_\n# {about}\n{text}"
