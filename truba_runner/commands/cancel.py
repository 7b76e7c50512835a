"""`truba cancel RUN…`: cancel pending and running jobs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from truba_runner import terminal
from truba_runner.commands import parser
from truba_runner.errors import Failed, Problem, Refused
from truba_runner.language import _, counted
from truba_runner.runs import damage, runs_folders
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.state import RunState, is_slurms, last_job_id, local_process, state_of
from truba_runner.runs.sweep_directory import sharing
from truba_runner.search.overview import with_jobs
from truba_runner.slurm import client, commands
from truba_runner.status.printing import print_json
from truba_runner.status.rows import say_damaged
from truba_runner.status.slurm_jobs import known_jobs
from truba_runner.storage import private, safe_files


def main(arguments: Sequence[str]) -> int:
    """Cancel the runs; ask first if there is more than one."""
    options = parser(
        "cancel", _("Cancels the jobs of pending and running runs. Files that they have written are kept.")
    )
    options.add_argument("run", nargs="+", help=_("a run's or a sweep's id, or any unique beginning of it"))
    options.add_argument("-y", "--yes", action="store_true", help=_("do not ask"))
    given = options.parse_args(arguments)
    named = _with_sharers(_named(prefix, given.runs) for prefix in given.run)
    _refuse_others(named)
    say_damaged(named)
    if copies := [run for run in damage.sound(named) if run.pulled()]:
        remedy = _("Cancel it there: truba cancel {run}", run=copies[0].id)
        place = copies[0].pulled().get("from", "?")
        raise Refused(Problem(copies[0].id, _("this run is a copy; its job is at {place}.", place=place), remedy))
    runs = [one for run in named for one in with_jobs(run)]
    jobs = known_jobs([run.record() for run in runs], finished_too=True)
    if jobs is None:
        raise Failed("Slurm does not answer, so nothing was cancelled; try again in a while")
    states = {run.path: state_of(run.record(), jobs) for run in runs}
    _refuse_elsewhere(states)
    live = [run for run in runs if states[run.path].live or states[run.path].ending]
    affected = [run for run in named if any(one in live for one in with_jobs(run))]
    if len(affected) > 1 and not given.yes and not _agreed(affected):
        print(_("nothing was cancelled"), file=sys.stderr)
        return 1
    if on_slurm := [last_job_id(run) for run in live if is_slurms(last_job_id(run))]:
        try:
            commands.cancel(list(dict.fromkeys(on_slurm)))
        except client.SlurmError as error:
            raise Failed("Slurm did not cancel: {message}", message=error.message) from error
    for run in live:
        if not is_slurms(last_job_id(run)):
            os.kill(local_process(run), signal.SIGTERM)
    cancelled = [run.id for run in live]
    ended = [run.id for run in damage.sound(runs) if run not in live]
    if given.json:
        print_json({"cancelled": cancelled, "ended_before": ended})
        return 0 if cancelled or ended else 1
    for name in cancelled:
        print(_("cancelled {run}", run=name))
    for name in ended:
        print(_("{run} had ended already", run=name))
    # Exit status 1 if all runs were damaged: it is not known whether they ended.
    return 0 if cancelled or ended else 1


def _refuse_others(runs: Sequence[RunDir]) -> None:
    """Refuse runs of other users, whose records could name a job of this user.

    Raises:
        Refused: a run belongs to another user.
    """
    if others := [run for run in runs if not private.is_mine(run.path)]:
        whose = private.owner(others[0].path)
        remedy = _("Only {owner} can cancel it; to cancel a job of yours, name your own run.", owner=whose)
        raise Refused(Problem(others[0].id, _("this run belongs to {owner}.", owner=whose), remedy))


def _refuse_elsewhere(states: Mapping[Path, RunState]) -> None:
    """Refuse runs whose jobs belong to another Slurm cluster; a job of this cluster may have the same id.

    Raises:
        Refused: a run was submitted to another Slurm cluster, and is not known to have ended.
    """
    for path, state in states.items():
        if state.elsewhere:
            rule = _("its job belongs to another Slurm cluster, and may still run.")
            raise Refused(Problem(path.name, rule, _("Type the command on {host}.", host=state.elsewhere)))


def _named(prefix: str, runs_folder: Path | None) -> list[RunDir]:
    """Return the named run or, for a sweep, its submitted runs and finders and the sweeper's job."""
    if (sweep := runs_folders.find_sweep(prefix, runs_folder)) is None:
        return [runs_folders.find(prefix, runs_folder)]
    members = sweep.members()
    names = [*(one.run for one in members), *(one.finder for one in members if one.finder)]
    every = [sweep.sweeper, *(sweep.run(name) for name in dict.fromkeys(names))]
    return [run for run in every if safe_files.is_file(run.submissions_file)]


def _with_sharers(named: Iterable[Iterable[RunDir]]) -> list[RunDir]:
    """Return each run once, together with the runs in the same job, as cancelling ends that job for all of them."""
    runs = {one.path: one for some in named for run in some for one in (run, *_sharers(run))}
    return list(runs.values())


def _sharers(run: RunDir) -> list[RunDir]:
    return [] if damage.of_run(run) else sharing(run)


def _agreed(runs: Sequence[RunDir]) -> bool:
    if not sys.stdin.isatty():
        raise Refused(
            Problem(counted("{count} run", "{count} runs", len(runs)),
                    _("cancelling more than one run needs a confirmation, and standard input is no terminal."),
                    _("Add --yes."))
        )  # fmt: skip
    print("\n".join(run.id for run in runs))
    return terminal.agreed(counted("cancel this run? [y/N] ", "cancel these {count} runs? [y/N] ", len(runs)))
