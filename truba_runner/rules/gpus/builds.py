"""Validate the frameworks of an environment against a partition's GPUs and their driver. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from truba_runner.config.backends import TRAITS
from truba_runner.config.partitions import asked_for
from truba_runner.config.schema import Cluster, Experiment, Partition
from truba_runner.errors import Problem
from truba_runner.language import _
from truba_runner.rules.gpus.architecture import capability_of, has_kernels, has_ptx, numbers
from truba_runner.rules.gpus.wheels import for_gpu, of_version

# NVIDIA's support matrices: cuDNN 9.10 has kernels for Maxwell, Pascal and Volta, 9.11 none before Turing (7.5).
_CUDNN_WITHOUT_VOLTA, _TURING = (9, 11), (7, 5)


@dataclass(frozen=True)
class Build:
    """What a framework was built for, as environment/report.py reads it; empty where it is not known."""

    framework: str
    version: str
    cuda: str
    architectures: tuple[str, ...]
    without_cuda: bool
    cudnn: str


def builds(backend: str, held: Mapping[str, Any]) -> Iterator[Build]:
    """Yield the frameworks that a backend trains with, from an environment's report; older reports lack some keys."""
    traits = TRAITS.get(backend)
    for name in ("tensorflow", "torch"):
        if not traits or name not in traits.needs or name not in held.get("packages", {}):
            continue
        version = held["packages"][name]
        listed = held.get("architectures", {}).get(name)
        known = of_version(name, version)
        yield Build(
            name,
            version,
            held.get("cuda", {}).get(name, ""),
            tuple(listed or (known.architectures if known else ())),
            name in held.get("without_cuda", ()),
            held.get("cudnn", {}).get(name, ""),
        )


def problems(experiment: Experiment, held: Mapping[str, Any], received: str) -> Iterator[Problem]:
    """Report frameworks that cannot compute on the partition's GPUs. `received`: how the environment was chosen."""
    facts, capability = asked_for(experiment), capability_of(experiment)
    if not capability:
        return
    name, cluster = experiment.resources.partition, experiment.cluster
    for build in builds(experiment.job.backend, held):
        broken = list(_broken(build, facts, name, cluster))
        if broken:
            what = f"{received}: {build.framework} {build.version}"
            yield Problem(what, "; ".join(one.rstrip(".") for one in broken) + ".", _remedy(build, experiment, facts))


def warnings(experiment: Experiment, held: Mapping[str, Any]) -> Iterator[str]:
    """Warn of a cuDNN without kernels for the partition's GPUs: only convolutions and the like need it."""
    facts, capability = asked_for(experiment), capability_of(experiment)
    if not capability or capability >= _TURING:
        return
    for build in builds(experiment.job.backend, held):
        if build.cudnn and numbers(build.cudnn) >= _CUDNN_WITHOUT_VOLTA:
            yield _(
                "{framework} {version} loads cuDNN {cudnn}, which has no kernels for {gpu}: convolutions and recurrent "
                "layers may fail there. Install 'nvidia-cudnn-cu12<9.11' into the environment.",
                framework=build.framework, version=build.version, cudnn=build.cudnn, gpu=facts.gpu,
            )  # fmt: skip


def _broken(build: Build, facts: Partition, name: str, cluster: Cluster) -> Iterator[str]:
    """Yield the rules that a build breaks on a partition."""
    capability, where = numbers(facts.compute_capability), f"conf/cluster/{cluster.name}.yaml"
    if build.without_cuda:
        yield _("it is built for CPUs only, and {partition} has GPUs ({gpu}).", partition=name, gpu=facts.gpu)
        return
    kernels = has_kernels(build.architectures, capability)
    ptx = has_ptx(build.architectures, capability)
    if build.architectures and not kernels and not ptx:
        yield _(
            "it has code for {architectures}, and the {gpu} of {partition} is {own} ({where}, compute_capability).",
            architectures=", ".join(build.architectures), gpu=facts.gpu, partition=name,
            own="sm_" + "".join(map(str, capability)), where=where,
        )  # fmt: skip
    built, most = numbers(build.cuda), numbers(facts.driver_cuda)
    # Source: NVIDIA, "CUDA Compatibility": a driver runs programs built with any CUDA of its own major version, but
    # cannot compile PTX of a newer CUDA.
    if built and most and (built[0] > most[0] or (built > most and ptx and not kernels)):
        yield _(
            "it is built for CUDA {cuda}, and the driver {driver} of {partition} supports CUDA {most} at most "
            "({where}, driver_cuda).",
            cuda=build.cuda, driver=facts.driver, partition=name, most=facts.driver_cuda, where=where,
        )  # fmt: skip


def _remedy(build: Build, experiment: Experiment, facts: Partition) -> str:
    cluster = experiment.cluster
    others = [
        f"{name} ({_(other.access)})" if other.access else name
        for name, other in cluster.partitions.items()
        if other.compute_capability and other.gpus_per_node and not any(_broken(build, other, name, cluster))
    ]
    wheels = [row.said() for row in for_gpu(build.framework, numbers(facts.compute_capability), facts.driver_cuda)]
    parts = []
    if others:
        parts.append(_("It can run on {partitions} (resources.partition).", partitions=_(" or ").join(others)))
    if wheels:
        parts.append(
            _(
                "On {gpu} these can: {wheels}; see docs/gpus.md.",
                gpu=facts.gpu or facts.compute_capability,
                wheels=", ".join(wheels),
            )  # fmt: skip
        )
    return " ".join(parts) or _("Choose another environment.")
