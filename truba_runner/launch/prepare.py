"""An experiment becomes a checked run: its plan, data, environment and run directory."""

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
    """The experiment without `auto`, its plan, and the file of its job.

    Raises:
        Refused: with every broken rule.
        Failed: Slurm does not answer.
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
    """What the job's Python holds, where that is known.

    Raises:
        Refused: the experiment can't be trained with it.
        Failed: there is no Slurm here.
    """
    if experiment.cluster.scheduler == "slurm":
        on_slurm_or_failed()
    return probe.found(experiment, lambda script: probe_job.run(experiment, script))


def on_slurm_or_failed() -> None:
    """Makes sure that jobs can be submitted from here.

    Raises:
        Failed: they cannot.
    """
    if not client.available():
        raise Failed(_("there is no sbatch on the PATH; is this a login node? cluster=local trains here"))


def with_data(experiment: Experiment, selector: str) -> Experiment:
    """Sees to the data; where other data stands in for it, says so and trains on that under its own name."""
    name = staging.provide(experiment, selector)
    # Of a long table the one line that the run uses; a search has trials, which may use several.
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
    """The newest run of this config, or, for a fresh start, the one after it.

    `names` is what the runs folder holds, where somebody has looked already.
    """
    folder, name = Path(experiment.cluster.runs_folder), run_id(experiment)

    def exists(one: str) -> bool:
        try:
            return (names is None or one in names) and RunDir(folder / one).exists()
        except PermissionError:  # It is another's, and refused as such.
            return True

    count = 1
    while exists(f"{name}.{count + 1}"):
        count += 1
    if experiment.fresh and exists(name):
        count += 1
    return RunDir(folder / (name if count == 1 else f"{name}.{count}"))
