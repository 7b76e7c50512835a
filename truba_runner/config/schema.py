"""Dataclasses of every config key; Hydra checks the keys and types of an experiment against them.

The site's keys are in `site.py`, those for many runs of one experiment in `sweep.py`.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Optional

from omegaconf import MISSING, DictConfig, OmegaConf

from truba_runner.config.omegaconf_private import to_object
from truba_runner.config.site import Cluster as Cluster
from truba_runner.config.site import Environment as Environment
from truba_runner.config.site import Partition as Partition
from truba_runner.config.site import Refusal as Refusal
from truba_runner.config.sweep import Search as Search
from truba_runner.config.sweep import Sweep as Sweep


@dataclass
class Job:
    """The training code: a module of `jobs/`, the backend that runs it, and the options passed to its functions."""

    module: str = MISSING
    backend: str = "keras"
    options: dict[str, Any] = field(default_factory=dict)
    # URLs of pretrained weights, by architecture. options.arch selects one; options.pretrained: whether to use any.
    weights: dict[str, str] = field(default_factory=dict)
    # Values for a build_model that takes Keras Tuner's `hp`, by its names for them; others have their defaults.
    hyperparameters: dict[str, Any] = field(default_factory=dict)


@dataclass
class Source:
    """A file or a folder required in the data folder; neither if a Python package ships the data."""

    file: str = ""
    # Instead of a file: a folder of images, which cannot be downloaded; you put it there.
    folder: str = ""
    url: str = ""
    sha256: str = ""
    # For data that needs an account to download: the page where a person gets it.
    page: str = ""


@dataclass
class Data:
    """The training data, by name, and where its files come from."""

    name: str = MISSING
    folder: str = "${cluster.data_folder}"
    sources: dict[str, Source] = field(default_factory=dict)
    # Repositories of the Hugging Face Hub that the job reads: OWNER/NAME, datasets/OWNER/NAME, also with @REVISION, or
    # {repo: OWNER/NAME, files: ['*.json', '*.safetensors']}. They are fetched before the job, which has no network.
    hub: list[Any] = field(default_factory=list)
    # Data to use instead in a local run if its own can neither be found nor downloaded.
    fallback: str = ""
    # For images: regular expression whose first group is the label in a file's name. Checked at submission if possible.
    label_pattern: str = ""
    # Read images from one packed file, decoded and resized once, instead of from single files.
    pack: bool = False
    # Copy the packed file to the node's local disk (local_scratch of its partition) when a job starts.
    stage_to_node: bool = False
    # Where the job's build_preprocessing runs: async (on the CPU, ahead of the training) or model (in the network).
    preprocessing: str = "async"
    # fastai: processes that load data; None: one per core, less one, 16 at most. The number does not change the result.
    workers: Optional[int] = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Train:
    """How the network is trained."""

    epochs: int = 1
    # None: 64 for arrays; datasets and generators provide their own batches.
    batch_size: Optional[int] = None
    # What `batch_size` counts: global (divided among the GPUs) or per_replica (for each GPU).
    batch_scaling: str = "global"
    # Multiply the learning rate by the number of GPUs, for batches that grow with that number.
    scale_learning_rate: bool = False
    # None: the optimizer's own default.
    learning_rate: Optional[float] = None
    # The name of one of the framework's or the job's, or an import path; each also as {class_name: …, config: {…}}.
    optimizer: Any = "adam"
    # One loss for all outputs of the network, or {price: mse, kind: sparse_categorical_crossentropy}, or a list.
    loss: Any = None
    # Weight of each output's loss: {price: 1.0, kind: 0.5}, or a list.
    loss_weights: Any = None
    # A list, or {kind: [accuracy]}. The default is None, as OmegaConf would not let a mapping replace a list.
    metrics: Any = None
    # {0: 1.0, 1: 50.0} by class, or balanced: all classes have the same total weight.
    class_weight: Any = None
    # Named like `optimizer`.
    callbacks: list[Any] = field(default_factory=list)
    # A Keras dtype policy, for example mixed_float16; None: float32. fastai: mixed_float16 or mixed_bfloat16.
    mixed_precision: Optional[str] = None
    seed: int = 0
    # Use kernels that are deterministic to the bit, even if a GPU has faster ones that are not.
    deterministic: bool = False
    # Keras: steps in an epoch; the next epoch continues in the data where it ended. None: one pass over the data.
    steps_per_epoch: Optional[int] = None
    steps_per_execution: int = 1
    jit_compile: bool = False
    # fastai: the stages of the training; docs/fastai.md. Empty: one fit_one_cycle of `epochs` epochs.
    recipe: list[Any] = field(default_factory=list)
    # The learning-rate finder's suggestion to take as the learning rate: valley, steep/10, or {rate: valley, num_it:
    # 200}; see truba_runner/config/lr_find.py. None: no finder runs.
    lr_find: Any = None


@dataclass
class Checkpoint:
    """Which models are kept, and when checkpoints are saved from which an interrupted run resumes."""

    save_model: bool = True
    # In addition to the end of every epoch.
    every_steps: Optional[int] = None
    every_minutes: Optional[float] = 10.0
    # Number of newest checkpoints to keep in addition to the best, also after the run has finished.
    keep: int = 2
    # The metric by which the best epoch is chosen, and whether it should be small (min) or large (max).
    monitor: str = "val_loss"
    mode: str = "min"
    # Save models in checkpoints/models/: model_{epoch}.keras after each epoch, best.keras after each better one.
    model_each_epoch: bool = False
    best_model: bool = False
    # First rehearse interruptions; fail if a resumed training differs from an undisturbed one.
    verify: bool = False
    # Fail at the start, instead of warning, if a checkpoint cannot hold some state.
    strict: bool = False


@dataclass
class Finish:
    """What to produce after the training."""

    # Metrics and predictions on the held-out split.
    evaluate: bool = True
    # Learning curves as a picture; not for runs of a job array.
    plots: bool = True


@dataclass
class TensorBoard:
    """Event files for TensorBoard, in the run directory; docs/tensorboard.md."""

    enabled: bool = True
    # Steps between two points of the curves by step; None: only curves by epoch.
    every_steps: Optional[int] = 10
    # On a cluster, write event files to the node's local disk (local_scratch of its partition) and copy them.
    node_local: bool = True
    # Interval of that copying; a kill loses at most this much of the curves.
    sync_seconds: float = 30.0
    # Write the network's graph, once.
    graph: bool = False
    # First and last step to profile, counted over all epochs: [10, 20].
    profile_steps: list[int] = field(default_factory=list)
    # `truba tensorboard` on a login node exits when nobody has viewed the page for this long; 0: never.
    idle_minutes: float = 30.0


@dataclass
class Resources:
    """Resources to request from the cluster. GPUs, cores and memory are per node."""

    # auto: the partition on which Slurm expects the earliest start.
    partition: str = "${cluster.default_partition}"
    nodes: int = 1
    gpus: int = "${cluster.default_gpus}"  # type: ignore[assignment]
    # None: as many as the partition requires for these GPUs.
    cores: Optional[int] = None
    # Memory on each node, or for each core; set one of the two at most. None: the partition's default for these cores.
    memory_gb: Optional[float] = None
    memory_per_cpu_gb: Optional[float] = None
    # auto: estimated from earlier runs of the same experiment.
    time: str = "1h"
    # Empty: one job that may take all of `time`. Otherwise the longest single job: the training is split into a chain
    # of jobs, each resuming from the one before it; short jobs start sooner.
    segment: str = ""
    # How long before the time limit Slurm sends the signal on which a run saves and requeues itself.
    # None: 90, or half of the limit if that is less.
    signal_seconds: Optional[int] = None
    account: str = "${cluster.default_account}"
    constraint: str = ""
    # Nodes to avoid, and nodes that the job must get: akya3, or a list: [akya3, "akya[7-9]"].
    exclude: Any = ""
    nodelist: Any = ""
    # Empty: the first of the partition's `qos`, if it has any.
    qos: str = "${cluster.default_qos}"
    reservation: str = ""
    # Share the nodes with no other job; the account is charged for whole nodes.
    exclusive: bool = False
    # Further options of sbatch by their long names: {licenses: matlab, nice: 100}; for one without a value: true.
    sbatch: dict[str, Any] = field(default_factory=dict)
    # How many times an interrupted run requeues itself at most.
    max_requeues: int = 1000
    # Events for Slurm's mails, separated by commas: END, FAIL, …. Empty with a mail_user: END,FAIL.
    mail_type: str = ""
    mail_user: str = ""


@dataclass
class Notify:
    """Whom to notify of a run's end."""

    # URL that gets a POST with JSON when the run has finished or failed.
    webhook: str = ""


@dataclass
class Drill:
    """Steps, counted over all epochs, at which a run interrupts itself on purpose; set by `truba drill`."""

    # At the first start, with the signal that Slurm sends before a time limit.
    signal_at_step: Optional[int] = None
    # At the second start, with SIGKILL.
    kill_at_step: Optional[int] = None
    # As checkpoint.verify, but the training continues even if a difference is found.
    verify: bool = False


@dataclass
class Code:
    """The code that a job executes: a snapshot of the project's files at submission; docs/environments.md."""

    # false: the job reads the project folder as it is when the job starts.
    snapshot: bool = True
    # Larger snapshots are refused. Files that look like secrets are left out, unless `include` names them.
    max_mb: float = 50.0
    include: list[str] = field(default_factory=list)


@dataclass
class Launcher:
    """What the command does after submission."""

    # Wait in the terminal until the jobs have ended: for sweepers that need a value back, and for tests.
    wait: bool = False
    # The metric of the result to return to a sweeper that needs a value.
    metric: str = ""


@dataclass
class Experiment:
    """A whole config, which describes one run."""

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
    # Print the plan and the sbatch script; submit and write nothing.
    dry_run: bool = False
    # Start a new run in addition to an earlier one of the same config.
    fresh: bool = False
    # Allow resuming a run although its training code has changed, for example after fixing a mistake at its end.
    accept_changed_code: bool = False


@cache
def schema() -> DictConfig:
    """Return the types of a whole config; do not modify it. Cached: making it takes as long as checking a config."""
    made: DictConfig = OmegaConf.structured(Experiment)
    return made


def experiment_from(values: Any) -> Experiment:
    """Convert a mapping or a composed Hydra config to an `Experiment`.

    Raises:
        omegaconf.errors.OmegaConfBaseException: a key, a type or an interpolation is wrong, or a value is missing.
    """
    merged = OmegaConf.merge(schema(), values)
    experiment = to_object(merged)
    if not isinstance(experiment, Experiment):
        raise TypeError(f"expected a mapping, got {type(values).__name__}")
    return experiment


def detect_cluster() -> str:
    """Return the cluster that `cluster=auto` stands for: $TRUBA_CLUSTER, else truba if sbatch exists, else local."""
    return os.environ.get("TRUBA_CLUSTER") or ("truba" if shutil.which("sbatch") else "local")
