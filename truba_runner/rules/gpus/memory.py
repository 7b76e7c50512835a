"""Refuse a training that cannot fit into the memory of a partition's GPUs, by a lower bound of its need. Pure.

The bound counts the weights, the optimizer's values for each weight, and, for each example of a batch, the activations
that the gradients need. Real trainings need more: gradients, workspaces, the framework's own memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from truba_runner.config.partitions import asked_for
from truba_runner.config.schema import Experiment, Partition
from truba_runner.errors import Problem
from truba_runner.language import _

_GIB = 1 << 30
# Bytes of a weight and of an activation, by Keras' policy or fastai's name for the same; float32 otherwise.
_BYTES = {"mixed_float16": (4, 2), "mixed_bfloat16": (4, 2), "float16": (2, 2), "bfloat16": (2, 2), "float64": (8, 8)}
# Values that Keras' optimizers keep for each weight; other optimizers may keep none.
_SLOTS = {"adam": 2, "adamw": 2, "nadam": 2, "adamax": 2, "rmsprop": 1, "adagrad": 1}
# fastai's batch size where none is set. A Keras job may then return batches of any size.
_FASTAIS_BATCH = 64


@dataclass(frozen=True)
class Size:
    """Counts of a network: trainable weights, other weights, and activations kept for each example's gradients."""

    trainable: int
    fixed: int
    kept: int


@dataclass(frozen=True)
class ResNet:
    """torchvision's ResNets by their blocks in each of the four stages. Source: He et al. 2015, table 1."""

    blocks: tuple[int, int, int, int]
    bottleneck: bool
    weights: int

    def at(self, side: int) -> tuple[int, int, int]:
        """Return the weights, none of them counted as trainable, and what is kept of an image of side × side pixels.

        fastai trains the normalization of a frozen body too, whose gradients need the output of each convolution.
        """
        half = -(-side // 2)
        kept, side = 64 * half * half, -(-half // 2)
        for stage, count in enumerate(self.blocks):
            width, before = 64 * 2**stage, side
            side = -(-side // 2) if stage else side
            out = width * (4 if self.bottleneck else 1)
            # The first block of a stage has a convolution in its shortcut if the shape changes.
            kept += out * side * side if stage or self.bottleneck else 0
            inner = [width * before * before, width * side * side] if self.bottleneck else [width * side * side]
            kept += sum(inner) + out * side * side
            later = ([width] * 2 if self.bottleneck else [width]) + [out]
            kept += (count - 1) * sum(later) * side * side
        return 0, self.weights, kept


RESNETS: Mapping[str, ResNet] = {
    "resnet18": ResNet((2, 2, 2, 2), False, 11_176_512),
    "resnet34": ResNet((3, 4, 6, 3), False, 21_284_672),
    "resnet50": ResNet((3, 4, 6, 3), True, 23_508_032),
    "resnet101": ResNet((3, 4, 23, 3), True, 42_500_160),
    "resnet152": ResNet((3, 8, 36, 3), True, 58_143_808),
}


def memory_gb(facts: Partition, constraint: str) -> float:
    """Return the memory of the largest GPU that a job may get; 0 if it is not known."""
    if constraint in facts.feature_gpu_memory_gb:
        return facts.feature_gpu_memory_gb[constraint]
    others = facts.feature_gpu_memory_gb.values() if constraint not in facts.features else ()
    return max((facts.gpu_memory_gb, *others)) if facts.gpu_memory_gb else 0.0


def problems(experiment: Experiment, size: Size) -> Iterator[Problem]:
    """Report a training that needs more than a GPU has."""
    facts, resources, train = asked_for(experiment), experiment.resources, experiment.train
    memory = memory_gb(facts, resources.constraint)
    if not memory or not resources.gpus or experiment.cluster.scheduler != "slurm":
        return
    weight_bytes, kept_bytes = _BYTES.get(train.mixed_precision or "", (4, 4))
    weights = (size.trainable * (1 + _slots(train.optimizer)) + size.fixed) * weight_bytes / _GIB
    devices = resources.gpus * resources.nodes
    example = 0.0 if _computes_again(experiment, devices) else size.kept * kept_bytes / _GIB
    sharing = devices if train.batch_scaling == "global" else 1
    batch = train.batch_size or (_FASTAIS_BATCH if experiment.job.backend == "fastai" else sharing)
    need = weights + example * batch / sharing
    if need <= memory:
        return
    rule = _(
        "the training needs at least {need:.3g} GB of each GPU's memory, {weights:.3g} GB of it for the weights and "
        "their optimizer and {rest:.3g} GB for its share of a batch, and {gpu} of {partition} has {memory:g} GB "
        "(conf/cluster/{cluster}.yaml, gpu_memory_gb).",
        need=need, weights=weights, rest=need - weights, gpu=facts.gpu, partition=resources.partition, memory=memory,
        cluster=experiment.cluster.name,
    )  # fmt: skip
    fits = int((memory - weights) / example) * sharing if weights < memory and example else 0
    received = f"train.batch_size={batch}" if fits else f"job.module={experiment.job.module}"
    yield Problem(received, rule, _remedy(experiment, fits, need))


def _computes_again(experiment: Experiment, devices: int) -> bool:
    """Return whether activations may be recomputed for the gradients, to save memory.

    XLA does so for GPUs: HloRematerialization in xla/service/gpu/gpu_compiler.cc. Keras uses it only on one device, and
    not in a deterministic training.
    """
    train = experiment.train
    return experiment.job.backend == "keras" and train.jit_compile and not train.deterministic and devices == 1


def _remedy(experiment: Experiment, fits: int, need: float) -> str:
    roomy = [
        name
        for name, facts in experiment.cluster.partitions.items()
        if facts.gpus_per_node and memory_gb(facts, "") >= need
    ]
    partitions = _(" or ").join(roomy)
    if fits and roomy:
        return _(
            "Set train.batch_size={fits} or less, or resources.partition={partitions}.",
            fits=_even(fits), partitions=partitions,
        )  # fmt: skip
    if fits:
        return _("Set train.batch_size={fits} or less.", fits=_even(fits))
    return _("Set {choice}.", choice=f"resources.partition={partitions}") if roomy else _("Choose a smaller network.")


def _even(size: int) -> int:
    """Return the largest power of two that is not above a size: a batch that any number of GPUs divides."""
    return int(2 ** (size.bit_length() - 1))


def _slots(optimizer: Any) -> int:
    name = optimizer.get("class_name", "") if isinstance(optimizer, Mapping) else optimizer
    return _SLOTS.get(str(name).rpartition(".")[2].lower(), 0)
