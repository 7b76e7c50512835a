"""Print messages about a launch: results on standard output, notes and errors on standard error."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from truba_runner import terminal
from truba_runner.code import provenance
from truba_runner.config import lr_find
from truba_runner.data import staging
from truba_runner.environment import probe
from truba_runner.errors import listed
from truba_runner.language import _, counted, marked
from truba_runner.log import warn
from truba_runner.runs.progress import format_metrics
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.state import state_of
from truba_runner.slurm.request import Request
from truba_runner.submission.changed_code import trained_with
from truba_runner.submission.outcome import Action, Outcome
from truba_runner.submission.prepared import Prepared
from truba_runner.submission.submission import Submission

# Of the nodes that a job leaves out, so many are printed.
_MOST_NODES = 4


def same_run(runs: Sequence[Prepared]) -> None:
    """Note that several choices of a sweep lead to one run: they differ in nothing that affects the training."""
    run, others = runs[0].run.id, len(runs) - 1
    if others:
        more = counted("and {count} more", "and {count} more", others)
        run += f" ({more})"
    print(
        _(
            "note: several choices of the sweep give the same run {run}. It is submitted once, with the resources of "
            "the first choice; to make a choice a run of its own, give it a name (name=NAME)",
            run=run,
        ),
        file=sys.stderr,
    )


def changed_code(finished: Sequence[Prepared]) -> None:
    """Warn if finished runs were trained with other code; whether to train again is the user's decision."""
    now = {file: provenance.code_sha256(file) for file in {one.job_file for one in finished}}
    changed = [one for one in finished if trained_with(one.run).get("job_sha256") != now[one.job_file]]
    if not changed:
        return
    first, others = changed[0], len(changed) - 1
    names = {
        "file": first.job_file,
        "run": first.run.id,
        "other_file": trained_with(first.run).get("job_file", _("unknown")),
    }
    if others:
        message = counted(
            "WARNING: {file} is not the code that {run} and {count} other run of the sweep were trained with "
            "({other_file} as it was then). fresh=true starts a new run with the current code.",
            "WARNING: {file} is not the code that {run} and {count} other runs of the sweep were trained with "
            "({other_file} as it was then). fresh=true starts new runs with the current code.",
            others,
            **names,
        )
    else:
        message = _(
            "WARNING: {file} is not the code that {run} was trained with ({other_file} as it was then). fresh=true "
            "starts a new run with the current code.",
            **names,
        )
    print(message, file=sys.stderr)


def submitted(submission: Submission, job_id: str) -> None:
    """Report a job that Slurm accepted."""
    tasks = submission.array_size
    about = {"job_id": job_id, "partition": submission.request.partition, "asked": _asked(submission.request, tasks)}
    if not tasks:
        message = _("submitted {run} as job {job_id} to {partition}: {asked}", run=submission.first.run.id, **about)
    elif submission.first.experiment.sweep.kind == lr_find.KIND:
        message = counted(
            "submitted {count} learning-rate finder as array {job_id} to {partition}: {asked}",
            "submitted {count} learning-rate finders as array {job_id} to {partition}: {asked}",
            tasks,
            **about,
        )
    else:
        message = counted(
            "submitted {count} job as array {job_id} to {partition}: {asked}",
            "submitted {count} jobs as array {job_id} to {partition}: {asked}",
            tasks,
            **about,
        )
    print(f"{message}{submission.waits_for()}")
    chosen = submission.first.experiment.environment
    if chosen.kind != "inherit":
        print(f"  {probe.described(chosen, submission.first.found)}")
    bad_nodes(submission)


def bad_nodes(submission: Submission) -> None:
    """Print which nodes the job leaves out because they are known as bad, and warn of those that it may get."""
    reasons = list(submission.exclusion.reasons().items())
    # Those that were bad last: they are the last ones.
    for node, why in reasons[-_MOST_NODES:]:
        print("  " + _("leaves out {node}, known as bad ({why})", node=node, why=why))
    if more := len(reasons[:-_MOST_NODES]):
        print("  " + counted("and {count} more", "and {count} more", more) + " (truba nodes)")
    for warning in submission.exclusion.warnings:
        warn(warning)


def _asked(request: Request, tasks: int) -> str:
    """Describe the resources of a job, or of each task of an array."""
    gpus = [counted("{count} GPU", "{count} GPUs", request.gpus)] if request.gpus else []
    asked = ", ".join([*gpus, counted("{count} core", "{count} cores", request.cores)])
    if request.nodes > 1:
        asked = _("{count} nodes with {asked}", count=request.nodes, asked=asked)
    return _("{asked} each", asked=asked) if tasks > 1 else asked


# Counts in the summary of a sweep, by the action of an `Outcome`, or "interrupted".
_COUNTS = {
    "submitted": marked("{count} submitted"),
    "running": marked("{count} in the queue or running already"),
    "finished": marked("{count} finished before"),
    "trained": marked("{count} trained"),
    "failed": marked("{count} failed"),
    "interrupted": marked("{count} interrupted"),
    "left": marked("{count} not started; the same command starts them"),
}


def sweep(sweep_id: str, outcomes: Sequence[Outcome]) -> None:
    """Print the number of a sweep's runs by outcome, and the command that shows them."""
    unique = {
        one.run_id: "interrupted" if one.stopped and one.action == Action.FAILED else one.action for one in outcomes
    }
    runs = counted("{count} run", "{count} runs", len(unique))
    became = [_(_COUNTS[action], count=count) for action, count in Counter(unique.values()).items()]
    print(f"{sweep_id}: {', '.join([runs, *became])}")
    print(f"  truba status {sweep_id}")


def came_of_it(outcome: Outcome) -> None:
    """Print a run's outcome, its directory, and its metrics if it has any."""
    run = RunDir(Path(outcome.run_dir))
    if outcome.action == Action.RUNNING:
        job_id = outcome.job_id or _("(local)")
        print(_("{run} is in the queue or running already, as job {job_id}", run=run.id, job_id=job_id))
    elif outcome.action == Action.FINISHED:
        print(_("{run} has finished already; fresh=true trains it again as a new run and keeps this one", run=run.id))
    if outcome.action in {Action.FINISHED, Action.TRAINED}:
        result = run.record().result
        values = format_metrics(result.metrics)
        about = _("(data: {name})", name=result.data.get("name", "?"))
        print(f"{run.id}: {values}  {about}")
    if outcome.action == Action.FAILED:
        print(_why_not(run, outcome), file=sys.stderr)
    print(f"  {run.path}")


def _why_not(run: RunDir, outcome: Outcome) -> str:
    """Say why there is no result, without repeating an error that the log has just shown."""
    if outcome.why:
        return _("{run} has not finished: {why}", run=run.id, why=outcome.why)
    state = state_of(run.record(), {})
    if state.state in {"INTERRUPTED", "KILLED"}:
        return _("{run} was {why}", run=run.id, why=state.why)
    error = run.progress().error
    shown = outcome.job_id.startswith("local-") and error is not None and error.type == "Failed"
    return (
        _("{run} failed; the reason is printed above", run=run.id)
        if shown
        else _("{run} failed: {why}", run=run.id, why=state.why)
    )


def dry_run(submissions: Sequence[Submission]) -> None:
    """Print the plan of each submission, and the exact script that sbatch would read."""
    from rich.table import Table

    console = terminal.console()
    for submission in submissions:
        runs, experiment = submission.runs, submission.first.experiment
        title = counted("plan of {count} run", "plan of {count} runs", len(runs))
        table = Table(_("key"), _("value"), title=title)
        table.add_row(_("runs"), listed([prepared.run.id for prepared in runs]).replace(", ", "\n"))
        table.add_row("cluster", experiment.cluster.name)
        for source in staging.missing(experiment):
            message = _(
                "{file} is not in {folder}; it would be downloaded", file=source.file, folder=experiment.data.folder
            )
            table.add_row(_("data"), message)
        shown = {key: value for key, value in asdict(submission.request).items() if not key.endswith("login_nodes")}
        for key, value in shown.items():
            table.add_row(key, _("(the default)") if value in (None, "", {}) else str(value))
        console.print(table)
        bad_nodes(submission)
        if experiment.cluster.scheduler == "slurm":
            print(submission.script())
