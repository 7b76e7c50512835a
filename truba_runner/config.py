"""Everything that a config may say, as dataclasses; Hydra checks every key and type of an experiment against them."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from truba_runner.plain_objects import to_object


@dataclass
class Partition:
    """One Slurm partition's facts and rules. Cores, GPUs and memory are counted per node; 0 is not checked."""

    nodes: int = 0
    cores_per_node: int = 0
    memory_gb: float = 0.0
    gpus_per_node: int = 0
    gpu: str = ""
    gpu_memory_gb: float = 0.0
    cores_per_gpu: int = 0
    min_cores: int = 1
    max_time: str = "3-00:00:00"
    local_scratch: str = "/tmp"
    features: list[str] = field(default_factory=list)
    feature_required: bool = False
    # Partitions whose nodes this one mixes, each chosen with a feature of the same name; their facts then apply.
    families: list[str] = field(default_factory=list)
    access: str = ""
    # Whether resources.partition=auto may choose it.
    automatic: bool = True
    login_nodes: list[str] = field(default_factory=list)


@dataclass
class Cluster:
    """A site: how work is started there, where its files lie, and what its partitions allow."""

    name: str = MISSING
    scheduler: str = "local"
    # Everything a job writes must lie under this folder; empty where the site has no such rule.
    scratch: str = ""
    runs_folder: str = "runs"
    data_folder: str = "data"
    # Files there are deleted when they have not been written to for so many days; 0: none are.
    scratch_days: int = 0
    # The sentence that a publication owes the site.
    acknowledgement: str = ""
    default_partition: str = ""
    default_account: str = ""
    default_gpus: int = 0
    # What environment=auto is: inherit or module.
    default_environment: str = "inherit"
    default_modules: list[str] = field(default_factory=list)
    account_cores: int = 0
    # Where a short job tells what an environment holds, if the login node cannot; empty: the experiment's partition.
    probe_partition: str = ""
    # Tasks in one job array; 0: Slurm is asked (MaxArraySize).
    max_array_size: int = 0
    partitions: dict[str, Partition] = field(default_factory=dict)


@dataclass
class Environment:
    """How a job gets its Python; docs/environments.md."""

    name: str = MISSING
    # inherit (the Python that submits), module, venv or apptainer.
    kind: str = "inherit"
    # Shell lines that run in the job before all else.
    setup: list[str] = field(default_factory=list)
    # The command that starts Python. Empty: the interpreter that submits, that of `venv`, or python3.
    python: str = ""
    # module: what is loaded, after a purge.
    modules: list[str] = field(default_factory=list)
    # venv: its folder.
    venv: str = ""
    # apptainer: an image file, or a folder that holds an image's files.
    image: str = ""
    # apptainer: more paths that the job sees, beside those of the run, its data, its code and the scratch.
    binds: list[str] = field(default_factory=list)
    # apptainer: more variables of the job that the container gets, by name or as a pattern of the shell (WANDB_*).
    pass_on: list[str] = field(default_factory=list)
    # apptainer: the command; it may also be singularity, or a path.
    apptainer: str = "apptainer"


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
    # fastai: the stages of the training, described in truba_runner/recipe.py. Empty: one fit_one_cycle of `epochs`.
    recipe: list[Any] = field(default_factory=list)
    # Which of the learning-rate finder's suggestions is the learning rate: valley, steep/10, or {rate: valley, num_it:
    # 200}; described in truba_runner/lr_find.py. None: no finder is run.
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
