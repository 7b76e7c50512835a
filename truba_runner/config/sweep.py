"""What a config may say of many runs of one experiment: a search for hyperparameters, and those of `-m`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Search:
    """A search for hyperparameters, with one of Keras Tuner's oracles; docs/search.md. Its arguments have its names."""

    # hyperband, bayesian, random or grid; lr_find: no search, but each run's finder is a job before it; empty: neither.
    kind: str = ""
    objective: str = "val_loss"
    # min or max; empty where Keras knows the metric.
    direction: str = ""
    # Not by Hyperband, whose brackets decide. None: 10; for a grid all of it.
    max_trials: int | None = None
    max_epochs: int = 100
    factor: int = 3
    hyperband_iterations: int = 1
    num_initial_points: int | None = None
    alpha: float = 1e-4
    beta: float = 2.6
    executions_per_trial: int = 1
    seed: int = 1
    max_retries_per_trial: int = 0
    max_consecutive_failed_trials: int = 3
    # {train.learning_rate: {choice: {values: [0.1, 0.01]}}, job.options.units: {int: {min_value: 32, max_value: 512}}}
    space: dict[str, Any] = field(default_factory=dict)
    # So many of the best models are evaluated on the held-out split when the search has ended.
    best_models: int = 1
    # Jobs that search together.
    workers: int = 1
    # The search's folder in cluster.runs_folder; empty: NAME-HASH.
    directory: str = ""
    # A worker that gives no sign of life for so long loses its trial to another.
    lease_seconds: float = 60.0
    # fcntl or file; auto: fcntl where it works.
    lock: str = "auto"


@dataclass
class Sweep(Search):
    """Many runs of one experiment: those of `-m`, by what follows here, or the trials of a search (`sweep=KIND`).

    With the kind lr_find those of `-m`, each with a learning rate that a job before it has found.
    """

    # So many runs at once; None: as many as the account's core limit has room for.
    max_parallel: int | None = None
    # The first run goes ahead; the others start once it has lived through its first epoch.
    canary: bool = False
    # So many runs train side by side in one job, each on GPUs of its own or, with share_gpus, all on those of one run.
    pack: int = 1
    share_gpus: bool = False
    # The partition where the command itself runs as a job, for a sweeper that waits for values; empty: it runs here.
    sweeper_partition: str = ""
    sweeper_time: str = "1d"
    # With the kind lr_find: the limit of each finder's job; empty: an epoch's part of `resources.time` and some more.
    finder_time: str = ""
