"""Which job arrays the runs of a sweep become: one for each set of resources, and no larger than Slurm takes one."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

from truba_runner import scheduler
from truba_runner.config import Experiment
from truba_runner.submit import Prepared
from truba_runner.sweeps import canary, rules
from truba_runner.sweeps.array import ArraySubmission
from truba_runner.sweeps.record import SweepDir


def split(first: Prepared, wanted: Sequence[Prepared], sweep: SweepDir) -> list[ArraySubmission]:
    """The arrays for these runs; where the sweep's first run goes ahead, the others are held until it lives."""
    if not first.experiment.sweep.canary or canary.has_lived(first.run):
        return _arrays(wanted, sweep)
    others = [prepared for prepared in wanted if prepared.run.id != first.run.id]
    held = [replace(array, canary=first.run.id) for array in _arrays(others, sweep)]
    if len(others) == len(wanted):
        return held
    # Last: when it lives, the others must be there to be released.
    ahead = ArraySubmission(
        first, sweep=sweep, tasks=[[first]], allocation=first.request, places=1, max_parallel=1, goes_ahead=True
    )
    return [*held, ahead]


def _arrays(runs: Sequence[Prepared], sweep: SweepDir) -> list[ArraySubmission]:
    """Job arrays for runs, each for those that ask for the same, no larger than Slurm takes one."""
    if not runs:
        return []
    groups: dict[str, list[Prepared]] = {}
    for prepared in runs:
        one = prepared.experiment
        key = repr((prepared.request, one.environment, one.sweep, prepared.job_file))
        groups.setdefault(key, []).append(prepared)
    largest = _largest_array(runs[0].experiment)
    parts = [part for group in groups.values() for part in _parts(_tasks(group), largest)]
    _warn_of_more_at_once(runs[0].experiment, len(parts))
    return [_array(tasks, sweep, len(parts)) for tasks in parts]


def _warn_of_more_at_once(experiment: Experiment, arrays: int) -> None:
    """Each array has a task running, and Slurm has no limit over several."""
    asked, pack = experiment.sweep.max_parallel, experiment.sweep.pack
    if asked is not None and arrays * pack > asked:
        print(
            f"warning: sweep.max_parallel={asked}: the runs are {arrays} job arrays, for the different resources that "
            f"they ask for, and each runs {pack} at a time at least: up to {arrays * pack} run at once.",
            file=sys.stderr,
        )


def _tasks(group: Sequence[Prepared]) -> list[Sequence[Prepared]]:
    pack = group[0].experiment.sweep.pack
    return [group[start : start + pack] for start in range(0, len(group), pack)]


def _parts(tasks: Sequence[Sequence[Prepared]], largest: int) -> Iterable[Sequence[Sequence[Prepared]]]:
    return (tasks[start : start + largest] for start in range(0, len(tasks), largest))


def _largest_array(experiment: Experiment) -> int:
    return experiment.cluster.max_array_size or scheduler.max_array_size()


def _array(tasks: Sequence[Sequence[Prepared]], sweep: SweepDir, arrays: int) -> ArraySubmission:
    first = tasks[0][0]
    request = rules.allocation(first.request, first.experiment)
    at_once = _tasks_at_once(first.experiment, request.total_cores, arrays)
    return ArraySubmission(
        first,
        sweep=sweep,
        tasks=tasks,
        allocation=request,
        places=first.experiment.sweep.pack,
        max_parallel=at_once or len(tasks),
    )


@lru_cache(maxsize=64)
def _core_limit(account: str, otherwise: int) -> int:
    return scheduler.core_limit(account) or otherwise


def _tasks_at_once(experiment: Experiment, cores: int, arrays: int) -> int:
    """Tasks of an array that may run at once; 0: as many as there is room for."""
    asked = experiment.sweep.max_parallel
    if asked is not None:
        # What was asked for holds for the sweep, whose arrays know nothing of each other.
        return max(1, asked // experiment.sweep.pack // arrays)
    limit = _core_limit(experiment.resources.account, experiment.cluster.account_cores)
    return max(1, limit // cores) if limit else 0
