"""Is a run finished, or in Slurm's hands? Then it needs no submission."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.state import elsewhere, last_job_id, state_of
from truba_runner.slurm import client, jobs
from truba_runner.submission import messages
from truba_runner.submission.changed_code import refuse_together
from truba_runner.submission.outcome import Action, Outcome
from truba_runner.submission.prepared import Prepared
from truba_runner.submission.settle import settle


def already(runs: Iterable[RunDir]) -> dict[str, Outcome]:
    """Return the outcome, `finished` or `running`, of each run that needs no submission, by run id.

    Jobs of interrupted submissions are adopted first. The lock of the runs folder must be held.

    Raises:
        truba_runner.errors.Failed: Slurm does not answer.
    """
    outcomes: dict[str, Outcome] = {}
    open_runs: list[RunDir] = []
    for run in runs:
        if not run.submissions():
            continue
        if run.result():
            outcomes[run.id] = _outcome(run, Action.FINISHED)
        else:
            open_runs.append(run)
    live = _live(open_runs)
    for run in open_runs:
        if run.id in live:
            outcomes[run.id] = _outcome(run, Action.RUNNING)
        elif run.result():  # It finished while Slurm was asked, which may take a minute.
            outcomes[run.id] = _outcome(run, Action.FINISHED)
    return outcomes


def settled(runs: Sequence[Prepared], known: Collection[str] | None = None) -> Mapping[str, Outcome | None]:
    """Return the outcome of each run that needs no submission, None for the others, by run id.

    `known` lists the content of the runs folder, if the caller has read it.

    Raises:
        truba_runner.errors.Refused: the code of a run that would resume has changed.
        truba_runner.errors.Failed: Slurm does not answer.
    """
    begun = [one for one in runs if known is None or one.run.id in known]
    found = already(one.run for one in begun)
    messages.changed_code([one for one in begun if one.run.id in found and found[one.run.id].action == Action.FINISHED])
    refuse_together([one for one in begun if one.run.id not in found and one.run.submissions()])
    return {one.run.id: found.get(one.run.id) for one in runs}


def _live(runs: Sequence[RunDir]) -> set[str]:
    """Return the ids of the runs whose job is in the queue."""
    for run in runs:
        # If its job counted as lost, the run would be trained twice at once.
        if there := elsewhere(run.record()):
            raise Failed(
                "{run} was submitted to another Slurm cluster, which may still have its job. Type the command on "
                "{host}, or start a new run beside it with fresh=true.",
                run=run.id,
                host=there,
            )
    try:
        for run in runs:
            settle(run)
        # Asked after all are settled, so that adopted jobs are in it.
        queue = jobs.queue() if runs else {}
    except client.SlurmError as error:
        message = _(
            "Slurm does not answer ({message}), so it is not known whether {run} is in the queue",
            message=error.message,
            run=runs[0].id,
        )
        raise Failed(message) from error
    return {run.id for run in runs if state_of(run.record(), queue).live}


def _outcome(run: RunDir, action: Action) -> Outcome:
    return Outcome(run.id, str(run.path), action, last_job_id(run))
