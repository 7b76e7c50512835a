"""State and tables of a search, read from its records alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from truba_runner.language import _
from truba_runner.runs import damage
from truba_runner.runs.record_files import RunRecord
from truba_runner.runs.record_shapes import ProgressRecord
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.state import RunState, last_job_id, slurm_jobs, state_of
from truba_runner.search.directory import SearchDir, search_of
from truba_runner.search.state import State, read_state
from truba_runner.search.trial_records import REPORTED, own_values, ranked, values_of
from truba_runner.slurm.jobs import Job
from truba_runner.storage import safe_files


def standing(search: SearchDir, jobs: Mapping[str, Job] | None) -> RunState:
    """Return a search's state: unless ended, RUNNING if a worker runs, else a worker's state, live ones first."""
    if why := damage.of_run(search):
        jobs_of = [state_of(run.record(), jobs) for run in job_runs(search)]
        return RunState(damage.DAMAGED, live=any(one.live for one in jobs_of), job=None, why=why)
    if search.result():
        return RunState("COMPLETED", live=False, job=None)
    state = read_state(search)
    if state.get("failed"):
        return RunState("FAILED", live=False, job=None, why=str(state["failed"]).splitlines()[0])
    states = [state_of(run.record(), jobs) for run in job_runs(search)]
    live = [one for one in states if one.live]
    running = sum(one.state == "RUNNING" for one in live)
    if live:
        return RunState("RUNNING" if running else live[0].state, live=True, job=None, why=live[0].why)
    why = next((one.why for one in states if one.why), _("it has no worker"))
    there = next((one.elsewhere for one in states if one.elsewhere), "")
    return RunState(states[0].state if states else "UNKNOWN", live=False, job=None, why=why, elsewhere=there)


def standing_of(run: RunRecord, jobs: Mapping[str, Job] | None) -> RunState:
    """Return the state of a run or a search."""
    search = search_of(run)
    return standing(search, jobs) if search else state_of(run, jobs)


def row(search: SearchDir, jobs: Mapping[str, Job] | None) -> dict[str, Any]:
    """Return a search as a row among runs: the keys of `status.rows.row`, with counts of trials in place of epochs."""
    state, standing_now = read_state(search), standing(search, jobs)
    finished = [trial for trial in state.get("trials", {}).values() if trial["status"] in REPORTED]
    best = ranked(state)[:1] if state else []
    ids = [last_job_id(run).partition("_")[0] for run in damage.sound(job_runs(search))]
    objective = state.get("objective", {}).get("name", "")
    return {
        "run": search.id,
        "state": standing_now.state,
        "partition": "",
        "job_id": ",".join(dict.fromkeys(job_id for job_id in ids if job_id)),
        "epoch": None,
        "epochs": None,
        "step": None,
        "steps_per_epoch": None,
        "trials_told": len(finished),
        "trials_begun": len(state.get("trials", {})),
        "metrics": search.record().result.metrics or ({objective: best[0]["score"]} if best else {}),
        "elapsed": "",
        "time_limit": "",
        "restarts": None,
        "why": standing_now.why,
        "directory": str(search.path),
    }


def trial_rows(search: SearchDir) -> list[dict[str, Any]]:
    """Return a row for every begun trial, the best first, then those without a score."""
    state = read_state(search)
    if not state:
        return []
    order = [trial["trial_id"] for trial in ranked(state)]
    rest = [trial_id for trial_id in state["trials"] if trial_id not in order]
    return [_trial(search, state, trial_id) for trial_id in (*order, *rest)]


def _trial(search: SearchDir, state: State, trial_id: str) -> dict[str, Any]:
    trial, entry = state["trials"][trial_id], state["open"].get(trial_id)
    values = values_of(trial)
    run = search.trial(trial_id, retry=entry["retry"] if entry else 0)
    wrong = damage.of_run(run) if safe_files.is_folder(run.path) else ""
    progress = ProgressRecord() if wrong else run.progress()
    return {
        "trial": trial_id,
        "state": damage.DAMAGED if wrong else _state(trial, entry),
        "worker": entry["worker"].rpartition("-")[2] if entry else "",
        "values": own_values(trial),
        "score": trial["score"],
        "epoch": progress.epoch,
        "epochs": progress.epochs or values.get("tuner/epochs"),
        "bracket": values.get("tuner/bracket"),
        "round": values.get("tuner/round"),
        "goes_on_from": values.get("tuner/trial_id"),
        "why": wrong or _why(trial),
        "directory": str(run.path),
    }


def _why(trial: Mapping[str, Any]) -> str:
    message = (trial["message"] or "").strip()
    if trial["status"] == "FAILED" and not message:
        return _("its objective is not a number")
    return message.splitlines()[0] if message else ""


def _state(trial: Mapping[str, Any], entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return str(trial["status"])
    return "RUNNING" if entry["worker"] else "WAITING"


def brackets(search: SearchDir) -> list[dict[str, Any]]:
    """Return a row for each round of a Hyperband search's brackets: epochs, numbers of begun and finished trials."""
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for trial in read_state(search).get("trials", {}).values():
        values = values_of(trial)
        if "tuner/bracket" not in values:
            continue
        key = int(values["tuner/bracket"]), int(values["tuner/round"])
        about = {"bracket": key[0], "round": key[1], "epochs": values["tuner/epochs"], "begun": 0, "told": 0}
        entry = rows.setdefault(key, about)
        entry["begun"] += 1
        entry["told"] += trial["status"] in REPORTED
    return [rows[key] for key in sorted(rows, key=lambda key: (-key[0], key[1]))]


def job_runs(search: SearchDir) -> list[RunDir]:
    """Return the workers that were submitted, to query Slurm for their jobs."""
    return [run for run in search.workers() if damage.submissions(run)]


def with_jobs(run: RunDir) -> list[RunDir]:
    """Return the run itself or, for a search, its workers that were submitted."""
    search = search_of(run)
    return job_runs(search) if search else [run]


def jobs_on_slurm(run: RunDir) -> set[str]:
    """Return the ids of all Slurm jobs that a run, or a search's workers, ever had."""
    return {job_id for one in with_jobs(run) for job_id in slurm_jobs(one)}
