"""`checkpoint.verify`: tries, before a training begins, whether it goes on after an interruption as an undisturbed one.

The experiment, shortened, is trained twice, each start in a process of its own: once undisturbed, and once killed in
the midst of an epoch, told to end in its validation, and told to end at an epoch's end. What each step and epoch tells
is compared then, and what the checkpoints hold. Where they differ, a third training, undisturbed like the first, tells
one that does not go on as it was from one that is never the same.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from truba_runner.config.schema import Experiment
from truba_runner.errors import Failed
from truba_runner.language import _, counted, marked
from truba_runner.runs.run_directory import RunDir
from truba_runner.slurm.job_environment import Allocation
from truba_runner.training.ranks import handover
from truba_runner.verify.child import FINISHED
from truba_runner.verify.starts import AGAIN, INTERRUPTED, NOTE, UNDISTURBED, Starts

EVENT = "verified"
# What a step or an epoch tells begins so; all else is of a checkpoint.
_TOLD = "metrics"
_NOT_RESUMED = marked(
    "after an interruption this training would not end as an undisturbed one. At {where} {path} is {now}; undisturbed "
    "it is {then}{more}. The training depends on something that no checkpoint holds. Keep it in a variable or an "
    "attribute of the model, of its loss or of a callback, or in what a callback's get_state and set_state give, or "
    "let it follow from the number of the epoch. What is kept in a file, in the environment or by a generator does not "
    "go back with a checkpoint."
)
_NOT_REPEATABLE = marked(
    "this training is another one each time, even without an interruption: at {where} {path} was {then}, and {now} the "
    "second time{more}. Give a seed to whatever draws random numbers (train.seed seeds Python, NumPy and the "
    "framework), and on GPUs set train.deterministic=true."
)


def is_due(run: RunDir, experiment: Experiment) -> bool:
    """Whether the run is to be verified, and was not at an earlier start with the same code."""
    if not (experiment.checkpoint.verify or experiment.drill.verify):
        return False
    code = run.submitted().get("job_sha256")
    return all(event["job_sha256"] != code for event in run.submissions() if event["event"] == EVENT)


def verify(run: RunDir, experiment: Experiment, here: Allocation) -> None:
    """Tries it, and puts on record what came of it; every rank of the job calls it.

    Raises:
        Failed: an interruption would change the training, and `checkpoint.verify` says that it must not; or a short
            training has failed.
    """
    started = time.monotonic()
    if here.rank == 0:
        print(_("verifying: a short training, undisturbed and interrupted, is compared first"), flush=True)
    starts = Starts(run, experiment, here)
    with starts.opened():
        found = _first_difference(starts)
    if found and experiment.checkpoint.verify:
        raise Failed(f"checkpoint.verify: {found['text']}")
    if here.rank:
        return
    seconds = round(time.monotonic() - started, 1)
    event = {"event": EVENT, "time": time.time(), "job_sha256": run.submitted().get("job_sha256")}
    run.append_submission({**event, "seconds": seconds, "first_difference": found})
    if found:
        print(_("WARNING: {text}", text=found["text"]), file=sys.stderr, flush=True)
    else:
        print(_("verified in {seconds} s: an interruption changes nothing", seconds=seconds), flush=True)


def record(run: RunDir) -> dict[str, Any]:
    """For the result: what the last verification took and found; empty where there was none."""
    last = next((event for event in reversed(run.submissions()) if event["event"] == EVENT), None)
    return {"verified": {key: last[key] for key in ("seconds", "first_difference")}} if last else {}


def forget(run: RunDir, here: Allocation) -> None:
    """Removes what the ranks told each other; once all have trained."""
    if here.tasks > 1:
        handover.forget(handover.Rank.here(here.rank, here.tasks), run.path, NOTE)


# -- what came of it -------------------------------------------------------------------------------------------


def _first_difference(starts: Starts) -> dict[str, Any] | None:
    """What an interruption changes first, with its `text`; None: nothing.

    Raises:
        Failed: the short training fails without one.
    """
    done = starts.train(UNDISTURBED)
    if "failed" in done:
        raise Failed(
            _(
                "checkpoint.verify: a short training fails without an interruption (where only its shortness is to "
                "blame, set checkpoint.verify=false): {error}",
                error=done["failed"],
            )
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
    """The first of the differences that an interruption made; None: all of them are there without one.

    `undisturbed`: those between two trainings without an interruption. Where those tell the same all along, what else
    they differ in, such as a clock that a callback keeps, changes nothing.
    """
    if any(_is_told(one) for one in undisturbed):
        return _described(undisturbed, repeatable=False)
    besides = {one["path"] for one in undisturbed}
    left = [one for one in found if one["path"] not in besides]
    return _described(left, repeatable=True) if left else None


def _is_told(difference: Mapping[str, Any]) -> bool:
    return str(difference["path"]).startswith(_TOLD)


def _described(differences: Sequence[Mapping[str, Any]], repeatable: bool) -> dict[str, Any]:
    """A checkpoint says more of a cause than the loss, which shows it a few steps earlier."""
    of_state = next((one for one in differences if not _is_told(one)), None)
    of_loss = next((one for one in differences if _is_told(one)), None)
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
        name = of_loss["path"].removeprefix(f"{_TOLD}.")
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
