"""An experiment becomes a checked run: its plan, data, environment and run directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from truba_runner.code import job_module, network_size, snapshot
from truba_runner.config import lr_find
from truba_runner.config.identity import newest, run_id
from truba_runner.config.schema import Experiment
from truba_runner.config.search_space import KINDS, jobs
from truba_runner.data import staging, weights
from truba_runner.environment import caches, probe, probe_job
from truba_runner.environment.probe import Found
from truba_runner.errors import Failed, Problem, Refused
from truba_runner.language import _
from truba_runner.log import warn
from truba_runner.nodes import exclusion
from truba_runner.nodes.ledger import NODES
from truba_runner.rules.experiment import Plan, plan
from truba_runner.rules.gpus import builds, memory
from truba_runner.rules.gpus.architecture import capability_of
from truba_runner.runs import damage
from truba_runner.runs.events import SWEEPS
from truba_runner.runs.run_directory import CODE, RunDir
from truba_runner.search import submission as search
from truba_runner.slurm import client
from truba_runner.slurm.request import Request, derive
from truba_runner.storage import private
from truba_runner.storage.folder_lock import LOCK
from truba_runner.submission import here
from truba_runner.submission.automatic import Automatic
from truba_runner.submission.prepared import Prepared

# What a caller has to add to the rules.
MoreRules = Callable[[Experiment, Request], Iterable[Problem]]


@dataclass(frozen=True)
class Checked:
    """An experiment without `auto` that breaks no rule, its plan, and its job file."""

    experiment: Experiment
    plan: Plan
    job_file: Path


class Checks:
    """Checks the experiments of one command; each job module is looked up once, and Slurm is asked once."""

    def __init__(self) -> None:
        """Look nothing up yet."""
        self._find = lru_cache(maxsize=None)(lambda module: job_module.find(module, Path.cwd()))
        self._sizes = network_size.Sizes()
        self._automatic = Automatic(self._sizes)
        self._here = here.look()

    def check(self, experiment: Experiment, more: MoreRules = lambda experiment, request: ()) -> Checked:
        """Check an experiment against all rules, and those that `more` adds.

        Raises:
            truba_runner.errors.Refused: it breaks rules; all of them are listed.
            truba_runner.errors.Failed: Slurm does not answer.
        """
        problems: list[Problem] = []
        run_plan, job_file = None, None
        try:
            found = self._find(experiment.job.module)
            snapshot.refuse_too_much(experiment, found)
            job_file = found
        except Refused as refused:
            problems += refused.problems
        try:
            experiment = self._automatic.settled(experiment, job_file or Path(experiment.job.module))
            run_plan = plan(experiment, self._here)
            size = self._sizes.of(experiment, job_file) if job_file and experiment.resources.gpus else None
            too_large = memory.problems(experiment, size) if size else ()
            problems = [*more(experiment, run_plan.request), *too_large, *problems]
        except Refused as refused:
            problems = [*refused.problems, *problems]
        if problems or run_plan is None or job_file is None:
            raise Refused(*problems)
        return Checked(experiment, run_plan, job_file)


class Provision:
    """Gives checked experiments of one command what they need: each file, environment and folder is looked at once."""

    def __init__(self, provide: bool) -> None:
        """Without `provide`, as for a dry run, check no data, and an environment only if its report is cached."""
        self._provide = provide
        # The name of the data that is trained on, by the data, the weights and the selector.
        self._names: dict[tuple[str, str, str], str] = {}
        self._environments: dict[str, Found] = {}
        self._listed: dict[str, Collection[str]] = {}
        self._warned: set[str] = set()

    def prepare(self, checked: Checked, selector: str) -> Prepared:
        """Return the run, search or, with `sweep=lr_find`, the run with its finder. `selector`: what the user typed.

        Raises:
            truba_runner.errors.Refused: files are missing, or the experiment cannot be trained in its environment.
            truba_runner.errors.Failed: sbatch is missing here, or Slurm does not answer.
        """
        experiment = checked.experiment
        found: Found = {}
        if self._provide:
            experiment = self._with_data(experiment, selector)
            found = self._environment(experiment, checked.plan.request)
        self._refuse_unfit(experiment, found)
        training = lr_find.training_of(experiment)
        run = self._newest(training)
        prepared = Prepared(training, run, checked.plan.request, checked.job_file, found=found)
        if experiment.sweep.kind != lr_find.KIND:
            return prepared
        finder = lr_find.finder_of(experiment)
        return replace(
            prepared, finder=replace(prepared, experiment=finder, run=self._newest(finder), request=derive(finder))
        )

    def _with_data(self, experiment: Experiment, selector: str) -> Experiment:
        # Record only the table line that the run uses; a search has trials, which may use several.
        used = {arch: url for job in jobs(experiment) for arch, url in weights.chosen(job).items()}
        key = repr(experiment.data), repr(used), selector
        if key not in self._names:
            self._names[key] = _provided_data(experiment, selector)
        data = replace(experiment.data, name=self._names[key])
        return replace(experiment, data=data, job=replace(experiment.job, weights=used))

    def _environment(self, experiment: Experiment, request: Request) -> Found:
        key = _environment_key(experiment)
        if key not in self._environments:
            self._environments[key] = _in_environment(experiment)
            for warning in caches.warnings(experiment, request):
                warn(warning)
        return self._environments[key]

    def _refuse_unfit(self, experiment: Experiment, found: Found) -> None:
        """Refuse frameworks that cannot compute on the partition's GPUs; warn once of lesser problems with them."""
        if capability_of(experiment):
            held = found or self._known(experiment)
            chosen = probe.words(experiment.environment)
            if wrong := list(builds.problems(experiment, held, chosen)):
                raise Refused(*wrong)
            for message in builds.warnings(experiment, held):
                if message not in self._warned:
                    self._warned.add(message)
                    warn(message)

    def _known(self, experiment: Experiment) -> Found:
        key = _environment_key(experiment)
        if key not in self._environments:
            self._environments[key] = probe.known(experiment)
        return self._environments[key]

    def _newest(self, experiment: Experiment) -> RunDir:
        folder = experiment.cluster.runs_folder
        if folder not in self._listed:
            self._listed[folder] = set(os.listdir(folder)) if Path(folder).is_dir() else set()
        return newest_directory(experiment, self._listed[folder])


def _environment_key(experiment: Experiment) -> str:
    return repr((experiment.environment, experiment.job.backend))


def _provided_data(experiment: Experiment, selector: str) -> str:
    """Stage the data, and return its name; if other data replaces it, tell the user."""
    name = staging.provide(experiment, selector)
    asked, folder = experiment.data.name, experiment.data.folder
    if name != asked:
        lacks = _("{data} is not in {folder} and cannot be downloaded from here.", data=asked, folder=folder)
        instead = _("Training on {name} instead: results say nothing about {data}.", name=name, data=asked)
        print(f"\n*** {lacks} ***\n*** {instead} ***\n")
    return name


def _in_environment(experiment: Experiment) -> Found:
    """Return the versions in the job's Python environment; empty if unknown."""
    if experiment.cluster.scheduler == "slurm":
        on_slurm_or_failed()

    def exclude(request: Request) -> str:
        return exclusion.of_request(experiment.cluster, request).exclude

    return probe.found(experiment, lambda script: probe_job.run(experiment, script, exclude))


def on_slurm_or_failed() -> None:
    """Make sure that jobs can be submitted from here.

    Raises:
        truba_runner.errors.Failed: they cannot.
    """
    if not client.available():
        raise Failed("there is no sbatch on the PATH; is this a login node? cluster=local trains on this machine")


# -- directories -----------------------------------------------------------------------------------------------


def newest_directory(experiment: Experiment, names: Collection[str] | None = None) -> RunDir:
    """Return the newest directory of a run or a search; for a fresh start, the one after it.

    `names` is the content of the runs folder, if known already.
    """
    return search.directory(experiment) if experiment.sweep.kind in KINDS else _newest_run(experiment, names)


def _newest_run(experiment: Experiment, names: Collection[str] | None) -> RunDir:
    folder = Path(experiment.cluster.runs_folder)

    def exists(one: str) -> bool:
        try:
            return (names is None or one in names) and RunDir(folder / one).exists()
        except PermissionError:  # It belongs to another user; `refuse_others` refuses it.
            return True

    return RunDir(folder / newest(run_id(experiment), exists, experiment.fresh))


def refuse_others(experiment: Experiment, runs: Sequence[RunDir], *folders: Path) -> None:
    """Refuse to use the runs folder, `runs` and `folders` in it if another user owns or can write to any of them.

    Raises:
        truba_runner.errors.Refused: there are such folders.
    """
    runs_folder = Path(experiment.cluster.runs_folder)
    shared = (runs_folder / CODE, runs_folder / SWEEPS, runs_folder / NODES, runs_folder / LOCK)
    private.require(runs_folder, [*shared, *folders, *(run.path for run in runs)])


def refuse_damaged(runs: Iterable[RunDir]) -> None:
    """Refuse to submit a run or a search whose record of earlier submissions is damaged.

    Raises:
        truba_runner.errors.Failed: there is such a run.
    """
    for run in runs:
        if why := damage.of_submissions(run):
            message = _(
                "{run}: {why}. It is not known whether the run has a job already, and two jobs would damage each "
                "other's files. Check with squeue that it has none and move {folder} away, or start a new run with "
                "fresh=true.",
                run=run.id,
                why=why,
                folder=run.path,
            )
            raise Failed(message)
