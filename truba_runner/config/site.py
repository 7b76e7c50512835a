"""Config keys of the site: the cluster, its partitions, and the Python environment of a job."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from omegaconf import MISSING


@dataclass
class Partition:
    """Facts and rules of a Slurm partition. Cores, GPUs and memory are per node; 0 means unchecked."""

    nodes: int = 0
    cores_per_node: int = 0
    memory_gb: float = 0.0
    gpus_per_node: int = 0
    gpu: str = ""
    gpu_memory_gb: float = 0.0
    # Default number of cores for each GPU.
    cores_per_gpu: int = 0
    # With GPUs: `exactly` cores_per_gpu cores for each, a `multiple` of that, or `at_least` that many. `any`: any
    # number, also without GPUs; cores_per_gpu and the keys below are then only defaults.
    cores_rule: str = "multiple"
    # Without GPUs: the minimum, a number that the cores must be a multiple of, and all allowed numbers (empty: any).
    min_cores: int = 1
    cores_multiple: int = 1
    cores_allowed: list[int] = field(default_factory=list)
    max_time: str = "3-00:00:00"
    local_scratch: str = "/tmp"
    features: list[str] = field(default_factory=list)
    # Whether a job must select one of the features.
    feature_required: bool = False
    # QOS of which a job must choose one; the first is the default. Empty: none is needed.
    qos: list[str] = field(default_factory=list)
    # Partitions whose nodes this one mixes. A job selects one by the feature of the same name; its facts then apply.
    families: list[str] = field(default_factory=list)
    access: str = ""
    # Whether resources.partition=auto may choose it.
    automatic: bool = True
    # The GPU's CUDA compute capability ("7.0" for a V100); empty: frameworks are not checked for it.
    compute_capability: str = ""
    # The nodes' GPU driver, and the newest CUDA that it supports, as nvidia-smi prints it; empty: unchecked.
    driver: str = ""
    driver_cuda: str = ""
    # Memory of a GPU on nodes with a feature, where it differs from gpu_memory_gb.
    feature_gpu_memory_gb: dict[str, float] = field(default_factory=dict)
    # The Slurm cluster of the partition, if the site has several, and the login nodes that submit to it.
    slurm_cluster: str = ""
    login_nodes: list[str] = field(default_factory=list)
    # Added to `Cluster.caches`, or in place of its entries; an empty folder leaves the variable as the node sets it.
    caches: dict[str, str] = field(default_factory=dict)


@dataclass
class Refusal:
    """What the site's submit filter prints when it refuses a job, what that means, and what to do about it."""

    id: str = MISSING
    # A regular expression. Its named groups are placeholders of `means` and `do`, which are in English.
    matches: str = MISSING
    means: str = MISSING
    do: str = MISSING


@dataclass
class NodeCheck:
    """What a Slurm job checks on each of its nodes before it trains; docs/nodes.md."""

    enabled: bool = True
    # Time for all checks together; a node that takes longer is bad.
    seconds: float = 10.0
    # Size of the file that is written to the runs folder and read back.
    shared_disk_mb: int = 5
    # Least free space in the partition's local_scratch.
    node_disk_gb: float = 1.0
    # Whether GPUs are checked, of partitions that say what their GPUs are (compute_capability).
    gpus: bool = True
    # Least free part of each GPU's memory.
    gpu_memory_free: float = 0.9
    # Greatest difference of the node's clock.
    clock_seconds: float = 30.0
    # Time for a small convolution in the framework, once it is imported.
    convolution_seconds: float = 120.0


@dataclass
class Cluster:
    """A site: its scheduler, its folders, and what its partitions allow."""

    name: str = MISSING
    scheduler: str = "local"
    # Everything that a job writes must be under this folder; empty: the site has no such rule.
    scratch: str = ""
    runs_folder: str = "runs"
    data_folder: str = "data"
    # Folders for the caches of libraries and for temporary files, by environment variable. A variable that is set when
    # the job is submitted, or in environment.setup_before, keeps its value.
    caches: dict[str, str] = field(default_factory=dict)
    # The site deletes files under `scratch` that were not written to for this many days; 0: never.
    scratch_days: int = 0
    # The acknowledgement that the site requires in publications.
    acknowledgement: str = ""
    default_partition: str = ""
    default_account: str = ""
    default_qos: str = ""
    default_gpus: int = 0
    # The kind that environment=auto stands for: inherit or module; default_modules are the modules of both.
    default_environment: str = "inherit"
    default_modules: list[str] = field(default_factory=list)
    # The modules of environment=conda, which provide the command conda.
    conda_modules: list[str] = field(default_factory=list)
    account_cores: int = 0
    # Partition of the short job that inspects an environment if the login node cannot; empty: the experiment's own.
    probe_partition: str = ""
    # The QOS of that job; empty: the experiment's.
    probe_qos: str = ""
    # A list of bad nodes that colleagues share, beside the one in runs_folder; empty: none. It is a file that all of
    # them can write.
    bad_nodes: str = ""
    # Jobs avoid a bad node for this many days, unless it is healthy again before.
    bad_nodes_days: float = 7.0
    # Most tasks in one job array; 0: as Slurm reports (MaxArraySize).
    max_array_size: int = 0
    # How jobs request memory: any (--mem or --mem-per-cpu), per_cpu (never --mem), or none (Slurm derives it from the
    # cores).
    memory: str = "any"
    # Memory per core of jobs that set no memory; None: the partition's default.
    default_memory_per_cpu_gb: Optional[float] = None
    # Whether jobs may go back to the queue. If not, an interrupted run resumes when it is submitted again.
    requeue: bool = True
    # The option of sbatch that requests the GPUs of each node.
    gpu_option: str = "--gres=gpu:{gpus}"
    node_check: NodeCheck = field(default_factory=NodeCheck)
    refusals: list[Refusal] = field(default_factory=list)
    partitions: dict[str, Partition] = field(default_factory=dict)


@dataclass
class Environment:
    """The Python environment of a job; docs/environments.md."""

    name: str = MISSING
    # inherit (the submitting Python), module, venv, conda or apptainer.
    kind: str = "inherit"
    # The modules to load first, after `module purge`; for apptainer, outside the container.
    modules: list[str] = field(default_factory=list)
    # Shell lines that the job runs after the modules and the activation of venv or conda; for apptainer, outside the
    # container. A line that fails ends the job.
    setup: list[str] = field(default_factory=list)
    # Shell lines that the job runs before the modules.
    setup_before: list[str] = field(default_factory=list)
    # The command that starts Python. Empty: the submitting interpreter, that of `venv` or `conda`, or python3.
    python: str = ""
    # venv: the folder of the virtual environment.
    venv: str = ""
    # conda: the environment's name, or its absolute path.
    conda: str = ""
    # conda: the command whose hook activates it; it may also be micromamba or mamba (2 or newer), or a path.
    conda_command: str = "conda"
    # apptainer: an image file, or a folder with an unpacked image.
    image: str = ""
    # apptainer: further paths to bind, in addition to those of the run, its data, its code and the scratch.
    binds: list[str] = field(default_factory=list)
    # apptainer: further environment variables to pass into the container, as names or shell patterns (WANDB_*).
    pass_on: list[str] = field(default_factory=list)
    # apptainer: the command to run; it may also be singularity, or a path.
    apptainer: str = "apptainer"
