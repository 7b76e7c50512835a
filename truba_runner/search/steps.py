"""The steps of a search that need Keras Tuner, each in a process of its own: `nursery` calls them by name."""

from __future__ import annotations

import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from truba_runner import job_module
from truba_runner.config import Experiment, experiment_from, training_hash
from truba_runner.errors import nearest
from truba_runner.search import leases, oracle, trials
from truba_runner.search.directory import SearchDir
from truba_runner.search.leases import Lease, Worker
from truba_runner.search.lock import lock_for
from truba_runner.search.store import State, Store


def opened(path: str) -> tuple[SearchDir, Experiment, Store]:
    """A search's directory, its config, and its state behind its lock."""
    search = SearchDir(Path(path))
    experiment = experiment_from(search.read_config())
    return search, experiment, Store(search, lock_for(search.path, experiment.sweep.lock), training_hash(experiment))


# -- the space ---------------------------------------------------------------------------------------------------


def begin(path: str, job_file: str) -> dict[str, Any]:
    """Finds the search's space out and writes its first state, unless another worker has."""
    _hide_gpus()
    search, experiment, store = opened(path)
    if store.read():
        return {}
    made = oracle.make(experiment.sweep)
    _discover(experiment, Path(job_file), made)
    if not made.hyperparameters.space:
        from truba_runner.errors import Failed

        raise Failed(
            f"there is nothing to search: {job_file} has no build_model(hp) that asks for a hyperparameter, and "
            "sweep.space is empty. Take values from hp there, or name keys of the config in sweep.space."
        )
    _warn_of_small_space(experiment, made)
    with store.transaction() as state:
        if not state:
            leases.begin(state)
            state.update(oracle=oracle.dump(made), trials={}, objective=_objective(made))
    return {}


def _discover(experiment: Experiment, job_file: Path, made: Any) -> None:
    """Has Keras Tuner build the job's model until every hyperparameter has shown, conditional ones too."""
    import inspect
    import tempfile

    build = getattr(job_module.load(job_file), "build_model", None)
    if build is None or "hp" not in inspect.signature(build).parameters:
        return
    from keras_tuner.src.engine.base_tuner import BaseTuner

    options = experiment.job.options
    with tempfile.TemporaryDirectory() as folder:
        BaseTuner(made, lambda hp: build(hp, **options), directory=folder)


def _objective(made: Any) -> dict[str, str]:
    return {"name": made.objective.name, "direction": made.objective.direction}


def _warn_of_small_space(experiment: Experiment, made: Any) -> None:
    if experiment.sweep.kind != "hyperband":
        return
    counts = [_values_of(hp) for hp in made.hyperparameters.space]
    first = made._get_size(made._get_num_brackets() - 1, 0)
    combinations = math.prod(count or 1 for count in counts)
    if None not in counts and combinations < first:
        print(
            f"WARNING: the space has {combinations} combinations, and Hyperband's first bracket begins with {first}: "
            "Keras Tuner ends such a search with its first round. A smaller sweep.max_epochs or a larger space lets it "
            "go on.",
            flush=True,
        )


def _values_of(hp: Any) -> int | None:
    """How many values a hyperparameter has; None where they are not counted."""
    if hasattr(hp, "step") and hp.step is None and type(hp).__name__ == "Float":
        return None
    return len(list(hp.values))


# -- telling and asking ------------------------------------------------------------------------------------------


def step(path: str, worker: list[str], dead: list[str], outcome: dict[str, Any] | None, ask: bool) -> dict[str, Any]:
    """Tells the oracle what came of a trial, where there is an `outcome`, and asks for the next, in one transaction.

    Returns `lease` with a trial, or `wait` where others' trials decide, or `finished`, or `failed` with a reason;
    `told`, in a sentence, where the outcome was taken.
    """
    _hide_gpus()
    search, experiment, store = opened(path)
    answer: dict[str, Any] = {}
    with store.transaction() as state:
        made = oracle.load(experiment.sweep, state["oracle"], state["trials"])
        if outcome is not None and leases.holds(state, lease := Lease(**outcome["lease"])):
            answer["told"] = _tell(search, experiment, state, made, lease, outcome)
            _keep(state, made)
        if state["failed"] or state["finished"]:
            answer.update(failed=state["failed"], finished=state["finished"])
        elif ask:
            answer.update(_ask(search, experiment, state, made, Worker(*worker), dead))
    return answer


def _keep(state: State, made: Any) -> None:
    state.update(oracle=oracle.dump(made), trials=oracle.dump_trials(made))


def _tell(
    search: SearchDir, experiment: Experiment, state: State, made: Any, lease: Lease, outcome: dict[str, Any]
) -> str:
    from keras_tuner.src.engine.hyperparameters import HyperParameters

    trial = made.trials[lease.trial]
    # A copy, as a worker of Keras Tuner's own has one.
    ended = SimpleNamespace(
        trial_id=trial.trial_id,
        hyperparameters=trial.hyperparameters.copy(),
        status=outcome["status"],
        message=outcome.get("message"),
    )
    if ended.status == "COMPLETED":
        runs = trials.executions(search, experiment, lease.trial, lease.retry)
        for found in (run.result().get("hyperparameters") for run in runs):
            if found:
                ended.hyperparameters.merge(HyperParameters.from_config(found), overwrite=False)
        _report(experiment, made, trial, runs, ended, state)
    try:
        made.end_trial(ended)
    except RuntimeError as error:
        # Too many failures, one after the other.
        state["failed"] = str(error).strip()
    made.ongoing_trials = {key: one for key, one in made.ongoing_trials.items() if one is not trial}
    leases.close(state, lease)
    return _in_words(made, made.trials[lease.trial])


def _report(experiment: Experiment, made: Any, trial: Any, runs: list[Any], ended: Any, state: State) -> None:
    """The metrics of the best epoch, over the trial's own epochs, averaged over its executions: as Keras Tuner does."""
    import keras
    from keras_tuner.src.engine import tuner_utils

    after = int(trial.hyperparameters.values.get("tuner/initial_epoch", 0))
    histories = []
    for run in runs:
        record = keras.callbacks.History()
        record.history = trials.history(run, after)
        histories.append(record)
    name = made.objective.name
    known = histories[0].history
    if any(name not in one.history for one in histories):
        ended.status = "FAILED"
        ended.message = f"sweep.objective={name}: the training has no such metric. {nearest(name, known)}"
        state["failed"] = ended.message
        return
    metrics = tuner_utils.convert_to_metrics_dict(histories, made.objective)
    made.update_trial(trial.trial_id, metrics, step=tuner_utils.get_best_step(histories, made.objective))


def _in_words(made: Any, trial: Any) -> str:
    best = [one for one in made.get_best_trials(1) if one.score is not None]
    so_far = f"; best so far {best[0].score:.6g} (trial {best[0].trial_id})" if best else ""
    if trial.status == "COMPLETED":
        return f"trial {trial.trial_id}: {made.objective.name} {trial.score:.6g}{so_far}"
    reason = (trial.message or "").strip().splitlines()
    status = "failed" if trial.status == "FAILED" else "failed, and is tried again"
    return f"trial {trial.trial_id} {status}: {reason[0] if reason else 'its objective is no number'}{so_far}"


def _ask(
    search: SearchDir, experiment: Experiment, state: State, made: Any, worker: Worker, dead: list[str]
) -> dict[str, Any]:
    leases.reap(state, worker, dead, lambda trial, retry: trials.position(search, experiment, trial, retry))
    lease = leases.take_waiting(state, worker)
    if lease is None:
        # A name of its own for each question: Keras Tuner gives a worker that has a trial the same one again.
        trial = made.create_trial(f"lease-{state['tokens'] + 1}")
        if trial.status == "RUNNING":
            lease = leases.open_trial(state, trial.trial_id, int(made._run_times[trial.trial_id]), worker)
            _keep(state, made)
        elif trial.status == "STOPPED" and not state["open"]:
            state["finished"] = True
            return {"finished": True}
        else:
            # Whatever asking has changed is not kept: how often a worker asks is chance.
            return {"wait": True}
    return {"lease": [lease.trial, lease.token, lease.retry], "values": trials.values_of(state["trials"][lease.trial])}


def _hide_gpus() -> None:
    """An oracle needs none, and TensorFlow would take all the memory of those that the trials train on."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
