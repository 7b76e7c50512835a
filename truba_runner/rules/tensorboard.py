"""Validate `tensorboard.*`. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from truba_runner.config.schema import TensorBoard
from truba_runner.errors import Problem
from truba_runner.language import _
from truba_runner.rules.values import at_least

_LEAST_SECONDS = 1.0
# A longer profile has hundreds of megabytes and opens slowly.
_MOST_PROFILED_STEPS = 100


def problems(settings: TensorBoard) -> Iterator[Problem]:
    """Report problems of the TensorBoard settings, on any cluster."""
    by_epoch = _("Leave it out, or set it to null: then curves are written by epoch only.")
    yield from at_least("tensorboard.every_steps", settings.every_steps, 1, by_epoch)
    if not settings.sync_seconds >= _LEAST_SECONDS:
        rule = _("the shared disk is written at most once every {least:g} s.", least=_LEAST_SECONDS)
        remedy = _("Leave it out (default: 30), or write there directly with tensorboard.node_local=false.")
        yield Problem(f"tensorboard.sync_seconds={settings.sync_seconds:g}", rule, remedy)
    if settings.profile_steps:
        yield from _profile_problems(settings.profile_steps)
    for key, given in (("graph", settings.graph), ("profile_steps", bool(settings.profile_steps))):
        if given and not settings.enabled:
            remedy = _("Leave tensorboard.{key} or tensorboard.enabled out.", key=key)
            yield Problem(f"tensorboard.{key}", _("nothing is written with tensorboard.enabled=false."), remedy)


def _profile_problems(steps: list[int]) -> Iterator[Problem]:
    received = f"tensorboard.profile_steps={steps}"
    if len(steps) != 2 or steps[0] > steps[1]:
        yield Problem(received, _("it must be the first and the last step of the profile."), _("Write it as [10,20]."))
    elif steps[0] < 2:
        rule = _("the first step also compiles the model, so it is not typical of the others.")
        yield Problem(
            received,
            rule,
            _("Set tensorboard.profile_steps=[{first},{last}].", first=10, last=10 + steps[1] - steps[0]),
        )
    elif steps[1] - steps[0] >= _MOST_PROFILED_STEPS:
        rule = _(
            "it may have at most {most} steps: the file contains every operation of each step.",
            most=_MOST_PROFILED_STEPS,
        )
        remedy = _("Set tensorboard.profile_steps=[{first},{last}].", first=steps[0], last=steps[0] + 10)
        yield Problem(received, rule, remedy)
