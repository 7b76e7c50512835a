"""Says what of a training no checkpoint can hold, by its path: at the start, and when it comes into being."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping

from truba_runner.errors import Failed
from truba_runner.language import _


class Unsaved:
    """Says each of them once; with `strict` it is a refusal."""

    def __init__(self, strict: bool) -> None:
        """`strict`: the config's `checkpoint.strict`."""
        self._strict = strict
        self._told: set[str] = set()

    def tell(self, reasons: Mapping[str, str]) -> None:
        """Of each path why no checkpoint can hold what stands there.

        Raises:
            truba_runner.errors.Failed: there is one, and nothing may be missing.
        """
        new = {path: reason for path, reason in reasons.items() if path not in self._told}
        self._told.update(new)
        lines = [
            _(
                "{path} is {reason}. A run that resumes has it as this start made it. Keep numbers, text or arrays "
                "there from which it can be made again, or leave it out.",
                path=path,
                reason=reason,
            )
            for path, reason in new.items()
        ]
        self._say(lines)

    def tell_of_made(self, paths: Iterable[str]) -> None:
        """Of objects that were made after the training had begun.

        Raises:
            truba_runner.errors.Failed: as `tell`.
        """
        new = [path for path in paths if path not in self._told]
        self._told.update(new)
        self._say(
            _(
                "{path} was made after the training had begun: a run that resumes would not have it, and would be "
                "refused. Make it before the training begins: with the network, or in the callback's __init__, "
                "on_train_begin or before_fit.",
                path=path,
            )
            for path in new
        )

    def tell_of_drawn_ahead(self, paths: Iterable[str]) -> None:
        """Of random streams of the data that the fetching of batches draws from.

        Raises:
            truba_runner.errors.Failed: as `tell`.
        """
        new = [path for path in paths if path not in self._told]
        self._told.update(new)
        self._say(
            _(
                "{path} is drawn from while batches are fetched, ahead of the training: a run that resumes in the "
                "middle of an epoch gets other random numbers. Draw from a stream that epoch and batch decide, as "
                "numpy.random.default_rng([seed, epoch, index]).",
                path=path,
            )
            for path in new
        )

    def tell_of_order(self, path: str, reason: str) -> None:
        """Say that a stream gives its elements in another order when a run resumes, and why.

        Raises:
            truba_runner.errors.Failed: as `tell`.
        """
        self._say(
            [
                _(
                    "{path} is a Dataset whose order a resumed run does not get again: {reason}. Return a function of "
                    "the epoch in its place, which shuffles with shuffle(…, seed=epoch); or set train.steps_per_epoch "
                    "and the seeds.",
                    path=path,
                    reason=reason,
                )
            ]
        )

    def _say(self, lines: Iterable[str]) -> None:
        for line in lines:
            if self._strict:
                raise Failed(_("checkpoint.strict=true: {line}", line=line))
            print(_("WARNING: {text}", text=line), file=sys.stderr, flush=True)


def refuse_lost(paths: Iterable[str]) -> None:
    """Ends a start that has no place for what a checkpoint holds.

    Raises:
        truba_runner.errors.Failed: there are such paths.
    """
    if lost := sorted(paths):
        raise Failed(
            _(
                "The newest checkpoint holds the state of {paths}, and this start has no such object: it was made in "
                "the middle of the training. Make it before the training begins (with the network, or in the "
                "callback's __init__, on_train_begin or before_fit), and start anew beside this run with fresh=true.",
                paths=", ".join(lost),
            )
        )
