"""Config keys for many runs of one experiment: a hyperparameter search, or a sweep with `-m`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional


@dataclass
class Search:
    """A hyperparameter search by one of Keras Tuner's oracles, with the names of its arguments; docs/search.md."""

    # hyperband, bayesian, random or grid; lr_find: no search, but a finder job before each run; empty: neither.
    kind: str = ""
    objective: str = "val_loss"
    # min or max; may be empty if Keras knows the metric.
    direction: str = ""
    # Not for hyperband, whose brackets determine it. None: 10, or for grid all combinations.
    max_trials: Optional[int] = None
    max_epochs: int = 100
    factor: int = 3
    hyperband_iterations: int = 1
    num_initial_points: Optional[int] = None
    alpha: float = 1e-4
    beta: float = 2.6
    executions_per_trial: int = 1
    seed: int = 1
    max_retries_per_trial: int = 0
    max_consecutive_failed_trials: int = 3
    # {train.learning_rate: {choice: {values: [0.1, 0.01]}}, job.options.units: {int: {min_value: 32, max_value: 512}}}
    space: dict[str, Any] = field(default_factory=dict)
    # Number of best models to evaluate on the held-out split when the search has finished.
    best_models: int = 1
    # Number of jobs that work on the search in parallel.
    workers: int = 1
    # The search's folder in cluster.runs_folder; empty: NAME-HASH.
    directory: str = ""
    # A worker without a heartbeat for this long loses its trial to another worker.
    lease_seconds: float = 60.0
    # fcntl or file; auto: fcntl if it works on the file system.
    lock: str = "auto"


@dataclass
class Sweep(Search):
    """Many runs of one experiment: those of `-m`, with the settings below, or the trials of a search (`sweep=KIND`).

    With the kind lr_find: the runs of `-m`, each with the learning rate that a job before it found.
    """

    # Most runs at once; None: as many as the account's core limit allows.
    max_parallel: Optional[int] = None
    # The first run starts alone; the others start once it has finished its first epoch.
    canary: bool = False
    # Number of runs that train in parallel in one job, each on its own GPUs or, with share_gpus, all on one run's.
    pack: int = 1
    share_gpus: bool = False
    # Partition of a job that runs this command itself, for a sweeper that waits for values; empty: run it here.
    sweeper_partition: str = ""
    sweeper_time: str = "1d"
    sweeper_qos: str = "${resources.qos}"
    # With the kind lr_find: time limit of a finder's job; empty: one epoch's share of `resources.time` and a margin.
    finder_time: str = ""
