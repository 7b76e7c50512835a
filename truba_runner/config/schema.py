"""Everything that a config may say, as dataclasses; Hydra checks every key and type of an experiment against them.

What it may say of the site is in `config_site`, and of many runs of one experiment in `config_sweep`.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from truba_runner.config.plain_objects import to_object
from truba_runner.config.site import Cluster as Cluster
from truba_runner.config.site import Environment as Environment
from truba_runner.config.site import Partition as Partition
from truba_runner.config.sweep import Search as Search
from truba_runner.config.sweep import Sweep as Sweep


@dataclass
class Job:
    """The training code: a module of `jobs/`, the backend that runs it, and what is passed to its functions."""

    module: str = MISSING
    backend: str = "keras"
    options: dict[str, Any] = field(default_factory=dict)
    # Where weights that training begins from are fetched, by architecture. Which are needed, options.arch says, and
    # options.pretrained whether any.
    weights: dict[str, str] = field(default_factory=dict)
    # For a build_model that takes Keras Tuner's `hp`, by the names that it gives them; others have their defaults.
    hyperparameters: dict[str, Any] = field(default_factory=dict)


@dataclass
class Source:
    """A file or a folder that must lie in the data folder; neither where a Python package ships the data."""

    file: str = ""
    # Instead of a file: a folder of images, which only you can put there.
    folder: str = ""
    url: str = ""
    sha256: str = ""
    # For data that cannot be downloaded without an account: where a person gets it.
    page: str = ""


@dataclass
class Data:
    """What is trained on, by name, and where its files come from."""

    name: str = MISSING
    folder: str = "${cluster.data_folder}"
    sources: dict[str, Source] = field(default_factory=dict)
    # Stands in on a local run whose data can be neither found nor downloaded.
    fallback: str = ""
    # For images: finds the label in a file's name, as its first group. Checked at submission where the names are known.
    label_pattern: str = ""
    # Reads images from one file, decoded and resized once, in place of as many files.
    pack: bool = False
    # Copies that file to the node's own disk (local_scratch of its partition) at the beginning of a job.
    stage_to_node: bool = False
    # Where the job's build_preprocessing works: async (on the CPU, ahead of the training) or model (in the network).
    preprocessing: str = "async"
    # fastai: processes that read ahead of the training; None: a core each, but one. The result is the same with any.
    workers: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Train:
    """How the network is trained."""

    epochs: int = 1
    # None: 64 for arrays; a dataset or a generator then brings batches of its own.
    batch_size: int | None = None
    # What `batch_size` counts: global (it is divided among the GPUs) or per_replica (each GPU gets as many).
    batch_scaling: str = "global"
    # Multiplies the learning rate by the number of GPUs, for batches that grow with it.
    scale_learning_rate: bool = False
    # None: the optimizer's own default.
    learning_rate: float | None = None
    # The framework's own by name, the job's by name, any by import path; each also as {class_name: …, config: {…}}.
    optimizer: Any = "adam"
    # One for all outputs of the network, or {price: mse, kind: sparse_categorical_crossentropy}, or a list.
    loss: Any = None
    # How much the loss of each output counts: {price: 1.0, kind: 0.5}, or a list.
    loss_weights: Any = None
    # A list, or {kind: [accuracy]}. None: no list, which OmegaConf would let no mapping take the place of.
    metrics: Any = None
    # {0: 1.0, 1: 50.0} by class, or balanced: each class weighs as much as every other.
    class_weight: Any = None
    # Named as optimizers are.
    callbacks: list[Any] = field(default_factory=list)
    # A Keras dtype policy, for example mixed_float16; None: float32. fastai: mixed_float16 and mixed_bfloat16.
    mixed_precision: str | None = None
    seed: int = 0
    # Kernels that give the same result each time, to the bit, where a GPU has faster ones that do not.
    deterministic: bool = False
    # Keras: so many steps are an epoch, and the next one goes on where it ended; None: the data itself says how many.
    steps_per_epoch: int | None = None
    steps_per_execution: int = 1
    jit_compile: bool = False
    # fastai: the stages of the training; docs/fastai.md. Empty: one fit_one_cycle of `epochs`.
    recipe: list[Any] = field(default_factory=list)
    # Which of the learning-rate finder's suggestions is the learning rate: valley, steep/10, or {rate: valley, num_it:
    # 200}; described in truba_runner/config/lr_find.py. None: no finder is run.
    lr_find: Any = None


@dataclass
class Checkpoint:
    """What is kept of the network, and when the state is saved that an interrupted run goes on from."""

    save_model: bool = True
    # Beside the end of every epoch.
    every_steps: int | None = None
    every_minutes: float | None = 10.0
    # So many of the newest are kept beside the best, after the end of the run too.
    keep: int = 2
    # Which end of an epoch is the best: a metric, and whether it is to be small (min) or large (max).
    monitor: str = "val_loss"
    mode: str = "min"
    # Models for use, in checkpoints/models/: model_{epoch}.keras after each epoch, best.keras after each better one.
    model_each_epoch: bool = False
    best_model: bool = False
    # Rehearses interruptions first, and fails where a training that is resumed differs from an undisturbed one.
    verify: bool = False
    # What a checkpoint cannot hold ends the run at its start, in place of a warning.
    strict: bool = False


@dataclass
class Finish:
    """What is made of a training that has ended."""

    # Metrics and predictions on the held-out split.
    evaluate: bool = True
    # Learning curves as a picture; of the runs of a job array there are none.
    plots: bool = True


@dataclass
class TensorBoard:
    """Event files for TensorBoard, in the run directory; docs/tensorboard.md."""

    enabled: bool = True
    # How far the points of the curves by step lie apart; None: curves by epoch alone.
    every_steps: int | None = 10
    # On a cluster they are written on the node's own disk (local_scratch of its partition), and copied from there.
    node_local: bool = True
    # How often what was appended there is copied: a kill takes at most so much of the curves along.
    sync_seconds: float = 30.0
    # The network's graph, once.
    graph: bool = False
    # First and last step of a profile, counted over all epochs: [10, 20].
    profile_steps: list[int] = field(default_factory=list)
    # `truba tensorboard` on a login node ends when nobody has looked at the page for so long; 0: never.
    idle_minutes: float = 30.0


@dataclass
class Resources:
    """What is asked of the cluster. GPUs, cores and memory are counted per node."""

    # auto: the one that Slurm expects to start it on soonest.
    partition: str = "${cluster.default_partition}"
    nodes: int = 1
    gpus: int = "${cluster.default_gpus}"  # type: ignore[assignment]
    # None: as many as the partition wants for these GPUs.
    cores: int | None = None
    # None: the partition's default for these cores.
    memory_gb: float | None = None
    # auto: worked out from earlier runs of the same experiment.
    time: str = "1h"
    # Empty: one job that may take all of `time`. Else a chain of jobs of at most so long, each going on where the one
    # before it was; short jobs start sooner.
    segment: str = ""
    # How long before the time limit Slurm sends the signal on which a run saves and goes back into the queue.
    # None: 90, or half of a shorter limit.
    signal_seconds: int | None = None
    account: str = "${cluster.default_account}"
    constraint: str = ""
    # How often an interrupted run puts itself back into the queue.
    max_requeues: int = 1000
    # Slurm's mails: END, FAIL, …, joined by commas. Empty with an address: END,FAIL.
    mail_type: str = ""
    mail_user: str = ""


@dataclass
class Notify:
    """Who is told of a run's end."""

    # Gets a POST with JSON when the run has finished or failed.
    webhook: str = ""


@dataclass
class Drill:
    """Steps, over all epochs, at which a run breaks itself on purpose; `truba drill` sets them."""

    # At its first start, with the signal that Slurm sends before a time limit.
    signal_at_step: int | None = None
    # At its second, with SIGKILL.
    kill_at_step: int | None = None
    # As checkpoint.verify, but trains on whatever comes of it.
    verify: bool = False


@dataclass
class Code:
    """What a job trains: the project's files as they were submitted; docs/environments.md."""

    # false: they are read from the project folder when the job starts, as they are then.
    snapshot: bool = True
    # More than so many megabytes are refused. What looks like a secret is left out, unless `include` names it.
    max_mb: float = 50.0
    include: list[str] = field(default_factory=list)


@dataclass
class Launcher:
    """What the command does after it has submitted."""

    # For sweepers that need a value back, and for tests: holds the terminal until the jobs have ended.
    wait: bool = False
    # What a sweeper that needs a value is given: a name among the metrics of the result.
    metric: str = ""


@dataclass
class Experiment:
    """A whole config: one run."""

    name: str = MISSING
    job: Job = field(default_factory=Job)
    data: Data = field(default_factory=Data)
    train: Train = field(default_factory=Train)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    finish: Finish = field(default_factory=Finish)
    tensorboard: TensorBoard = field(default_factory=TensorBoard)
    resources: Resources = field(default_factory=Resources)
    notify: Notify = field(default_factory=Notify)
    cluster: Cluster = field(default_factory=Cluster)
    environment: Environment = field(default_factory=Environment)
    code: Code = field(default_factory=Code)
    launcher: Launcher = field(default_factory=Launcher)
    sweep: Sweep = field(default_factory=Sweep)
    drill: Drill = field(default_factory=Drill)
    # Prints the plan and the sbatch script; submits nothing and writes nothing.
    dry_run: bool = False
    # Starts anew beside an earlier run of the same config.
    fresh: bool = False
    # Lets a run that was begun go on with training code that has changed since: a mistake at its end was mended.
    accept_changed_code: bool = False


@cache
def schema() -> DictConfig:
    """The types of a whole config; not to be altered. It takes as long to make as a config takes to be checked."""
    made: DictConfig = OmegaConf.structured(Experiment)
    return made


def experiment_from(values: Any) -> Experiment:
    """The typed form of a mapping or of a composed Hydra config.

    Raises:
        omegaconf.errors.OmegaConfBaseException: a key, a type or an interpolation is wrong, or a value is missing.
    """
    merged = OmegaConf.merge(schema(), values)
    experiment = to_object(merged)
    if not isinstance(experiment, Experiment):
        raise TypeError(f"expected a mapping, got {type(values).__name__}")
    return experiment


def detect_cluster() -> str:
    """The file of `conf/cluster/` that `cluster=auto` stands for: $TRUBA_CLUSTER, else truba where there is Slurm."""
    return os.environ.get("TRUBA_CLUSTER") or ("truba" if shutil.which("sbatch") else "local")
