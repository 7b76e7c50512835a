"""What the user is told of a launch: on standard output what was asked for, on standard error what else matters."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from truba_runner import data, lr_find, probe, provenance
from truba_runner.changed_code import trained_with
from truba_runner.errors import listed
from truba_runner.progress import format_metrics
from truba_runner.rundir import RunDir
from truba_runner.search import overview
from truba_runner.search.directory import search_of
from truba_runner.state import state_of
from truba_runner.submit import Prepared, Submission


@dataclass(frozen=True)
class Outcome:
    """What became of one run. `action` is submitted, running, finished, trained, failed, left or dry_run.

    `stopped`: the command was told to end meanwhile. What it then did not come to is left.
    """

    run_id: str
    run_dir: str
    action: str
    job_id: str = ""
    stopped: bool = False


def same_run(runs: Sequence[Prepared]) -> None:
    """That a sweep's choices differ in nothing that makes a network another."""
    more = f" (and {len(runs) - 1} more)" if len(runs) > 1 else ""
    print(
        f"note: several choices of the sweep come to the run {runs[0].run.id}{more}, submitted once, with the first "
        "one's resources; a name of its own (name=NAME) makes a choice a run of its own",
        file=sys.stderr,
    )


def changed_code(finished: Sequence[Prepared]) -> None:
    """A run's id is that of its config: code that has changed since is for the user to decide on."""
    now = {file: provenance.code_sha256(file) for file in {one.job_file for one in finished}}
    changed = [one for one in finished if trained_with(one.run).get("job_sha256") != now[one.job_file]]
    if not changed:
        return
    first, others = changed[0], len(changed) - 1
    more = f" and {others} other{'s' if others > 1 else ''} of the sweep were" if others else " was"
    print(
        f"WARNING: {first.job_file} is not the code that {first.run.id}{more} trained with "
        f"({trained_with(first.run).get('job_file', 'unknown')}, since changed or another). fresh=true trains it.",
        file=sys.stderr,
    )


def submitted(submission: Submission, job_id: str) -> None:
    """What Slurm has taken."""
    request, tasks = submission.request, submission.array_size
    what = f"{submission.first.run.id} as job" if not tasks else f"{_jobs(submission)} as array"
    gpus = f"{request.gpus} GPU{'s' if request.gpus > 1 else ''}, " if request.gpus else ""
    nodes = f"{request.nodes} nodes with " if request.nodes > 1 else ""
    cores = f"{request.cores} core{'s' if request.cores > 1 else ''}"
    each = " each" if tasks > 1 else ""
    print(f"submitted {what} {job_id} to {request.partition}: {nodes}{gpus}{cores}{each}{submission.waits_for()}")
    chosen = submission.first.experiment.environment
    if chosen.kind != "inherit":
        print(f"  {probe.described(chosen, submission.first.found)}")


def _jobs(submission: Submission) -> str:
    what = "learning-rate finder" if submission.first.experiment.sweep.kind == lr_find.KIND else "job"
    return f"{submission.array_size} {what}{'s' if submission.array_size > 1 else ''}"


def sweep(sweep_id: str, outcomes: Sequence[Outcome]) -> None:
    """What became of a sweep's runs, in one line, and where to look at them."""
    unique = {one.run_id: "interrupted" if one.stopped and one.action == "failed" else one.action for one in outcomes}
    words = {"submitted": "submitted", "running": "in the queue or running already", "finished": "finished before"}
    words["left"] = "left, for the same command to go on with"
    counts = Counter(words.get(action, action) for action in unique.values())
    runs = f"{len(unique)} run{'s' if len(unique) > 1 else ''}"
    print(f"{sweep_id}: {runs}, {', '.join(f'{count} {word}' for word, count in counts.items())}")
    print(f"  truba status {sweep_id}")


def came_of_it(outcome: Outcome) -> None:
    """Where a run is now, and its metrics where it has them."""
    run = RunDir(Path(outcome.run_dir))
    if outcome.action == "running":
        print(f"{run.id} is in the queue or running already, as job {outcome.job_id or '(local)'}")
    elif outcome.action == "finished":
        print(f"{run.id} was finished before; fresh=true trains it anew beside the old one")
    if outcome.action in {"finished", "trained"}:
        result = run.result()
        values = format_metrics(result.get("metrics", {}))
        print(f"{run.id}: {values}  (data: {result.get('data', {}).get('name', '?')})")
    if outcome.action == "failed":
        print(_why_not(run, outcome), file=sys.stderr)
    print(f"  {run.path}")


def _why_not(run: RunDir, outcome: Outcome) -> str:
    """Why there is no result; not once more where the log, with the same sentence in it, was just shown."""
    if (search := search_of(run)) is not None:
        return f"{run.id} is not over: {overview.standing(search, {}).why}"
    state = state_of(run, {})
    if state.state in {"INTERRUPTED", "KILLED"}:
        return f"{run.id} was {state.why}"
    shown = outcome.job_id.startswith("local-") and run.progress().get("error", {}).get("type") == "Failed"
    return f"{run.id} failed, as told above" if shown else f"{run.id} failed: {state.why}"


def dry_run(submissions: Sequence[Submission]) -> None:
    """The plan, and exactly what sbatch would read, of each submission."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for submission in submissions:
        runs, experiment = submission.runs, submission.first.experiment
        table = Table("key", "value", title=f"plan of {len(runs)} run{'s' if len(runs) > 1 else ''}")
        table.add_row("runs", listed([prepared.run.id for prepared in runs]).replace(", ", "\n"))
        table.add_row("cluster", experiment.cluster.name)
        for source in data.missing(experiment):
            table.add_row("data", f"{source.file} is not in {experiment.data.folder}; it would be downloaded")
        for key, value in asdict(submission.request).items():
            table.add_row(key, "(the default)" if value in {None, ""} else str(value))
        console.print(table)
        if experiment.cluster.scheduler == "slurm":
            print(submission.script())
