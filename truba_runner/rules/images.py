"""Validate the settings of image experiments. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from truba_runner.config.schema import Experiment
from truba_runner.config.search_space import jobs
from truba_runner.data import weights
from truba_runner.errors import Problem
from truba_runner.language import _


def problems(experiment: Experiment) -> Iterator[Problem]:
    """Report an invalid label pattern, keys that need another key or backend, and problems of pretrained weights."""
    data = experiment.data
    received = f"data.label_pattern={data.label_pattern}"
    try:
        groups = re.compile(data.label_pattern).groups
    except re.error as error:
        yield Problem(received, _("it is not a valid regular expression: {error}.", error=error), _like_this())
    else:
        if data.label_pattern and not groups:
            yield Problem(received, _("it needs a group (…): the first one matches the label."), _like_this())
    if data.stage_to_node and not data.pack:
        yield Problem(
            "data.stage_to_node=true",
            _("only a packed file is copied to the node's local disk; an archive is unpacked there anyway."),
            _("Add data.pack=true, or leave data.stage_to_node out."),
        )
    for key, given in (("pack", data.pack), ("label_pattern", bool(data.label_pattern))):
        if given and experiment.job.backend == "keras":
            yield Problem(f"data.{key}", _("it is for fastai, and the backend is keras."), _("Leave it out."))
    yield from dict.fromkeys(problem for job in jobs(experiment) for problem in weights.problems(job))


def _like_this() -> str:
    return _("Write it as '(.+)_\\d+.jpg$', which finds great_pyrenees in great_pyrenees_173.jpg.")
