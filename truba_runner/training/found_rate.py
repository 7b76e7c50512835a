"""Choose the learning rate with a finder if `train.lr_find` asks for it.

A run uses a finder only once: the rate is recorded in `submissions.jsonl`, and every later start reads it there.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any, Optional

from truba_runner.config import lr_find
from truba_runner.config.recipe import FINDER, Find
from truba_runner.errors import Failed
from truba_runner.log import info
from truba_runner.runs.events import Event, Kind, as_record
from truba_runner.runs.run_directory import RunDir
from truba_runner.training.backend import Context

Suggestions = Mapping[str, Optional[float]]


def found_rate(
    context: Context, find: Callable[[Find], Suggestions], from_rank_0: Callable[[list[int]], list[int]] = list
) -> float | None:
    """Return the learning rate that replaces `train.learning_rate`; None if `train.lr_find` is not set.

    `find` runs the finder in this job, on all ranks; it is called only if no separate finder run exists.
    `from_rank_0` sends rank 0's numbers to every rank.

    Raises:
        truba_runner.errors.Failed: the finder has no suggestion of the requested kind, or its result is missing.
    """
    asked = lr_find.asked(context.experiment)
    if asked is None:
        return None
    known = _same(context.run.found_rate().learning_rate, from_rank_0)
    if known is not None:
        info("learning rate {known:g}, found at an earlier start", known=known)
        return known
    finder = context.run.finder()
    if finder is None:
        suggested, where = find(asked.finder), context.run
    else:
        suggested, where = _left_by(finder), finder
    rate = _same(asked.rate.resolve({FINDER: suggested}), from_rank_0)
    if rate is None:
        raise Failed(
            "train.lr_find: {rate} has no value: the finder has no suggestion of that kind (its curve is in "
            "{file}). Use another of its suggestions, or set train.learning_rate.",
            rate=asked.rate,
            file=where.path / f"lr_find_{FINDER}.json",
        )
    if finder is None:
        info("learning rate {rate:g}: {asked}", rate=rate, asked=asked.rate)
    else:
        info("learning rate {rate:g}: {asked}, from {finder}", rate=rate, asked=asked.rate, finder=finder.id)
    if context.rank == 0:
        context.run.append_submission(
            Event(
                Kind.FOUND_RATE,
                time.time(),
                learning_rate=rate,
                suggestion=asked.rate.suggestion,
                factor=asked.rate.factor,
                suggestions=dict(suggested),
                finder=where.id,
            )
        )
    return rate


def _left_by(finder: RunDir) -> Suggestions:
    """Return the suggestions that a separate finder run has written."""
    curve = finder.rate_curve(FINDER)
    if curve is None or not curve.suggestions:
        raise Failed(
            "The learning-rate finder {finder} has no result in {folder}; was it deleted? Set train.learning_rate, "
            "or run the finder again with fresh=true.",
            finder=finder.id,
            folder=finder.path,
        )
    return curve.suggestions


def record(context: Context) -> dict[str, Any]:
    """Return the result's entry `lr_find`: the rate and its source; empty if no finder was used."""
    event = context.run.found_rate()
    if event.learning_rate is None:
        return {}
    return {"lr_find": {name: value for name, value in as_record(event).items() if name not in ("event", "time")}}


def _same(rate: float | None, from_rank_0: Callable[[list[int]], list[int]]) -> float | None:
    """Return rank 0's rate, bit for bit; sent as bytes, since the ranks exchange integers by addition."""
    own = struct.pack("<d", math.nan if rate is None else rate)
    value: float
    (value,) = struct.unpack("<d", bytes(from_rank_0(list(own))))
    return None if math.isnan(value) else value
