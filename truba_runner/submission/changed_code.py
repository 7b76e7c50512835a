"""Detect that a run's training code has changed since its last start: the run id depends on the config alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from truba_runner.code import provenance
from truba_runner.errors import Problem, Refused
from truba_runner.language import _
from truba_runner.runs.checkpoints import CheckpointStore, Position
from truba_runner.runs.events import Kind
from truba_runner.runs.run_directory import RunDir
from truba_runner.submission.prepared import Prepared


def trained_with(run: RunDir) -> dict[str, Any]:
    """Return `job_file`, `job_sha256` and `git` of the run's last start; the hash is of the file that it found."""
    events = run.submissions()
    started = [index for index, event in enumerate(events) if event.kind == Kind.STARTED]
    until = events[: started[-1] + 1] if started else events
    # A "started" event has only the hash, or not even that if the file was missing; its submission has the others.
    found = [{"job_file": event.job_file, "job_sha256": event.job_sha256, "git": event.git} for event in until]
    return {name: value for about in found for name, value in about.items() if value}


def problem(prepared: Prepared) -> Problem | None:
    """Return why the run must not resume: its checkpoint was made by other code. None if it may start or resume."""
    if prepared.experiment.accept_changed_code:
        return None
    run, now = prepared.run, provenance.code_sha256(prepared.job_file)
    position = CheckpointStore(run.checkpoints).position()
    then = trained_with(run)
    if position == Position(0, 0) or then.get("job_sha256", now) == now:
        return None
    where = _("{file} has changed since", file=prepared.job_file)
    if then.get("job_file") not in {None, str(prepared.job_file)}:
        where = _("its code was {file}", file=then["job_file"])
    if git := then.get("git"):
        commit = _("git commit {commit}, with uncommitted changes") if git["dirty"] else _("git commit {commit}")
        where += f" ({commit.format(commit=git['commit'][:12])})"
    return Problem(
        run.id,
        _(
            "it has reached epoch {epoch}, step {step} with other code: {where}. Resuming would train one network "
            "partly with the old code and partly with the new.",
            epoch=position.epoch + 1,
            step=position.step,
            where=where,
        ),
        _(
            "fresh=true starts a new run with the new code and keeps this one; accept_changed_code=true resumes this "
            "run with the new code, for a change that affects neither the network nor its training; if you restore "
            "the file, the same command resumes the run."
        ),
    )


def refuse_together(runs: Sequence[Prepared]) -> None:
    """Refuse a sweep with runs that were started with other code; one of them is described, the others are counted.

    Raises:
        truba_runner.errors.Refused: there are such runs.
    """
    found = [one for one in map(problem, runs) if one]
    if len(found) > 1:
        more = _("The same is true of {count} more of the sweep.", count=len(found) - 1)
        raise Refused(replace(found[0], rule=f"{found[0].rule} {more}"))
    if found:
        raise Refused(*found)
