"""Find a run's file of pretrained weights: its URL, and its place in the data folder. Pure.

An experiment that uses pretrained weights has `job.options.arch` and `job.options.pretrained`, and the URLs in
`job.weights`. An architecture is one of torchvision's, or `timm/NAME.TAG`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from truba_runner.config.schema import Job, Source
from truba_runner.errors import Problem, nearest
from truba_runner.language import _

# Folder in the data folder; TORCH_HOME of a job.
FOLDER = "weights"
TIMM = "timm/"
_ANY_OF_TIMM = "timm/*"
# Prefixes of torchvision's architectures that fastai 2.8 cannot cut into a body and a head.
_UNCUT = ("googlenet", "inception_v3", "maxvit_", "mnasnet", "vit_")


def source(job: Job) -> Source | None:
    """Return the file of pretrained weights; None if the run does not use any, or `problems` refuses its options."""
    url = _url(job)
    if not job.options.get("pretrained") or not url:
        return None
    name = PurePosixPath(urlsplit(url).path)
    if _arch(job).startswith(TIMM):
        return Source(file=f"{FOLDER}/{_arch(job)}{name.suffix}", url=url)
    # torchvision's own path below TORCH_HOME; the file name ends with the beginning of the SHA-256.
    digest = re.search(r"-([0-9a-f]{8,})\.", name.name)
    return Source(file=f"{FOLDER}/hub/checkpoints/{name.name}", url=url, sha256=digest[1] if digest else "")


def problems(job: Job) -> Iterator[Problem]:
    """Yield a Problem if the architecture is unknown, cannot be cut, or lacks pretrained weights."""
    arch = _arch(job)
    if not job.weights or not arch:
        return
    received = f"job.options.arch={arch}"
    if not arch.startswith(TIMM):
        if arch not in job.weights:
            known = [name for name in job.weights if name != _ANY_OF_TIMM]
            remedy = nearest(arch, known) + " " + _("For timm's architectures write timm/NAME.")
            yield Problem(received, _("torchvision has no such architecture."), remedy)
        elif arch.startswith(_UNCUT):
            rule = _("fastai cannot split this architecture into a body and a head.")
            yield Problem(received, rule, _("Choose another."))
        elif job.options.get("pretrained") and not job.weights[arch]:
            yield Problem(
                received,
                _("fastai has no pretrained weights for it."),
                _("Choose another, or set job.options.pretrained=false to train from scratch."),
            )
    elif job.options.get("pretrained") and not _url(job):
        yield Problem(
            received,
            _("timm's weights are named with a tag, and downloaded from the address in job.weights."),
            _(
                "Write it as timm/NAME.TAG, as in timm/convnext_tiny.fb_in22k, or set job.options.pretrained=false "
                "to train from scratch."
            ),
        )


def chosen(job: Job) -> dict[str, str]:
    """Return the entry of `job.weights` that the run uses."""
    url = _url(job)
    return {_arch(job): url} if url else {}


def _arch(job: Job) -> str:
    return str(job.options.get("arch", ""))


def _url(job: Job) -> str:
    arch = _arch(job)
    url = job.weights.get(arch, "")
    if not url and arch.startswith(TIMM) and "." in arch:
        url = job.weights.get(_ANY_OF_TIMM, "").format(arch.removeprefix(TIMM))
    return url
