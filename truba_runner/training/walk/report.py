"""Report objects of a training that no checkpoint can hold, by path: at the start, and when one is made later."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from truba_runner.errors import Failed
from truba_runner.language import _, marked
from truba_runner.log import warn


class Unsaved:
    """Reporter of state that cannot be saved: one warning for each path, or an error if `strict`."""

    def __init__(self, strict: bool) -> None:
        """`strict`: the config's `checkpoint.strict`."""
        self._strict = strict
        self._told: set[str] = set()

    def tell(self, reasons: Mapping[str, str]) -> None:
        """Report paths whose objects no checkpoint can hold, with reasons.

        Raises:
            truba_runner.errors.Failed: a path is new and `checkpoint.strict` is set.
        """
        text = marked(
            "{path} is {reason}. A run that resumes has it as this start made it. Keep numbers, text or arrays there "
            "from which it can be made again, or leave it out."
        )
        self._report(text, reasons)

    def tell_of_made(self, paths: Iterable[str]) -> None:
        """Report objects that were made after the training had begun.

        Raises:
            truba_runner.errors.Failed: a path is new and `checkpoint.strict` is set.
        """
        text = marked(
            "{path} was made after the training had begun: a run that resumes would not have it, and would be "
            "refused. Make it before the training begins: with the network, or in the callback's __init__, "
            "on_train_begin or before_fit."
        )
        self._report(text, dict.fromkeys(paths, ""))

    def tell_of_drawn_ahead(self, paths: Iterable[str]) -> None:
        """Report random streams of the data that are drawn from while batches are fetched ahead.

        Raises:
            truba_runner.errors.Failed: a path is new and `checkpoint.strict` is set.
        """
        text = marked(
            "{path} is drawn from while batches are fetched, ahead of the training: a run that resumes in the "
            "middle of an epoch gets other random numbers. Draw from a stream that epoch and batch decide, as "
            "numpy.random.default_rng([seed, epoch, index])."
        )
        self._report(text, dict.fromkeys(paths, ""))

    def tell_of_order(self, path: str, reason: str) -> None:
        """Say that a stream gives its elements in another order when a run resumes, and why.

        Raises:
            truba_runner.errors.Failed: as `tell`.
        """
        text = marked(
            "{path} is a Dataset whose order a resumed run does not get again: {reason}. Return a function of the "
            "epoch in its place, which shuffles with shuffle(…, seed=epoch); or set train.steps_per_epoch and the "
            "seeds."
        )
        self._report(text, {path: reason})

    def _report(self, text: str, reasons: Mapping[str, str]) -> None:
        new = {path: reason for path, reason in reasons.items() if path not in self._told}
        self._told.update(new)
        for path, reason in new.items():
            line = _(text, path=path, reason=reason)
            if self._strict:
                raise Failed("checkpoint.strict=true: {line}", line=line)
            warn(line)


def refuse_lost(paths: Iterable[str]) -> None:
    """Refuse to resume if this start lacks objects whose state is in the checkpoint.

    Raises:
        truba_runner.errors.Failed: `paths` is not empty.
    """
    if lost := sorted(paths):
        raise Failed(
            "The newest checkpoint holds the state of {paths}, and this start has no such object: it was made in the "
            "middle of the training. Make it before the training begins (with the network, or in the callback's "
            "__init__, on_train_begin or before_fit), and start anew beside this run with fresh=true.",
            paths=", ".join(lost),
        )
