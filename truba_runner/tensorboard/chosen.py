"""Select the runs that TensorBoard shows and name each by its experiment and the values that differ between runs."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truba_runner.errors import Problem, Refused, nearest
from truba_runner.language import _
from truba_runner.runs import damage, runs_folders
from truba_runner.runs.run_directory import RunDir
from truba_runner.search.directory import SearchDir, search_of
from truba_runner.search.state import read_state
from truba_runner.search.trial_records import own_values
from truba_runner.storage import safe_files

# A run id: the experiment's name, the training hash, and a number if the same training was started afresh.
_ID = re.compile(r"(?P<name>.+)-(?P<rest>[0-9a-f]{8}(\.\d+)?)")
_LONGEST_VALUE = 40


@dataclass(frozen=True)
class Shown:
    """A run and the name that TensorBoard shows for it."""

    name: str
    run: RunDir


def meant(wanted: Sequence[str], runs_folder: Path | None = None) -> list[RunDir]:
    """Return the runs (or searches) selected by ids, unique id prefixes, sweeps, searches or experiments, newest first.

    Without `wanted`: all runs.

    Raises:
        truba_runner.errors.Refused: no run, sweep or experiment has that name.
    """
    known = runs_folders.runs(runs_folder)
    found = [run for one in wanted for run in _named(one, known, runs_folder)] if wanted else known
    return _newest_first(found)


def choose(wanted: Sequence[str], runs_folder: Path | None = None) -> list[RunDir]:
    """Return the runs that `meant` returns, with each search replaced by its trials, which have the curves.

    Raises:
        truba_runner.errors.Refused: no run, sweep or experiment has that name.
    """
    return with_trials(meant(wanted, runs_folder))


def with_trials(runs: Iterable[RunDir]) -> list[RunDir]:
    """Replace each search by its trials; newest first."""
    return _newest_first(member for run in runs for member in _trials_or_itself(run))


def _newest_first(runs: Iterable[RunDir]) -> list[RunDir]:
    return sorted({run.path: run for run in runs}.values(), key=_begun, reverse=True)


def _named(one: str, known: Sequence[RunDir], runs_folder: Path | None) -> list[RunDir]:
    if (sweep := runs_folders.find_sweep(one, runs_folder)) is not None:
        runs = [sweep.run(member.run) for member in sweep.members()]
        return [run for run in runs if safe_files.is_file(run.submissions_file)]
    of_experiment = [run for run in known if experiment_of(run.id) == one]
    exact = [run for run in known if run.id == one]
    if of_experiment and not exact:
        return of_experiment
    if not any(run.id.startswith(one) for run in known):
        names = {run.id for run in known} | {experiment_of(run.id) for run in known}
        names |= {sweep.id for sweep in runs_folders.sweeps(runs_folder)}
        raise Refused(Problem(one, _("there is no run, sweep or experiment of this name."), nearest(one, names)))
    return [runs_folders.find(one, runs_folder)]


def _trials_or_itself(run: RunDir) -> list[RunDir]:
    if (search := search_of(run)) is None:
        return [run]
    names = safe_files.names(search.trials_folder, search.path)
    return [RunDir(path) for path in (search.trials_folder / name for name in names) if safe_files.is_folder(path)]


def _begun(run: RunDir) -> float:
    for path in (run.submissions_file, run.config_file, run.path):
        try:
            return path.lstat().st_mtime
        except OSError:
            continue
    return 0.0


def experiment_of(run_id: str) -> str:
    """Return the experiment's name from a run id."""
    found = _ID.fullmatch(run_id)
    return found["name"] if found else run_id


def named(runs: Sequence[RunDir]) -> list[Shown]:
    """Give each run a unique display name; the order stays."""
    groups: dict[str, list[RunDir]] = defaultdict(list)
    for run in runs:
        groups[_group(run)].append(run)
    names: dict[Path, str] = {}
    for group, members in groups.items():
        values = _values(members)
        differing = _differing([values[run.path] for run in members])
        short = _short(differing)
        for run in members:
            own = [f"{short[key]}={_word(values[run.path][key])}" for key in differing if key in values[run.path]]
            names[run.path] = " ".join([group, *own])
    _tell_apart(runs, names)
    return [Shown(names[run.path], run) for run in runs]


def _group(run: RunDir) -> str:
    search = _search_around(run)
    return search.id if search else experiment_of(run.id)


def _search_around(run: RunDir) -> SearchDir | None:
    search = SearchDir(run.path.parent.parent)
    return search if run.path.parent == search.trials_folder else None


def _values(runs: Sequence[RunDir]) -> dict[Path, Mapping[str, Any]]:
    """Return each run's values: those its sweep or search recorded, else (or if their keys differ) its whole config."""
    recorded: dict[Path, dict[str, Any]] = defaultdict(dict)
    for folder in dict.fromkeys(run.path.parent for run in runs):
        for sweep in runs_folders.sweeps(folder):
            for member in sweep.members():
                recorded[folder / member.run].update(member.values)
        search = SearchDir(folder.parent)
        if folder == search.trials_folder:
            state = {} if damage.of_run(search) else read_state(search)
            for trial_id, trial in state.get("trials", {}).items():
                recorded[folder / trial_id].update(own_values(trial))
    keys = {frozenset(recorded[run.path]) for run in runs}
    if len(runs) == 1 or (len(keys) == 1 and keys != {frozenset()}):
        return {run.path: recorded[run.path] for run in runs}
    return {run.path: _configured(run) for run in runs}


def _configured(run: RunDir) -> dict[str, Any]:
    """Return the part of a run's config that determines the trained network, by dotted key."""
    try:
        config = run.read_config()
        values = dict(_flat({key: config.get(key) for key in ("job", "data", "train")}))
    except (OSError, RecursionError, ValueError):
        return {}
    folders = ("job.weights", "data.folder", "data.sources", "data.workers", "data.stage_to_node")
    return {key: value for key, value in values.items() if not key.startswith(folders)}


def _flat(value: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield prefix, value
        return
    for key, item in value.items():
        yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))


def _differing(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys whose values differ between the runs; for a single run, all its keys."""
    keys = list(dict.fromkeys(key for values in runs for key in values))
    if len(runs) == 1:
        return keys
    return [key for key in keys if len({repr(values.get(key)) for values in runs}) > 1]


def _short(keys: Sequence[str]) -> dict[str, str]:
    """Shorten each key to its last part if that is unique."""
    last = {key: key.rpartition(".")[2] for key in keys}
    ends = list(last.values())
    return {key: end if ends.count(end) == 1 else key for key, end in last.items()}


def _word(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else "null" if value is None else str(value)
    # TensorBoard's run list groups names by slashes.
    return text.replace("/", "|")[:_LONGEST_VALUE]


def _tell_apart(runs: Sequence[RunDir], names: dict[Path, str]) -> None:
    """Append to names that are still equal the rest of the run id, then also the run's folder."""
    for more in (lambda run: run.id.removeprefix(_group(run)).lstrip("-"), lambda run: str(run.path.parent)):
        same: dict[str, list[RunDir]] = defaultdict(list)
        for run in runs:
            same[names[run.path]].append(run)
        for twins in same.values():
            if len(twins) > 1:
                for run in twins:
                    names[run.path] += f" {more(run).replace('/', '|')}"
