"""Give the folders of a job's caches, which the site's data puts on a disk that has room for them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from truba_runner.config.partitions import facts_of
from truba_runner.config.schema import Experiment
from truba_runner.language import _
from truba_runner.slurm.request import Request

# Where a library keeps, below the home, what its user has downloaded, if its variable is not set.
_AT_HOME = {
    "HF_HOME": (".cache/huggingface/hub", ".cache/huggingface/datasets"),
    "TORCH_HOME": (".cache/torch/hub",),
    "KERAS_HOME": (".keras/datasets", ".keras/models"),
}


def folders(experiment: Experiment, request: Request) -> dict[str, str]:
    """Return the folders by variable: those of the cluster, then those of the partition."""
    cluster = experiment.cluster
    if cluster.scheduler != "slurm":
        return {}
    own = facts_of(cluster, request.partition, request.constraint).caches
    return {name: folder for name, folder in {**cluster.caches, **own}.items() if folder}


def warnings(experiment: Experiment, request: Request, variables: Mapping[str, str] = os.environ) -> Iterator[str]:
    """Yield a warning for each cache in the home that jobs do not see, until there is one where they look."""
    for name, folder in folders(experiment, request).items():
        if name in variables or Path(folder).exists():
            continue
        for at in _AT_HOME.get(name, ()):
            there = Path(variables.get("HOME", "/")) / at
            with suppress(OSError):
                if any(there.iterdir()):
                    yield _(
                        "jobs look for {there} in {folder} ({variable}): copy it there, or set {variable} yourself.",
                        there=there,
                        folder=Path(folder) / there.name,
                        variable=name,
                    )
