"""Validate `train`, `data`, `checkpoint`, `tensorboard`, `notify` and mail settings before submission. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from urllib.parse import urlsplit

from truba_runner.config.schema import Checkpoint, Experiment, Train
from truba_runner.errors import Problem
from truba_runner.language import _, marked
from truba_runner.rules import images, recipe
from truba_runner.rules import lr_find as rules_lr_find
from truba_runner.rules import tensorboard as tensorboard_rules
from truba_runner.rules.values import at_least, one_of
from truba_runner.slurm.request import processes

BATCH_SCALINGS = ("global", "per_replica")
PREPROCESSINGS = ("async", "model")
# Keras' dtype policies for training; int8 and float8 are for trained models.
DTYPE_POLICIES = ("mixed_float16", "mixed_bfloat16", "float16", "bfloat16", "float32", "float64")
FASTAI_PRECISIONS = ("mixed_float16", "float16", "mixed_bfloat16", "bfloat16", "float32")
# Values of sbatch's --mail-type.
MAIL_TYPES = (
    "NONE", "BEGIN", "END", "FAIL", "REQUEUE", "ALL", "INVALID_DEPEND", "STAGE_OUT",
    "TIME_LIMIT", "TIME_LIMIT_90", "TIME_LIMIT_80", "TIME_LIMIT_50", "ARRAY_TASKS",
)  # fmt: skip


# Keys of `train` that fastai does not use, each with its alternative.
_NOT_FASTAI = {
    "optimizer": marked("Pass opt_func to the Learner in the job's build_learner."),
    "loss": marked(
        "fastai chooses a loss that fits the labels; for another, pass loss_func to the Learner in build_learner."
    ),
    "loss_weights": marked("Pass loss_func to the Learner in the job's build_learner."),
    "class_weight": marked("Pass loss_func=CrossEntropyLossFlat(weight=…) to the Learner in build_learner."),
    "steps_per_epoch": marked("Leave it out: an epoch is one pass over the training examples."),
    "steps_per_execution": marked("Leave it out: each step is one execution."),
    "jit_compile": marked("Leave it out, or add a callback that compiles the model to train.callbacks."),
    "scale_learning_rate": marked(
        "Leave it out: lr_find is run with the batch of all GPUs, and suggests a rate for that."
    ),
}


def problems(experiment: Experiment) -> Iterator[Problem]:
    """Report problems that do not depend on the cluster."""
    yield from images.problems(experiment)
    yield from tensorboard_rules.problems(experiment.tensorboard)
    yield from _backend_problems(experiment)
    yield from rules_lr_find.problems(experiment)
    train = experiment.train
    yield from one_of("train.batch_scaling", train.batch_scaling, BATCH_SCALINGS)
    yield from one_of("data.preprocessing", experiment.data.preprocessing, PREPROCESSINGS)
    yield from _checkpoint_problems(experiment.checkpoint)
    if experiment.checkpoint.verify and (count := processes(experiment)) > 1:
        yield Problem(
            "checkpoint.verify=true",
            _(
                "{count} processes would train this network together, and only a run of one process can be verified.",
                count=count,
            ),
            _("Verify it once with resources.nodes=1 and, with fastai, resources.gpus=1; then leave it out."),
        )
    if train.mixed_precision is not None and experiment.job.backend != "fastai":
        yield from one_of("train.mixed_precision", train.mixed_precision, DTYPE_POLICIES)
    if train.learning_rate is not None and not train.learning_rate > 0:
        yield Problem(
            f"train.learning_rate={train.learning_rate}",
            _("it must be positive."),
            _("Leave it out for the optimizer's default rate."),
        )
    many = _("Leave it out for as many steps as the data has.")
    yield from at_least("train.steps_per_epoch", train.steps_per_epoch, 1, many)
    if train.scale_learning_rate and train.batch_scaling == "global":
        yield Problem(
            "train.scale_learning_rate=true",
            _(
                "the learning rate is scaled only where the batch grows with the GPUs; with "
                "train.batch_scaling=global it does not."
            ),
            _("Add train.batch_scaling=per_replica, or leave train.scale_learning_rate out."),
        )
    for kind in experiment.resources.mail_type.upper().split(",") if experiment.resources.mail_type else ():
        yield from one_of("resources.mail_type", kind, MAIL_TYPES)
    webhook = urlsplit(experiment.notify.webhook)
    if experiment.notify.webhook and (webhook.scheme not in {"http", "https"} or not webhook.netloc):
        yield Problem(
            f"notify.webhook={experiment.notify.webhook}",
            _("it is not the address of a web server."),
            _("Write it as https://HOST/PATH."),
        )


def _checkpoint_problems(checkpoint: Checkpoint) -> Iterator[Problem]:
    yield from one_of("checkpoint.mode", checkpoint.mode, ("min", "max"))
    never = _("Leave it out, or set it to null: a checkpoint is saved at the end of every epoch all the same.")
    yield from at_least("checkpoint.every_steps", checkpoint.every_steps, 1, never)
    if checkpoint.every_minutes is not None and not checkpoint.every_minutes > 0:
        yield Problem(f"checkpoint.every_minutes={checkpoint.every_minutes:g}", _("it must be positive."), never)
    if checkpoint.keep < 1:
        rule = _("without its newest checkpoint an interrupted run cannot resume.")
        yield Problem(f"checkpoint.keep={checkpoint.keep}", rule, _("Set checkpoint.keep=1 or more."))


def _backend_problems(experiment: Experiment) -> Iterator[Problem]:
    """Report keys that have no effect or another meaning with this backend."""
    train, data = experiment.train, experiment.data
    if experiment.job.backend == "fastai":
        defaults = Train()
        for field in fields(Train):
            value = getattr(train, field.name)
            if field.name in _NOT_FASTAI and value != getattr(defaults, field.name):
                rule = _("the fastai backend does not use it.")
                yield Problem(f"train.{field.name}={value}", rule, _(_NOT_FASTAI[field.name]))
        if not isinstance(train.metrics, (list, type(None))):
            rule = _("with the fastai backend it must be a list.")
            yield Problem(f"train.metrics={train.metrics}", rule, _("Write it as {examples}.", examples="[accuracy]"))
        if data.preprocessing != "async":
            rule = _("the job's data_block says how fastai prepares its examples.")
            yield Problem(f"data.preprocessing={data.preprocessing}", rule, _("Leave it out."))
        if train.mixed_precision is not None:
            yield from one_of("train.mixed_precision", train.mixed_precision, FASTAI_PRECISIONS)
        yield from at_least("data.workers", data.workers, 0, _("Leave it out."))
        yield from recipe.problems(train.recipe, train.epochs, train.learning_rate)
    else:
        for key, given in (("train.recipe", bool(train.recipe)), ("data.workers", data.workers is not None)):
            if given:
                rule = _("it is a setting of fastai, and the backend is {backend}.", backend=experiment.job.backend)
                yield Problem(key, rule, _("Leave it out, or set job.backend=fastai."))
        if not isinstance(train.metrics, (list, Mapping, type(None))):
            rule = _("it must be a list, or a mapping from the network's outputs to lists.")
            examples = _(" or ").join(("train.metrics=[accuracy]", "'train.metrics={kind: [accuracy]}'"))
            yield Problem(f"train.metrics={train.metrics}", rule, _("Write it as {examples}.", examples=examples))
        if train.class_weight not in (None, "balanced") and not isinstance(train.class_weight, Mapping):
            rule = _("it must be balanced, or a mapping from classes to weights.")
            remedy = _(
                "Write it as {examples}.",
                examples=_(" or ").join(("train.class_weight=balanced", "'train.class_weight={0: 1.0, 1: 50.0}'")),
            )
            yield Problem(f"train.class_weight={train.class_weight}", rule, remedy)


def batch_problems(experiment: Experiment) -> Iterator[Problem]:
    """Report a global batch size that is not divisible by the number of devices."""
    size, devices = experiment.train.batch_size, max(1, experiment.resources.gpus) * experiment.resources.nodes
    if size is None or size < 1 or devices < 1 or experiment.train.batch_scaling != "global" or not size % devices:
        return
    yield Problem(
        f"train.batch_size={size}",
        _(
            "it is not divisible by the {devices} devices, and each must get the same number of examples of a batch.",
            devices=devices,
        ),
        _(
            "Set train.batch_size={sizes}, or ask for another number of GPUs.",
            sizes=divisible_sizes(size, devices),
        ),
    )


def divisible_sizes(size: int, devices: int) -> str:
    """Format the nearest batch sizes that are divisible by the number of devices: `60 or 64`."""
    below = size - size % devices
    return _(" or ").join((str(below), str(below + devices))) if below else str(devices)
