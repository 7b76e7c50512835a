"""Submit the missing and failed runs of a sweep as job arrays, each with its dependency.

A run waits for the canary of its sweep, or for its learning-rate finder: the task of the same number in another array.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from truba_runner.config.schema import Experiment
from truba_runner.errors import Failed, Refused
from truba_runner.language import _
from truba_runner.log import warn
from truba_runner.older_python import zip_equal
from truba_runner.rules import sweep as rules
from truba_runner.runs.sweep_directory import SweepDir
from truba_runner.slurm import capacity
from truba_runner.storage import folder_lock
from truba_runner.submission import messages
from truba_runner.submission.already import settled
from truba_runner.submission.outcome import Action, Outcome
from truba_runner.submission.prepared import Prepared
from truba_runner.submission.submission import warn_of_cost
from truba_runner.sweeps.array import ArraySubmission
from truba_runner.worker import canary

# For each finder that has not ended, by run id: its job array, and its task number there.
Places = Mapping[str, tuple[str, int]]


def through_slurm(runs: Sequence[Prepared], sweep: SweepDir, describe: Callable[[], None]) -> list[Outcome]:
    """Submit the missing and failed runs, with the finders that they need; return one outcome each, in order.

    `describe` records the sweep.

    Raises:
        truba_runner.errors.Refused: the code of a run that has to resume has changed, or Slurm rejects a job.
        truba_runner.errors.Failed: Slurm does not answer.
    """
    each = each_once(runs)
    outcomes: dict[str, Outcome] = {}
    with folder_lock.lock(sweep.runs_folder) as held:
        describe()
        wanted: list[Prepared] = []
        begun = _settled(each)
        for prepared in each:
            if (done := begun[prepared.run.id]) is None:
                wanted.append(prepared)
            outcomes[prepared.run.id] = done or Outcome(prepared.run.id, str(prepared.run.path), Action.SUBMITTED)
        if runs[0].run.record().has_finished_an_epoch:
            # The canary's job cannot do it on sites whose compute nodes may not change jobs.
            canary.release(sweep, runs[0].run.id)
        places = _send_finders(wanted, sweep, held)
        arrays = _all_arrays(runs[0], wanted, places, sweep)
        warn_of_cost(arrays)
        for sent, array in enumerate(arrays):
            if array.canary:
                array = replace(array, canary_job=outcomes[array.canary].job_id)
            job_id = _sent(array, held, sent, len(arrays))
            for number, task in zip_equal(array.task_numbers, array.tasks):
                for prepared in task:
                    outcomes[prepared.run.id] = replace(outcomes[prepared.run.id], job_id=f"{job_id}_{number}")
            messages.submitted(array, job_id)
    return [outcomes[prepared.run.id] for prepared in runs]


def planned(runs: Sequence[Prepared], sweep: SweepDir) -> list[ArraySubmission]:
    """Return the arrays that a dry run shows, as if nothing had been submitted; finder arrays have placeholder ids."""
    finders = _arrays(list(_finders(runs).values()), sweep)
    places = {
        finder.run.id: (f"FINDERS{count}", number)
        for count, array in enumerate(finders, start=1)
        for number, (finder,) in zip_equal(array.task_numbers, array.tasks)
    }
    return [*finders, *_all_arrays(runs[0], runs, places, sweep)]


def _all_arrays(first: Prepared, wanted: Sequence[Prepared], places: Places, sweep: SweepDir) -> list[ArraySubmission]:
    waiting = [one for one in wanted if one.finder and one.finder.run.id in places]
    others = [one for one in wanted if not (one.finder and one.finder.run.id in places)]
    return [*_after_finders(waiting, places, sweep), *_with_canary(first, others, sweep)]


def each_once(runs: Sequence[Prepared]) -> list[Prepared]:
    """Return each run once, from the first choice that leads to it; print a note if there are others."""
    each: dict[str, Prepared] = {}
    same: dict[str, Prepared] = {}
    for prepared in runs:
        if each.setdefault(prepared.run.id, prepared) is not prepared:
            same.setdefault(prepared.run.id, prepared)
    if same:
        messages.same_run(list(same.values()))
    return list(each.values())


def _sent(array: ArraySubmission, lock: int, before: int, of: int) -> str:
    """Submit an array; if Slurm rejects it, say how many arrays were submitted before it."""
    try:
        return array.send(lock)
    except Refused as refused:
        if not before:
            raise
        more = _(
            "{count} of the sweep's {total} job arrays were submitted before this and stay in the queue.",
            count=before,
            total=of,
        )
        raise Refused(*(replace(one, remedy=f"{one.remedy} {more}") for one in refused.problems)) from refused


# -- finders ---------------------------------------------------------------------------------------------------


def _finders(runs: Sequence[Prepared]) -> dict[str, Prepared]:
    """Return the needed finders by run id, each once: several runs may take their rates from the same one."""
    return {one.finder.run.id: one.finder for one in runs if one.finder and one.run.found_rate().learning_rate is None}


def _send_finders(wanted: Sequence[Prepared], sweep: SweepDir, held: int) -> Places:
    """Submit the missing and failed finders; return the places of all finders that have not ended."""
    places: dict[str, tuple[str, int]] = {}
    missing = []
    needed = list(_finders(wanted).values())
    begun = _settled(needed)
    for finder in needed:
        if (done := begun[finder.run.id]) is None:
            missing.append(finder)
        elif done.action == Action.RUNNING:
            job_id, _sign, number = done.job_id.partition("_")
            if not number:
                raise Failed(
                    "the learning-rate finder {run} runs as {job_id}, which no job can wait for; try again once it "
                    "has ended",
                    run=done.run_id,
                    job_id=done.job_id,
                )
            places[done.run_id] = (job_id, int(number))
    arrays = _arrays(missing, sweep)
    warn_of_cost(arrays)
    for array in arrays:
        job_id = array.send(held)
        places |= {finder.run.id: (job_id, number) for number, (finder,) in zip_equal(array.task_numbers, array.tasks)}
        messages.submitted(array, job_id)
    return places


def _after_finders(runs: Sequence[Prepared], places: Places, sweep: SweepDir) -> list[ArraySubmission]:
    """Return arrays in which each task has the number of its finder in the array that it waits for."""
    layers: dict[tuple[str, str, int], dict[int, Prepared]] = {}
    for one in runs:
        assert one.finder  # noqa: S101
        job_id, number = places[one.finder.run.id]
        layer = 0
        # Runs that share a finder need the same task number, so each is in another array.
        while number in layers.setdefault((_asks_for(one), job_id, layer), {}):
            layer += 1
        layers[_asks_for(one), job_id, layer][number] = one
    arrays = []
    for (_asks, job_id, _layer), by_number in layers.items():
        numbers = sorted(by_number)
        array = _array([[by_number[number]] for number in numbers], sweep, len(layers))
        own = () if numbers == list(range(len(numbers))) else numbers
        arrays.append(replace(array, after=job_id, numbers=own))
    return arrays


# -- runs ------------------------------------------------------------------------------------------------------


def _settled(runs: Sequence[Prepared]) -> Mapping[str, Outcome | None]:
    return settled(runs, set(os.listdir(runs[0].run.path.parent))) if runs else {}


def _with_canary(first: Prepared, wanted: Sequence[Prepared], sweep: SweepDir) -> list[ArraySubmission]:
    """Return the arrays for these runs; if the sweep's first run is a canary, the other arrays wait for it."""
    if not first.experiment.sweep.canary or first.run.record().has_finished_an_epoch:
        return _arrays(wanted, sweep)
    others = [prepared for prepared in wanted if prepared.run.id != first.run.id]
    waiting = [replace(array, canary=first.run.id, canary_job="CANARY") for array in _arrays(others, sweep)]
    if len(others) == len(wanted):
        return waiting
    ahead = ArraySubmission(
        first, sweep=sweep, tasks=[[first]], allocation=first.request, places=1, max_parallel=1, goes_ahead=True
    )
    return [ahead, *waiting]


def _arrays(runs: Sequence[Prepared], sweep: SweepDir) -> list[ArraySubmission]:
    """Return job arrays for runs, each of runs with equal requests and no larger than Slurm allows."""
    if not runs:
        return []
    groups: dict[str, list[Prepared]] = {}
    for prepared in runs:
        groups.setdefault(_asks_for(prepared), []).append(prepared)
    largest = _largest_array(runs[0].experiment)
    parts = [part for group in groups.values() for part in _parts(_tasks(group), largest)]
    _warn_of_more_at_once(runs[0].experiment, len(parts))
    return [_array(tasks, sweep, len(parts)) for tasks in parts]


def _warn_of_more_at_once(experiment: Experiment, arrays: int) -> None:
    """Warn if more than `sweep.max_parallel` runs can run at once: Slurm has no limit across several arrays."""
    asked, pack = experiment.sweep.max_parallel, experiment.sweep.pack
    if asked is not None and arrays * pack > asked:
        message = _(
            "sweep.max_parallel={asked}: the runs request different resources and need {arrays} job arrays; each "
            "array runs at least {pack} at a time, so up to {most} run at once.",
            asked=asked,
            arrays=arrays,
            pack=pack,
            most=arrays * pack,
        )
        warn(message)


def _asks_for(prepared: Prepared) -> str:
    """Return the grouping key: runs with equal keys can share an array."""
    one = prepared.experiment
    return repr((prepared.request, one.environment, one.code, one.sweep, prepared.job_file))


def _tasks(group: Sequence[Prepared]) -> list[Sequence[Prepared]]:
    pack = group[0].experiment.sweep.pack
    return [group[start : start + pack] for start in range(0, len(group), pack)]


def _parts(tasks: Sequence[Sequence[Prepared]], largest: int) -> Iterable[Sequence[Sequence[Prepared]]]:
    return (tasks[start : start + largest] for start in range(0, len(tasks), largest))


def _largest_array(experiment: Experiment) -> int:
    return experiment.cluster.max_array_size or capacity.max_array_size()


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
    return capacity.core_limit(account) or otherwise


def _tasks_at_once(experiment: Experiment, cores: int, arrays: int) -> int:
    """Return how many tasks of an array may run at once; 0: no limit."""
    asked = experiment.sweep.max_parallel
    if asked is not None:
        # The limit is for the whole sweep, but Slurm applies it to each array by itself.
        return max(1, asked // experiment.sweep.pack // arrays)
    limit = _core_limit(experiment.resources.account, experiment.cluster.account_cores)
    return max(1, limit // cores) if limit else 0
