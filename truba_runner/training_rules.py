"""What `train`, `data` and `notify` may not say, told at submission and not by a job that waited for its turn. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from truba_runner import image_rules
from truba_runner.config import Experiment
from truba_runner.errors import Problem, nearest

BATCH_SCALINGS = ("global", "per_replica")
PREPROCESSINGS = ("async", "model")
# Keras' dtype policies that train; int8 and float8 are for what is trained already.
DTYPE_POLICIES = ("mixed_float16", "mixed_bfloat16", "float16", "bfloat16", "float32", "float64")
# Of sbatch's --mail-type.
MAIL_TYPES = (
    "NONE", "BEGIN", "END", "FAIL", "REQUEUE", "ALL", "INVALID_DEPEND", "STAGE_OUT",
    "TIME_LIMIT", "TIME_LIMIT_90", "TIME_LIMIT_80", "TIME_LIMIT_50", "ARRAY_TASKS",
)  # fmt: skip


def problems(experiment: Experiment) -> Iterator[Problem]:
    """What is wrong whatever the cluster."""
    yield from image_rules.problems(experiment)
    train = experiment.train
    yield from _one_of("train.batch_scaling", train.batch_scaling, BATCH_SCALINGS)
    yield from _one_of("data.preprocessing", experiment.data.preprocessing, PREPROCESSINGS)
    yield from _one_of("checkpoint.mode", experiment.checkpoint.mode, ("min", "max"))
    if train.mixed_precision is not None:
        yield from _one_of("train.mixed_precision", train.mixed_precision, DTYPE_POLICIES)
    if train.learning_rate is not None and not train.learning_rate > 0:
        yield Problem(
            f"train.learning_rate={train.learning_rate}",
            "it must be positive.",
            "Leave it out for the optimizer's own.",
        )
    if train.scale_learning_rate and train.batch_scaling == "global":
        yield Problem(
            "train.scale_learning_rate=true",
            "the learning rate is scaled where the batch grows with the GPUs, and this one is kept.",
            "Add train.batch_scaling=per_replica, or leave it out.",
        )
    for kind in experiment.resources.mail_type.upper().split(",") if experiment.resources.mail_type else ():
        yield from _one_of("resources.mail_type", kind, MAIL_TYPES)
    webhook = urlsplit(experiment.notify.webhook)
    if experiment.notify.webhook and (webhook.scheme not in {"http", "https"} or not webhook.netloc):
        yield Problem(
            f"notify.webhook={experiment.notify.webhook}",
            "it is no address of a web server.",
            "Write it as https://HOST/PATH.",
        )


def batch_problems(experiment: Experiment, devices: int) -> Iterator[Problem]:
    """A batch that does not divide among all devices of the run."""
    size = experiment.train.batch_size
    if size is None or size < 1 or devices < 1 or experiment.train.batch_scaling != "global" or not size % devices:
        return
    yield Problem(
        f"train.batch_size={size}",
        f"it does not divide among {devices} devices, and each has to get the same number of examples of a batch.",
        f"Set train.batch_size={divisible_sizes(size, devices)}, or ask for another number of GPUs.",
    )


def divisible_sizes(size: int, devices: int) -> str:
    """The batch sizes beside `size` that divide among the devices: `60 or 64`."""
    below = size - size % devices
    return f"{below} or {below + devices}" if below else str(devices)


def _one_of(key: str, value: str, valid: tuple[str, ...]) -> Iterator[Problem]:
    if value not in valid:
        yield Problem(f"{key}={value}", "there is no such choice.", nearest(value, valid))
