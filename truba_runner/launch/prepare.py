"""Prepare an experiment as a checked run: its plan, data, environment and run directory."""

from __future__ import annotations

import socket
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from truba_runner.code import job_module, snapshot
from truba_runner.config.identity import run_id
from truba_runner.config.schema import Experiment
from truba_runner.config.search_space import jobs
from truba_runner.data import staging, weights
from truba_runner.environment import probe, probe_job
from truba_runner.environment.probe import Found
from truba_runner.errors import Failed, Problem, Refused
from truba_runner.language import _
from truba_runner.rules.experiment import Plan, plan
from truba_runner.runs.run_directory import RunDir
from truba_runner.slurm import client
from truba_runner.submission.automatic import Automatic


def check(experiment: Experiment) -> tuple[Experiment, Plan, Path]:
    """Return the experiment without `auto`, its plan, and its job file.

    Raises:
        truba_runner.errors.Refused: it breaks rules; all of them are listed.
        truba_runner.errors.Failed: Slurm does not answer.
    """
    problems: list[Problem] = []
    made, job_file = None, None
    try:
        found = job_module.find(experiment.job.module, Path.cwd())
        snapshot.refuse_too_much(experiment, found)
        job_file = found
    except Refused as refused:
        problems += refused.problems
    try:
        experiment = Automatic().settled(experiment, job_file or Path(experiment.job.module))
        made = plan(experiment, login_node=socket.gethostname())
    except Refused as refused:
        problems = [*refused.problems, *problems]
    if made is None or job_file is None:
        raise Refused(*problems)
    return experiment, made, job_file


def in_environment(experiment: Experiment) -> Found:
    """Return the versions in the job's Python environment; empty if unknown.

    Raises:
        truba_runner.errors.Refused: the experiment cannot be trained with it.
        truba_runner.errors.Failed: sbatch is missing here, or Slurm does not answer or rejects the probe job.
    """
    if experiment.cluster.scheduler == "slurm":
        on_slurm_or_failed()
    return probe.found(experiment, lambda script: probe_job.run(experiment, script))


def on_slurm_or_failed() -> None:
    """Require that jobs can be submitted from here.

    Raises:
        truba_runner.errors.Failed: sbatch is not available.
    """
    if not client.available():
        raise Failed(_("there is no sbatch on the PATH; is this a login node? cluster=local trains here"))


def with_data(experiment: Experiment, selector: str) -> Experiment:
    """Provide the data; if the fallback data has to be used, print a warning and set its name in the experiment."""
    name = staging.provide(experiment, selector)
    # Keep only those lines of the long table of weights that the run, or any trial of a search, uses.
    used = {arch: url for job in jobs(experiment) for arch, url in weights.chosen(job).items()}
    experiment = replace(experiment, job=replace(experiment.job, weights=used))
    if name == experiment.data.name:
        return experiment
    asked, folder = experiment.data.name, experiment.data.folder
    lacks = _("{data} is neither in {folder} nor can it be downloaded from here.", data=asked, folder=folder)
    instead = _("Training on {name} instead: results say nothing about {data}.", name=name, data=asked)
    print(f"\n*** {lacks} ***\n*** {instead} ***\n")
    return replace(experiment, data=replace(experiment.data, name=name))


def newest_run_dir(experiment: Experiment, names: Collection[str] | None = None) -> RunDir:
    """Return the newest run directory of this config or, with `fresh=true`, the next one.

    `names` lists the content of the runs folder if the caller has read it already.
    """
    folder, name = Path(experiment.cluster.runs_folder), run_id(experiment)

    def exists(one: str) -> bool:
        try:
            return (names is None or one in names) and RunDir(folder / one).exists()
        except PermissionError:  # Another user's directory exists; it is refused later.
            return True

    count = 1
    while exists(f"{name}.{count + 1}"):
        count += 1
    if experiment.fresh and exists(name):
        count += 1
    return RunDir(folder / (name if count == 1 else f"{name}.{count}"))
