"""Report objects of a training that no checkpoint can hold, by path: at the start, and when one is made later."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from truba_runner.errors import Failed
from truba_runner.language import _, marked
from truba_runner.log import warn

# Why a state cannot be saved.
UNSAVED = marked(
    "{path} is {reason}. Its state is not restored when the run resumes. Keep numbers, text or arrays there from "
    "which it can be created again, or leave it out."
)
MADE_LATER = marked(
    "{path} was created after the training had begun: a run that resumes would not have it, and would be refused. "
    "Create it before the training begins: with the network, or in the callback's __init__, on_train_begin or "
    "before_fit."
)
DRAWN_AHEAD = marked(
    "{path} is drawn from while batches are prefetched: a run that resumes in the middle of an epoch gets other "
    "random numbers. Draw from a generator that is seeded with epoch and batch, such as "
    "numpy.random.default_rng([seed, epoch, index])."
)
OTHER_ORDER = marked(
    "{path} is a Dataset whose order a resumed run cannot reproduce: {reason}. Return a function of the epoch "
    "instead, which shuffles with shuffle(…, seed=epoch); or set train.steps_per_epoch and the seeds."
)


class Unsaved:
    """Reporter of state that cannot be saved: one warning for each path, or an error if `strict`."""

    def __init__(self, strict: bool) -> None:
        """`strict`: the config's `checkpoint.strict`."""
        self._strict = strict
        self._printed: set[str] = set()

    def report(self, paths: Iterable[str], text: str = UNSAVED) -> None:
        """Report new paths with one of the messages above. `paths`: a mapping to reasons if the message has one.

        Raises:
            truba_runner.errors.Failed: a path is new and `checkpoint.strict` is set.
        """
        reasons = paths if isinstance(paths, Mapping) else dict.fromkeys(paths, "")
        new = {path: reason for path, reason in reasons.items() if path not in self._printed}
        self._printed.update(new)
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
            "The newest checkpoint holds the state of {paths}, but this start has no such object: it was created "
            "in the middle of the training. Create it before the training begins (with the network, or in the "
            "callback's __init__, on_train_begin or before_fit), and start a new run with fresh=true (the old one "
            "is kept).",
            paths=", ".join(lost),
        )
