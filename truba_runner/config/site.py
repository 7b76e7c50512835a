"""What a config may say of the place where it is trained: the site, its partitions, and how a job gets its Python."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING


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
