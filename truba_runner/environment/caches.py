"""Return the cache folders of a job, which the site's file puts on a disk with enough room."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from truba_runner.config.partitions import facts_of
from truba_runner.config.schema import Experiment
from truba_runner.language import _
from truba_runner.slurm.request import Request

# Where a library keeps downloads below the home folder while its variable is not set.
_AT_HOME = {
    "HF_HOME": (".cache/huggingface/hub", ".cache/huggingface/datasets"),
    "TORCH_HOME": (".cache/torch/hub",),
    "KERAS_HOME": (".keras/datasets", ".keras/models"),
}


def folders(experiment: Experiment, request: Request) -> dict[str, str]:
    """Return the folders by variable: the cluster's, replaced by the partition's where it has its own."""
    cluster = experiment.cluster
    if cluster.scheduler != "slurm":
        return {}
    own = facts_of(cluster, request.partition, request.constraint).caches
    return {name: folder for name, folder in {**cluster.caches, **own}.items() if folder}


def warnings(experiment: Experiment, request: Request, variables: Mapping[str, str] = os.environ) -> Iterator[str]:
    """Yield a warning for each cache in the home that jobs will not use, until the folder that they use exists."""
    for name, folder in folders(experiment, request).items():
        if name in variables or Path(folder).exists():
            continue
        for path in _AT_HOME.get(name, ()):
            cache = Path(variables.get("HOME", "/")) / path
            with suppress(OSError):
                if any(cache.iterdir()):
                    yield _(
                        "jobs look for {there} in {folder} ({variable}): copy it there, or set {variable} yourself.",
                        there=cache,
                        folder=Path(folder) / cache.name,
                        variable=name,
                    )
