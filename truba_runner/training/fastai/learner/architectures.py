"""Resolve `job.options.arch` to a network, and `job.options.pretrained` to its weights.

Compute nodes have no internet: the weights were staged into the data folder, and are verified before use.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from truba_runner.data import weights
from truba_runner.data.staging import matches
from truba_runner.errors import Failed, nearest
from truba_runner.language import _
from truba_runner.training.backend import Context


def chosen(context: Context) -> dict[str, Any]:
    """Return the arguments for fastai's vision_learner that replace `job.options.arch`; empty if that is not set.

    `arch` is a torchvision function or the name of a timm network; the latter also gets `pretrained_cfg_overlay`. Call
    this before reading any data, so that mistakes show at once.

    Raises:
        truba_runner.errors.Failed: there is no such network, or its weights are missing or damaged.
    """
    job, folder = context.experiment.job, Path(context.experiment.data.folder)
    # Otherwise torchvision and timm would try to download missing weights, timm for most of a minute.
    os.environ.update(TORCH_HOME=str(folder / weights.FOLDER), HF_HUB_OFFLINE="1")
    if not job.options.get("arch"):
        return {}
    name = str(job.options["arch"])
    arch = _timm(name.removeprefix(weights.TIMM)) if name.startswith(weights.TIMM) else _torchvision(name)
    source = weights.source(job)
    if source is None:
        return {"arch": arch}
    file = folder / source.file
    if not file.is_file() or not matches(file, source.sha256):
        raise Failed(
            "{file}, the pretrained weights of job.options.arch={name}, {fault}. Submit the run again, which "
            "stages it, or set job.options.pretrained=false.",
            file=file,
            name=name,
            fault=_("is damaged") if file.is_file() else _("is not there"),
        )
    overlay = {"pretrained_cfg_overlay": {"file": str(file)}} if isinstance(arch, str) else {}
    return {"arch": arch, **overlay}


def _torchvision(name: str) -> Any:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise Failed(
            "job.options.arch={name}: torchvision has no such architecture. {nearest} Write one of timm's as "
            "timm/NAME.",
            name=name,
            nearest=nearest(name, known),
        )
    return torchvision.models.get_model_builder(name)


def _timm(name: str) -> str:
    try:
        import timm
    except ImportError as error:
        raise Failed(
            "job.options.arch=timm/{name}: timm is not installed where the job runs. Install it, or choose one of "
            "torchvision's architectures.",
            name=name,
        ) from error
    if not timm.is_model(name):
        known = [*timm.list_models(), *timm.list_pretrained()]
        raise Failed(
            "job.options.arch=timm/{name}: timm has no such architecture. {nearest}",
            name=name,
            nearest=nearest(name, known),
        )
    return name
