"""Collect the sections of a report on a run, search or sweep from its records and Slurm's accounting."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from truba_runner.errors import Failed
from truba_runner.language import _, counted, marked
from truba_runner.report.page import Block, Facts, Picture, Rows, Section, Sentence, Text
from truba_runner.runs import damage, restarts
from truba_runner.runs.events import Kind
from truba_runner.runs.record_files import RunRecord
from truba_runner.runs.record_shapes import ResultRecord
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.state import state_of
from truba_runner.runs.sweep_directory import SweepDir, sharing
from truba_runner.search import overview
from truba_runner.search.directory import SearchDir
from truba_runner.slurm import client
from truba_runner.slurm import jobs as slurm_jobs
from truba_runner.slurm.jobs import Job, Use
from truba_runner.status.printing import short
from truba_runner.status.sweep_plots import draw
from truba_runner.status.sweep_table import SEED, Row, Table, table
from truba_runner.storage import safe_files
from truba_runner.training import plots

# Captions of the pictures that jobs draw, by file name; other pictures are captioned with their file name.
_CAPTIONS = {
    "learning_curves": marked("learning curves"),
    "confusion_matrix": marked("confusion matrix"),
    "show_batch": marked("examples as the network sees them"),
    "top_losses": marked("examples with the largest loss"),
    "lr_find_find": marked("the learning-rate finder"),
}


def of_damaged(why: str) -> list[Section]:
    """Describe a run or search whose records are damaged: only what is wrong with them."""
    return [Section(_("Status"), [Facts([(_("state"), damage.DAMAGED), (_("why"), why)])])]


def of_run(run: RunDir, jobs: Mapping[str, Job] | None) -> list[Section]:
    """Describe a run: state, metrics, cost, pictures, epochs, starts, environment and config."""
    record = run.record()
    state, result, progress = state_of(record, jobs), record.result, record.progress
    epochs = _("{epoch} of {epochs}", epoch=progress.epoch or 0, epochs=progress.epochs or "?")
    standing = Facts(
        [
            (_("state"), state.state),
            (_("why"), state.why),
            (_("missing"), " ".join(result.notes)),
            (_("epoch"), epochs if progress else ""),
            *_timing(record),
        ]
    )
    return [
        Section(_("Status"), [standing]),
        Section(_("Metrics"), [_metrics(result.metrics or progress.metrics)]),
        Section(_("Cost"), [Facts(_cost(_uses([run]).values()))]),
        Section(_("Pictures"), _pictures(run)),
        Section(_("Epochs"), [_history(record)]),
        Section(_("Starts"), [_starts(record)]),
        Section(_("Environment"), [_environment(record, result)]),
        Section(_("Config"), [_config(run)]),
        _acknowledgement(run),
    ]


def of_search(search: SearchDir, jobs: Mapping[str, Job] | None) -> list[Section]:
    """Describe a search: state, best model, trials (best first), cost, environment and config."""
    standing, trials = overview.standing(search, jobs), overview.trial_rows(search)
    names = list(dict.fromkeys(name for trial in trials for name in trial["values"]))
    rows = [
        [
            one["trial"],
            one["state"],
            *(short(one["values"].get(name)) for name in names),
            short(one["score"]),
            one["why"],
        ]
        for one in trials
    ]
    best, metrics = [search.best(trial["trial"]) for trial in trials[:1]], search.record().result.metrics
    best = damage.sound(run for run in best if run.path.exists())
    return [
        Section(
            _("Status"),
            [Facts([(_("state"), standing.state), (_("why"), standing.why), (_("trials"), str(len(trials)))])],
        ),
        Section(_("Best model"), [_metrics(metrics), *(picture for run in best for picture in _pictures(run))]),
        Section(_("Trials"), [Rows([_("trial"), _("state"), *names, _("score"), _("why")], rows)]),
        Section(_("Cost"), [Facts(_cost(_uses(overview.job_runs(search)).values()))]),
        Section(_("Environment"), [_environment(search.record(), search.record().result)]),
        Section(_("Config"), [_config(search)]),
        _acknowledgement(search),
    ]


def of_sweep(sweep: SweepDir, jobs: Mapping[str, Job] | None) -> list[Section]:
    """Describe a sweep: each run with its values, metrics and cost, pictures over the values, and the best run."""
    shown = table(sweep, jobs)
    runs = {row.run: sweep.run(row.run) for row in shown.rows if row.state != damage.DAMAGED}
    finders = {member.finder for member in sweep.members() if member.finder}
    uses = _uses(damage.sound([*runs.values(), *(sweep.run(name) for name in finders), sweep.sweeper]))
    rows = shown.sorted_by(shown.metric)
    cells = [_run_cells(shown, row, uses.get(row.run)) for row in rows]
    best_of = _("best ({mode})", mode=shown.mode)
    found = [_("found rate")] if shown.finds else []
    after = [_("state"), _("epoch"), shown.metric, best_of, _("core-hours"), _("why")]
    headings = [_("run"), *shown.keys, *found, *after]
    best = next((runs[row.run] for row in rows if shown.best(row) is not None and row.run in runs), None)
    result = best.record().result if best else ResultRecord()
    first = next((run for run in runs.values() if run.exists()), None)
    return [
        Section(_("Runs"), [Rows(headings, cells)]),
        Section(_("Over the seeds"), [_seeds(shown)]),
        Section(_("Over the values"), _sweep_pictures(shown)),
        Section(_("Cost"), [Facts(_cost(uses.values()))]),
        Section(_("The best run, {run}", run=best.id) if best else "", _best_run(best) if best else []),
        Section(
            _("Environment"),
            [_environment(first.record(), result)] if first else [],
        ),
        *([_acknowledgement(first)] if first else []),
    ]


def _run_cells(shown: Table, row: Row, use: Use | None) -> list[str]:
    values = (short(row.values.get(key)) for key in shown.keys)
    epoch = f"{row.epoch or 0}/{row.epochs or '?'}"
    metric = (short(row.last(shown.metric)), short(shown.best(row)))
    rate = (
        [f"{short(row.finding.rate)} ({row.finding.takes})" if row.finding and row.finding.rate is not None else ""]
        if shown.finds
        else []
    )
    return [
        row.run,
        *values,
        *rate,
        row.state,
        epoch,
        *metric,
        f"{use.core_seconds / 3600:,.2f}" if use else "",
        row.why,
    ]


def _best_run(run: RunDir) -> list[Block]:
    return [_metrics(run.record().result.metrics), *_pictures(run), _config(run)]


def _timing(record: RunRecord) -> list[tuple[str, str]]:
    events, account, result = record.events, restarts.account(record.events), record.result
    times = [event.time for event in events if event.time]
    seconds = result.seconds_training
    return [
        (_("first submitted"), _moment(min(times)) if times else ""),
        (_("restarts"), str(account["restarts"])),
        (_("steps trained again"), str(account["steps_lost"])),
        (_("seconds training"), "" if seconds is None else f"{seconds:,.1f}"),
        (_("seconds restoring"), f"{account['seconds_restoring']:,.1f}"),
        (_("parameters"), "" if result.parameters is None else f"{result.parameters:,}"),
        (_("SHA-256 of the weights"), result.weights_sha256),
    ]


def _metrics(metrics: Mapping[str, float | None]) -> Rows:
    return Rows([_("metric"), _("value")], [[name, short(value)] for name, value in metrics.items()])


def _uses(runs: Sequence[RunDir]) -> dict[str, Use]:
    """Return each run's usage over all its jobs, by run id; what packed runs used is divided evenly among them."""
    job_ids = {run.id: overview.jobs_on_slurm(run) for run in runs}
    used: Mapping[str, Use] = {}
    with suppress(client.SlurmError):  # The report then has no cost.
        used = slurm_jobs.used(job_id for of in job_ids.values() for job_id in of)
    parts = {run.id: 1 + len(sharing(run)) for run in runs}
    found: dict[str, Use] = {}
    for run_id, of in job_ids.items():
        if known := [used[job_id] for job_id in of if job_id in used]:
            whole = sum(known, Use(0, 0, 0))
            shares = whole.core_seconds // parts[run_id], whole.gpu_seconds // parts[run_id]
            found[run_id] = Use(whole.starts, *shares)
    return found


def _cost(uses: Any) -> list[tuple[str, str]]:
    total = sum(uses, Use(0, 0, 0))
    if not total.starts:
        return []
    hours = [
        (_("core-hours"), f"{total.core_seconds / 3600:,.2f}"),
        (_("GPU-hours"), f"{total.gpu_seconds / 3600:,.2f}"),
    ]
    return [*hours, (_("starts on the cluster"), str(total.starts))]


def _pictures(run: RunDir) -> list[Block]:
    """Return the pictures that the job drew; without learning curves among them, draw those so far if possible here."""
    drawn = [run.plots / name for name in safe_files.names(run.plots, run.path) if name.endswith(".png")]
    drawn = [file for file in drawn if safe_files.is_file(file)]
    pictures = []
    for file in drawn:
        with suppress(FileNotFoundError):  # The run may be deleted meanwhile.
            pictures.append(Picture(_caption(file.stem), safe_files.read(file, run.path)))
    if not any(file.name == "learning_curves.png" for file in drawn) and (rows := _epochs(run.record())):
        with tempfile.TemporaryDirectory() as folder:
            if curves := plots.learning_curves(rows, Path(folder)):
                pictures.insert(0, Picture(_("learning curves"), curves.read_bytes()))
    return list(pictures)


def _caption(name: str) -> str:
    """Return the caption of a job's picture."""
    return _(_CAPTIONS[name]) if name in _CAPTIONS else name.replace("_", " ")


def _sweep_pictures(shown: Table) -> list[Block]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = draw(shown, Path(folder) / "sweep.png")
        except Failed as failed:
            return [Sentence(f"{failed}.")]
        return [Picture(_("{metric} over the swept values", metric=shown.metric), file.read_bytes())]


def _epochs(record: RunRecord) -> list[dict[str, Any]]:
    return [{name: float(value) for name, value in row.items() if _is_number(value)} for row in record.history]


def _history(record: RunRecord) -> Rows:
    rows = _epochs(record)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[short(row.get(name)) for name in columns] for row in rows]
    return Rows(columns, cells, folded=counted("{count} epoch", "{count} epochs", len(rows)) if len(rows) > 1 else "")


def _starts(record: RunRecord) -> Rows:
    rows = []
    for event in record.events:
        if event.kind == Kind.STARTED:
            epoch, step = event.position or (0, 0)
            where = _("epoch {epoch}, step {step}", epoch=epoch + 1, step=step)
            rows.append([_moment(event.time), event.job_id, event.host, where])
    return Rows([_("when"), _("job"), _("node"), _("began at")], rows)


def _environment(record: RunRecord, result: ResultRecord) -> Facts:
    submitted = record.submitted
    request, git = submitted.request, submitted.git
    versions = {**submitted.versions, **result.versions}
    commit = git.get("commit", "")
    if git.get("dirty"):
        commit = _("{commit}, with uncommitted changes", commit=commit)
    return Facts(
        [
            (_("training code"), submitted.job_file),
            (_("its SHA-256"), submitted.job_sha256),
            (_("git commit"), commit),
            *((name, str(version)) for name, version in versions.items()),
            (_("devices"), ", ".join(result.devices)),
            (_("data"), str(result.data.get("name", ""))),
            (_("partition"), str(request.get("partition", ""))),
            (_("nodes"), str(request.get("nodes", ""))),
            (_("GPUs per node"), str(request.get("gpus") or "")),
        ]
    )


def _seeds(shown: Table) -> Rows:
    if SEED not in shown.keys:
        return Rows([], [])
    others = [key for key in shown.keys if key != SEED]
    rows = [
        [*(short(value) for value in group["values"].values()), str(group["runs"])]
        + [short(group["last"]["mean"]), short(group["last"]["spread"]), short(group["best"]["mean"])]
        for group in shown.over_seeds()
    ]
    return Rows(
        [*others, _("seeds"), _("{metric}, mean", metric=shown.metric), _("spread"), _("mean of the best")], rows
    )


def _config(run: RunDir) -> Text:
    """Return the run's config; empty, and so not shown, if it was purged."""
    text = ""
    with suppress(FileNotFoundError):
        text = safe_files.read(run.config_file, run.path).decode(errors="replace")
    return Text(text, folded=_("run.yaml, the resolved config"))


def _acknowledgement(run: RunDir) -> Section:
    try:
        sentence = str(run.read_config()["cluster"]["acknowledgement"])
    except (OSError, KeyError, TypeError, ValueError):
        sentence = ""
    return Section(_("Acknowledgement"), [Sentence(sentence)])


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
