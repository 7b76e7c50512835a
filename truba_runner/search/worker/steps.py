"""Oracle steps of a search, which need Keras Tuner; `training.nursery` calls each by name in a child process."""

from __future__ import annotations

import math
import os
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from truba_runner.code.unpacked import SubmittedCode
from truba_runner.config.identity import training_hash
from truba_runner.config.schema import Experiment, Sweep
from truba_runner.errors import Failed, nearest
from truba_runner.language import _
from truba_runner.runs.events import from_record
from truba_runner.search import leases, trials
from truba_runner.search.directory import SearchDir
from truba_runner.search.leases import Lease, Worker
from truba_runner.search.state import State, Store
from truba_runner.search.trial_records import REPORTED, ranked, values_of
from truba_runner.search.worker import oracle
from truba_runner.storage.shared_lock import lock_for
from truba_runner.worker.failure import describe as describe_error
from truba_runner.worker.failure import in_one_line, print_traceback


class Opened:
    """A search with the few config values that a step needs, since validating a whole config takes time."""

    def __init__(self, path: str, about: dict[str, Any]) -> None:
        """Take the search's path and what `describe` returned."""
        self.search = SearchDir(Path(path))
        self.sweep = Sweep(**about["sweep"])
        self.options: dict[str, Any] = about["options"]
        self.last_epoch_counts: bool = about["last_epoch_counts"]
        self.store = Store(self.search, lock_for(self.search.path, self.sweep.lock), about["identity"])


def describe(experiment: Experiment) -> dict[str, Any]:
    """Return the config values that a step needs, as JSON values."""
    job, identity = experiment.job, training_hash(experiment)
    last = trials.last_epoch_counts(job.backend)
    return {
        "sweep": asdict(experiment.sweep), "options": job.options, "identity": identity, "last_epoch_counts": last
    }  # fmt: skip


# -- the space ---------------------------------------------------------------------------------------------------


def begin(path: str, about: dict[str, Any], worker: list[str], code: dict[str, Any], scratch: str) -> dict[str, Any]:
    """Discover the search's space and write its first state, unless another worker has.

    `code`: the submission's record of the code; `scratch`: a folder on the node's own disk.
    """
    _hide_gpus()
    opened = Opened(path, about)
    if opened.store.read():
        return {}
    tuner_oracle = oracle.make(opened.sweep)
    with SubmittedCode() as submitted:
        try:
            _discover(opened, submitted.load(from_record(code), Path(scratch)), tuner_oracle)
        except Failed:
            raise
        except Exception as error:
            print_traceback(error, submitted.own)
            description = describe_error(error, Path(code["job_file"]).parent, submitted.own)
            raise Failed(in_one_line(description)) from error
    if not tuner_oracle.hyperparameters.space:
        raise Failed(
            "there is nothing to search: {file} has no build_model(hp) that asks for a hyperparameter, and "
            "sweep.space is empty. Take values from hp there, or list config keys in sweep.space.",
            file=code["job_file"],
        )
    _warn_of_small_space(opened.sweep, tuner_oracle)
    with opened.store.transaction() as state:
        if not state:
            leases.begin(state)
            state.update(oracle=oracle.dump(tuner_oracle), trials={}, objective=_objective(tuner_oracle))
    return {}


def _discover(opened: Opened, job: ModuleType, made: Any) -> None:
    """Let Keras Tuner build the job's model until all hyperparameters are known, conditional ones too."""
    import inspect
    import tempfile

    build = getattr(job, "build_model", None)
    if build is None or "hp" not in inspect.signature(build).parameters:
        return
    from keras_tuner.src.engine.base_tuner import BaseTuner

    with tempfile.TemporaryDirectory() as folder:
        BaseTuner(made, lambda hp: build(hp, **opened.options), directory=folder)


def _objective(made: Any) -> dict[str, str]:
    return {"name": made.objective.name, "direction": made.objective.direction}


def _warn_of_small_space(sweep: Sweep, made: Any) -> None:
    if sweep.kind != "hyperband":
        return
    counts = [_values_of(hp) for hp in made.hyperparameters.space]
    first = made._get_size(made._get_num_brackets() - 1, 0)
    combinations = math.prod(count or 1 for count in counts)
    if None not in counts and combinations < first:
        print(
            _(
                "WARNING: the search space has {combinations} combinations, but Hyperband's first bracket begins "
                "with {first}: Keras Tuner ends such a search after its first round. To avoid that, use a smaller "
                "sweep.max_epochs or a larger space.",
                combinations=combinations,
                first=first,
            ),
            flush=True,
        )


def _values_of(hp: Any) -> int | None:
    """Return how many values a hyperparameter has; None if it is continuous."""
    if hasattr(hp, "step") and hp.step is None and type(hp).__name__ == "Float":
        return None
    return len(list(hp.values))


# -- reporting a trial, requesting the next ----------------------------------------------------------------------


def step(
    path: str, about: dict[str, Any], worker: list[str], dead: list[str], outcome: dict[str, Any] | None, ask: bool
) -> dict[str, Any]:
    """Report a trial's `outcome`, if given, to the oracle and `ask` for the next trial, in one transaction.

    Returns `lease` and `values` of a trial, or `wait` if other trials have to finish first, or `finished`, or `failed`
    with a reason. `told`: a line to print, if the outcome was taken. `over`: trials whose checkpoints can be deleted.
    """
    _hide_gpus()
    opened = Opened(path, about)
    answer: dict[str, Any] = {}
    with opened.store.transaction() as state:
        tuner_oracle = oracle.load(opened.sweep, state["oracle"], state["trials"])
        if outcome is not None and leases.holds(state, lease := Lease(**outcome["lease"])):
            answer["told"] = _tell(opened, state, tuner_oracle, lease, outcome)
            _keep(state, tuner_oracle)
        if state["failed"] or state["finished"]:
            answer.update(failed=state["failed"], finished=state["finished"])
        elif ask:
            answer.update(_ask(opened, state, tuner_oracle, Worker(*worker), dead))
        answer["over"] = _over(opened, state, tuner_oracle)
    return answer


def _over(opened: Opened, state: State, made: Any) -> list[str]:
    """Return finished trials whose checkpoints can be deleted: not among the best, and no trial will resume them."""
    wanted = oracle.hopeful(made)
    of_open = [values_of(trial) for name, trial in state["trials"].items() if name in state["open"]]
    wanted |= {str(values.get("tuner/trial_id")) for values in of_open}
    wanted |= {trial["trial_id"] for trial in ranked(state)[: max(1, opened.sweep.best_models)]}
    return [name for name, trial in state["trials"].items() if trial["status"] in REPORTED and name not in wanted]


def _keep(state: State, made: Any) -> None:
    state.update(oracle=oracle.dump(made), trials=oracle.dump_trials(made))


def _tell(opened: Opened, state: State, made: Any, lease: Lease, outcome: dict[str, Any]) -> str:
    from keras_tuner.src.engine.hyperparameters import HyperParameters

    trial = made.trials[lease.trial]
    # A copy, as Keras Tuner's own workers pass it.
    ended = SimpleNamespace(
        trial_id=trial.trial_id,
        hyperparameters=trial.hyperparameters.copy(),
        status=outcome["status"],
        message=outcome.get("message"),
    )
    if ended.status == "COMPLETED":
        runs = trials.executions(opened.search, opened.sweep, lease.trial, lease.retry)
        for found in (run.result().get("hyperparameters") for run in runs):
            if found:
                ended.hyperparameters.merge(HyperParameters.from_config(found), overwrite=False)
        values = trial.hyperparameters.values
        _report(made, trial, [trials.history(run, values, opened.last_epoch_counts) for run in runs], ended, state)
    try:
        made.end_trial(ended)
    except RuntimeError as error:
        # Too many consecutive failures.
        state["failed"] = " ".join(str(error).split())
    made.ongoing_trials = {key: one for key, one in made.ongoing_trials.items() if one is not trial}
    leases.close(state, lease)
    return _in_words(made, made.trials[lease.trial])


def _report(made: Any, trial: Any, runs: list[dict[str, list[float]]], ended: Any, state: State) -> None:
    """Report the metrics of each execution's best epoch, averaged, as Keras Tuner does."""
    from keras_tuner.src.backend import keras
    from keras_tuner.src.engine import tuner_utils

    histories = []
    for run in runs:
        record = keras.callbacks.History()
        record.history = run
        histories.append(record)
    name = made.objective.name
    known = histories[0].history
    if any(name not in one.history for one in histories):
        ended.status = "FAILED"
        ended.message = _(
            "sweep.objective={name}: the training has no such metric. {nearest}",
            name=name,
            nearest=nearest(name, known),
        )
        state["failed"] = ended.message
        return
    metrics = tuner_utils.convert_to_metrics_dict(histories, made.objective)
    made.update_trial(trial.trial_id, metrics, step=tuner_utils.get_best_step(histories, made.objective))


def _in_words(made: Any, trial: Any) -> str:
    best = [one for one in made.get_best_trials(1) if one.score is not None]
    reason = next(iter((trial.message or "").strip().splitlines()), _("its objective is not a number"))
    if trial.status == "COMPLETED":
        message = _("trial {trial}: {objective} {score:.6g}", trial=trial.trial_id, objective=made.objective.name,
                 score=trial.score)  # fmt: skip
    elif trial.status == "FAILED":
        message = _("trial {trial} failed: {reason}", trial=trial.trial_id, reason=reason)
    else:
        message = _("trial {trial} failed and will be retried: {reason}", trial=trial.trial_id, reason=reason)
    if best:
        message += "; " + _("best so far {score:.6g} (trial {trial})", score=best[0].score, trial=best[0].trial_id)
    return message


def _ask(opened: Opened, state: State, made: Any, worker: Worker, dead: list[str]) -> dict[str, Any]:
    leases.reap(state, worker, dead, partial(trials.position, opened.search, opened.sweep))
    lease = leases.take_waiting(state, worker)
    if lease is None:
        # A new name for each request: Keras Tuner gives a worker that has a trial the same trial again.
        trial = made.create_trial(f"lease-{state['tokens'] + 1}")
        if trial.status == "RUNNING":
            lease = leases.open_trial(state, trial.trial_id, int(made._run_times[trial.trial_id]), worker)
            _keep(state, made)
        elif trial.status == "STOPPED" and not state["open"]:
            state["finished"] = True
            return {"finished": True}
        else:
            # The oracle's changes are not kept, as it is a matter of chance how often workers ask.
            return {"wait": True}
    return {"lease": [lease.trial, lease.token, lease.retry], "values": values_of(state["trials"][lease.trial])}


def _hide_gpus() -> None:
    """Hide GPUs from this process: TensorFlow would take all their memory, which the trials need."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
