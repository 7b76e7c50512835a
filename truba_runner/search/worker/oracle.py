"""Create, load and dump Keras Tuner's oracles; needs keras_tuner, so only workers import it.

Keras Tuner keeps an oracle in one process' memory during the whole search. Here each step loads it anew, so its state
has to be complete: Keras Tuner's own omits the Bayesian oracle's random state and the order of the grid.
"""

from __future__ import annotations

import json
from typing import Any

from truba_runner.config.schema import Sweep
from truba_runner.config.search_space import declare
from truba_runner.errors import Failed
from truba_runner.search.worker import hyperband


def make(sweep: Sweep) -> Any:
    """Return a new oracle, whose space is the one in the YAML alone.

    Raises:
        truba_runner.errors.Failed: Keras does not know the objective, or Keras Tuner refuses a setting.
    """
    import keras_tuner

    hp = keras_tuner.HyperParameters()
    common = {
        "objective": objective(sweep),
        "seed": sweep.seed,
        "hyperparameters": hp,
        "max_retries_per_trial": sweep.max_retries_per_trial,
        "max_consecutive_failed_trials": sweep.max_consecutive_failed_trials,
    }
    try:
        declare(sweep.space, hp)
        oracle = _MAKERS[sweep.kind](sweep, common)
    except (TypeError, ValueError) as error:
        raise Failed("Keras Tuner refuses the search: {error}", error=error) from error
    # The caller writes the whole state to one file.
    oracle.save = lambda: None
    oracle._save_trial = lambda trial: None
    oracle.verbose = 0
    return oracle


def objective(sweep: Sweep) -> Any:
    """Return the objective with its direction, which Keras Tuner infers if the config does not set it.

    Raises:
        truba_runner.errors.Failed: the direction cannot be inferred.
    """
    import keras_tuner
    from keras_tuner.src.engine.metrics_tracking import infer_metric_direction

    direction = sweep.direction or infer_metric_direction(sweep.objective)
    if direction is None:
        raise Failed(
            "sweep.objective={objective}: Keras has no metric of this name, so it is unknown whether to minimize "
            "or maximize it. Set sweep.direction=min or sweep.direction=max.",
            objective=sweep.objective,
        )
    return keras_tuner.Objective(sweep.objective, direction)


def load(sweep: Sweep, oracle_state: dict[str, Any], trials: dict[str, Any]) -> Any:
    """Return the oracle whose `dump` and `dump_trials` are given."""
    from keras_tuner.src.engine.trial import Trial

    oracle = make(sweep)
    # A deep copy, as Keras Tuner changes what it reads.
    trials, oracle_state = json.loads(json.dumps([trials, oracle_state]))
    oracle.trials = {trial_id: Trial.from_state(state) for trial_id, state in trials.items()}
    oracle.set_state(oracle_state)
    return oracle


def dump(oracle: Any) -> dict[str, Any]:
    """Return an oracle's state without its trials, as JSON values."""
    return dict(oracle.get_state())


def dump_trials(oracle: Any) -> dict[str, Any]:
    """Return an oracle's trials by their id, as JSON values."""
    return {trial_id: trial.get_state() for trial_id, trial in oracle.trials.items()}


def hopeful(oracle: Any) -> set[str]:
    """Return the ids of trials that another trial may still resume."""
    return hyperband.hopeful(oracle) if hasattr(oracle, "hyperband_iterations") else set()


# -- the four ----------------------------------------------------------------------------------------------------


def _random(sweep: Sweep, common: dict[str, Any]) -> Any:
    from keras_tuner.src.tuners.randomsearch import RandomSearchOracle

    return RandomSearchOracle(max_trials=sweep.max_trials or 10, **common)


def _bayesian(sweep: Sweep, common: dict[str, Any]) -> Any:
    from keras_tuner.src.tuners.bayesian import BayesianOptimizationOracle

    class Bayesian(BayesianOptimizationOracle):  # type: ignore[misc]
        """The oracle with its random state saved, and its Gaussian process fitted before it predicts running trials."""

        def populate_space(self, trial_id: str) -> Any:
            completed = {key: trial for key, trial in self.trials.items() if trial.status == "COMPLETED"}
            if self.ongoing_trials and completed:
                everything: Any = self.trials
                self.trials: Any = completed
                try:
                    self.gpr.fit(*self._vectorize_trials())
                finally:
                    self.trials = everything
            return super().populate_space(trial_id)

        def get_state(self) -> dict[str, Any]:
            name, keys, *rest = self._random_state.get_state()
            return {**super().get_state(), "random_state": [name, keys.tolist(), *rest]}

        def set_state(self, state: dict[str, Any]) -> None:
            super().set_state(state)
            self._random_state.set_state(tuple(state["random_state"]))

    return Bayesian(
        max_trials=sweep.max_trials or 10,
        num_initial_points=sweep.num_initial_points,
        alpha=sweep.alpha,
        beta=sweep.beta,
        **common,
    )


def _grid(sweep: Sweep, common: dict[str, Any]) -> Any:
    from keras_tuner.src.tuners.gridsearch import GridSearchOracle

    class Grid(GridSearchOracle):  # type: ignore[misc]
        """The oracle with the order of its trials saved."""

        def get_state(self) -> dict[str, Any]:
            order = self._ordered_ids
            links = [[index, following] for index, following in order._next_index.items()]
            kept = {"memory": order._memory, "links": links, "last": order._last_index}
            return {**super().get_state(), "ordered_ids": kept, "populate_next": self._populate_next}

        def set_state(self, state: dict[str, Any]) -> None:
            super().set_state(state)
            order, kept = self._ordered_ids, state["ordered_ids"]
            order._memory = kept["memory"]
            order._data_to_index = {trial_id: index for index, trial_id in enumerate(order._memory)}
            order._next_index.update(dict(kept["links"]))
            order._last_index = kept["last"]
            self._populate_next = state["populate_next"]

    return Grid(max_trials=sweep.max_trials, **common)


def _hyperband(sweep: Sweep, common: dict[str, Any]) -> Any:
    from keras_tuner.src.tuners.hyperband import HyperbandOracle

    class Hyperband(HyperbandOracle):  # type: ignore[misc]
        """The oracle with our own promotion rules."""

        populate_space = hyperband.populate_space

    return Hyperband(
        max_epochs=sweep.max_epochs,
        factor=sweep.factor,
        hyperband_iterations=sweep.hyperband_iterations,
        **common,
    )


_MAKERS = {"random": _random, "bayesian": _bayesian, "grid": _grid, "hyperband": _hyperband}
