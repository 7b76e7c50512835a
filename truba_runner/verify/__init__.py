"""`checkpoint.verify`: test before a training whether it resumes from interruptions exactly as if undisturbed.

The shortened experiment is trained twice, each start in its own process: once undisturbed, and once killed within an
epoch, then interrupted by a signal in a validation and at an epoch's end. The metrics of each step and epoch and the
contents of the checkpoints are compared. If they differ, a third, undisturbed training shows whether the resume is at
fault or the training is not repeatable at all.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from truba_runner.config.schema import Experiment
from truba_runner.errors import Failed
from truba_runner.language import _, counted, marked
from truba_runner.log import info, warn
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.run_directory import RunDir
from truba_runner.slurm.job_environment import Allocation
from truba_runner.training.ranks import handover
from truba_runner.verify.child import FINISHED
from truba_runner.verify.starts import AGAIN, INTERRUPTED, NOTE, UNDISTURBED, Starts

# First part of the paths of metrics; all other paths are in a checkpoint.
_METRICS = "metrics"
_NOT_RESUMED = marked(
    "after an interruption this training would not end like an uninterrupted one. At {where} {path} is {now}; "
    "uninterrupted it is {then}{more}. The training depends on something that is not in the checkpoint. Keep it in "
    "a variable or an attribute of the model, of its loss or of a callback, or in get_state and set_state of a "
    "callback, or compute it from the epoch's number. Values in a file, in the environment or in a generator are "
    "not restored with a checkpoint."
)
_NOT_REPEATABLE = marked(
    "this training gives another result each time, even without an interruption: at {where} {path} was {then}, and "
    "{now} the second time{more}. Give a seed to whatever draws random numbers (train.seed seeds Python, NumPy and "
    "the framework), and on GPUs set train.deterministic=true."
)


def is_due(run: RunDir, experiment: Experiment) -> bool:
    """Whether the run has to be verified: it is asked for, and no earlier start verified the same code."""
    if not (experiment.checkpoint.verify or experiment.drill.verify):
        return False
    code = run.submitted().job_sha256
    return all(event.job_sha256 != code for event in run.submissions() if event.kind == Kind.VERIFIED)


def verify(run: RunDir, experiment: Experiment, here: Allocation) -> None:
    """Verify the run and record the outcome; every rank of the job calls this.

    Raises:
        truba_runner.errors.Failed: an interruption would change the training and `checkpoint.verify` is set, or a
            short training has failed.
    """
    started = time.monotonic()
    if here.rank == 0:
        info("verifying: first a short training is run without and with interruptions, and compared")
    starts = Starts(run, experiment, here)
    with starts.opened():
        difference = _first_difference(starts)
    if difference and experiment.checkpoint.verify:
        raise Failed(f"checkpoint.verify: {difference['text']}")
    if here.rank:
        return
    seconds = round(time.monotonic() - started, 1)
    code = run.submitted().job_sha256
    event = Event(Kind.VERIFIED, time.time(), job_sha256=code, seconds=seconds, first_difference=difference)
    run.append_submission(event)
    if difference:
        warn(difference["text"])
    else:
        info("verified in {seconds} s: an interruption changes nothing", seconds=seconds)


def record(run: RunDir) -> dict[str, Any]:
    """Return the result's entry `verified`, duration and outcome of the last verification; empty if there was none."""
    last = next((event for event in reversed(run.submissions()) if event.kind == Kind.VERIFIED), None)
    return {"verified": {"seconds": last.seconds, "first_difference": last.first_difference}} if last else {}


def forget(run: RunDir, here: Allocation) -> None:
    """Delete the files through which the ranks communicated; call once all have trained."""
    if here.tasks > 1:
        handover.forget(handover.Rank.here(here.rank, here.tasks), run.path, NOTE)


# -- the outcome -----------------------------------------------------------------------------------------------


def _first_difference(starts: Starts) -> dict[str, Any] | None:
    """Return the first difference that an interruption makes, with its `text`; None if there is none.

    Raises:
        truba_runner.errors.Failed: the short training fails without an interruption.
    """
    done = starts.train(UNDISTURBED)
    if "failed" in done:
        raise Failed(
            "checkpoint.verify: a short training fails without an interruption (if it fails only because it is "
            "short, set checkpoint.verify=false): {error}",
            error=done["failed"],
        )
    for stop in [*starts.breaks(done["validated"]), None]:
        done = starts.train(INTERRUPTED, stop)
        if "failed" in done:
            text = _("after an interruption this training ends with an error: {error}", error=done["failed"])
            return {"text": text, "error": done["failed"]}
        if done["ended"] == FINISHED:
            break
    found = starts.differences(INTERRUPTED)
    if not found:
        return None
    starts.train(AGAIN)
    return judged(found, starts.differences(AGAIN))


def judged(found: Sequence[Mapping[str, Any]], undisturbed: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the first difference that an interruption made; None if all of them exist without one too.

    `undisturbed`: differences between two trainings without an interruption. If their metrics are all equal, their
    other differences, such as a clock kept by a callback, are ignored.
    """
    if any(_is_of_metrics(one) for one in undisturbed):
        return _described(undisturbed, repeatable=False)
    besides = {one["path"] for one in undisturbed}
    left = [one for one in found if one["path"] not in besides]
    return _described(left, repeatable=True) if left else None


def _is_of_metrics(difference: Mapping[str, Any]) -> bool:
    return str(difference["path"]).startswith(_METRICS)


def _described(differences: Sequence[Mapping[str, Any]], repeatable: bool) -> dict[str, Any]:
    """Describe the first difference; one in a checkpoint if any, as it shows the cause better than an earlier loss."""
    of_state = next((one for one in differences if not _is_of_metrics(one)), None)
    of_loss = next((one for one in differences if _is_of_metrics(one)), None)
    first = of_state or of_loss or differences[0]
    then, now = first["values"]
    more = len({one["path"] for one in differences if one["position"] == first["position"]}) - 1
    words = {
        "path": first["path"] + first["index"],
        "where": _where(first["position"]),
        "then": then,
        "now": now,
        "more": counted(" ({count} more differ)", " ({count} more differ)", more) if more else "",
    }
    if of_loss and of_loss["position"] < first["position"]:
        name = of_loss["path"].removeprefix(f"{_METRICS}.")
        words["more"] += _("; {name} differs from {where} on", name=name, where=_where(of_loss["position"]))
    text = _(_NOT_RESUMED if repeatable else _NOT_REPEATABLE, **words)
    epoch, step = first["position"]
    about = {"repeatable": repeatable, "path": words["path"], "undisturbed": then, "resumed": now}
    return {**about, "epoch": epoch + bool(step), "step": step, "text": text}


def _where(position: Sequence[int]) -> str:
    epoch, step = position
    if not step:
        return _("the end of epoch {epoch}", epoch=epoch)
    return _("epoch {epoch}, step {step}", epoch=epoch + 1, step=step)
