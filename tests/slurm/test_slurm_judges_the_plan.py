"""Slurm is the judge: what the plan accepts the test cluster accepts, and what it refuses the plan had refused."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from public_headers import HEADERS
from truba import Truba, run_dirs

from truba_runner.config.composing.compose import register, typed
from truba_runner.config.identity import run_id
from truba_runner.config.schema import Experiment, Resources
from truba_runner.errors import Refused
from truba_runner.rules.experiment import plan
from truba_runner.rules.site.here import Here
from truba_runner.runs.run_directory import RunDir
from truba_runner.slurm import capacity, client
from truba_runner.slurm.request import derive
from truba_runner.storage.package_files import shipped
from truba_runner.submission.prepared import Prepared
from truba_runner.submission.submission import Submission

FEATURES = ["akya-cuda", "barbun-cuda", "palamut-cuda", "kolyoz-cuda", "H100", "H200", "h200", "gpu", ""]
HOME_OUTSIDE_SCRATCH = "/home/ayse/runs"

# For each partition (and family) its GPUs, cores per GPU and memory: what a request that breaks no rule is made of.
ALLOWED = [
    ("akya-cuda", "", 4, 10, 384),
    ("barbun-cuda", "", 2, 20, 384),
    ("palamut-cuda", "", 8, 16, 1024),
    ("kolyoz-cuda", "H100", 4, 16, 1024),
    ("kolyoz-cuda", "H200", 4, 16, 1024),
    ("debug", "akya-cuda", 4, 10, 384),
    ("debug", "barbun-cuda", 2, 20, 384),
    ("debug", "orfoz", 0, 112, 256),
    ("orfoz", "", 0, 112, 256),
    ("kolyoz-cuda", "", 4, 16, 1024),
    ("hamsi", "", 0, 56, 192),
    ("barbun", "", 0, 40, 384),
    ("smp", "", 0, 224, 4096),
]
# What one thing at a time is changed to, allowed or not.
CHANGES: dict[str, st.SearchStrategy[Any]] = {
    "partition": st.sampled_from(["akya-cuda", "barbun-cuda", "palamut-cuda", "kolyoz-cuda", "debug", "orfoz", "smp"]),
    "nodes": st.sampled_from([1, 2, 3, 5]),
    "gpus": st.integers(0, 9),
    "cores": st.one_of(st.integers(1, 230), st.sampled_from([10, 20, 16, 32, 40, 56, 112])),
    "memory_gb": st.one_of(st.integers(1, 5000), st.sampled_from([192, 256, 384, 385, 1024])),
    "time": st.sampled_from(["3", "30m", "04:00:00", "4:00:30", "3-00:00:00", "3-00:00:01", "4d"]),
    "constraint": st.sampled_from(FEATURES),
}


@st.composite
def resources(draw: st.DrawFn) -> Resources:
    """A request that breaks no rule, with up to two things changed."""
    partition, constraint, gpus, cores_per_gpu, memory_gb = draw(st.sampled_from(ALLOWED))
    asked_gpus = draw(st.integers(1, gpus)) if gpus else 0
    cores = draw(st.sampled_from([None, cores_per_gpu * max(1, asked_gpus)]))
    allowed = Resources(
        partition=partition,
        gpus=asked_gpus,
        cores=cores,
        memory_gb=draw(st.one_of(st.none(), st.integers(1, memory_gb))),
        time=draw(st.sampled_from(["3", "30m", "2h", "04:00:00"])),
        account="ayse",
        qos="",
        constraint=constraint,
    )
    changed = draw(st.lists(st.sampled_from(sorted(CHANGES)), max_size=2, unique=True))
    return replace(allowed, **{key: draw(CHANGES[key]) for key in changed})


@pytest.fixture(scope="module")
def base(cluster: Cluster) -> Experiment:
    """mnist on the test cluster, as ayse would compose it."""
    return composed(cluster)


def composed(cluster: Cluster, *overrides: str) -> Experiment:
    register()
    with initialize_config_dir(str(shipped("conf")), version_base="1.3"):
        scratch = cluster.scratch_root
        own = [f"cluster.scratch={scratch}", f"cluster.runs_folder={scratch}/ayse/runs", "cluster=testcluster"]
        return typed(compose("config", ["+experiment=mnist", *own, "resources.account=ayse", *overrides]))


def script_of(experiment: Experiment) -> str:
    run = RunDir(Path(experiment.cluster.runs_folder) / run_id(experiment))
    return Submission(Prepared(experiment, run, derive(experiment), Path("/job.py"))).script()


def slurm_accepts(cluster: Cluster, experiment: Experiment) -> tuple[bool, str]:
    script = script_of(experiment)
    done = cluster.run(["sbatch", "--test-only"], input=script, check=False)
    return done.returncode == 0, done.stderr + script


def plan_accepts(experiment: Experiment, here: Here) -> tuple[bool, str]:
    try:
        plan(experiment, here)
    except Refused as refused:
        return False, str(refused)
    return True, ""


def test_what_the_plan_accepts_slurm_accepts(
    cluster: Cluster, base: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "run", lambda argv, **keys: cluster.run(argv).stdout)
    live = capacity.partitions()
    # All partitions of the test cluster are in one Slurm, so the machine has no name here.
    here = Here(live=lambda: live)
    cluster.run(["mkdir", "-p", base.cluster.runs_folder])
    seen: Counter[tuple[bool, bool]] = Counter()

    @settings(max_examples=400, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(resources(), st.integers(0, 9))
    def judge(asked: Resources, outside: int) -> None:
        folder = HOME_OUTSIDE_SCRATCH if outside == 0 else base.cluster.runs_folder
        experiment = replace(base, resources=asked, cluster=replace(base.cluster, runs_folder=folder))
        planned, why = plan_accepts(experiment, here)
        accepted, answer = slurm_accepts(cluster, experiment)
        seen[planned, accepted] += 1
        assert accepted or not planned, f"the plan accepted what Slurm refused:\n{asked}\n{answer}"

    judge()
    print(f"both accept {seen[True, True]}, both refuse {seen[False, False]}, the plan alone {seen[False, True]}")
    assert seen[True, True] >= 50 and seen[False, False] >= 100
    # A plan that refuses everything would pass too: most of what it refuses, Slurm must refuse as well.
    assert seen[False, True] < seen[False, False]


def test_slurm_says_of_public_headers_what_the_plan_says(
    cluster: Cluster, base: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As people wrote them, and as an experiment asks for the same; tests/unit/rules tests that it is the same."""
    monkeypatch.setattr(client, "run", lambda argv, **keys: cluster.run(argv).stdout)
    live = capacity.partitions()
    cluster.run(["mkdir", "-p", base.cluster.runs_folder])
    scripts, wrong = {}, []
    for number, header in enumerate(HEADERS):
        experiment = composed(cluster, *shlex.split(header.overrides))
        planned, why = plan_accepts(experiment, Here(live=lambda: live))
        if planned == bool(header.refused) or header.refused not in why:
            wrong.append(f"{header.does}: the plan: {why or 'accepted'}")
        scripts[f"{number}-theirs"] = header.script()
        if not header.refused:
            scripts[f"{number}-ours"] = script_of(experiment)
    answers = answers_of(cluster, scripts)
    for name in scripts:
        header, (accepted, answer) = HEADERS[int(name.partition("-")[0])], answers[name]
        if accepted == bool(header.site) or header.site not in answer:
            wrong.append(f"{name}, {header.does}: Slurm: {answer}")
    assert not wrong, "\n".join(wrong)


def answers_of(cluster: Cluster, scripts: dict[str, str]) -> dict[str, tuple[bool, str]]:
    """Return whether Slurm would accept each script, and what it says."""
    folder = cluster.scratch() / "headers"
    cluster.run(["mkdir", "-p", str(folder)])
    for name, text in scripts.items():
        (folder / name).write_text(text)
    each = 'for one in *; do printf "\\0%s\\0" "$one"; sbatch --test-only "$one" 2>&1; printf "\\0%s" $?; done'
    _, *found = cluster.run(["sh", "-c", each], cwd=folder).stdout.split("\0")
    return {name: (status == "0", said) for name, said, status in zip(found[::3], found[1::3], found[2::3])}


def test_what_the_filter_refuses_is_told_in_the_users_language_at_submission_and_by_why(truba: Truba) -> None:
    """The file does not know the rule here, so that the job gets as far as the filter."""
    unknown = "cluster.partitions.orfoz.cores_allowed=[]"
    own = ["+experiment=mnist", "data.name=digits", "resources.partition=orfoz", "resources.gpus=0", unknown]
    done = truba(*own, "resources.cores=55", truba.runs_folder(), TRUBA_LANG="tr")
    assert done.returncode == 2, done.stderr
    assert "Orfoz kuyruguna gonderilen islerde node basina 56/112 cekirdek talep ediniz." in done.stderr
    assert "düğüm başına 56/112 çekirdek" in done.stderr and "resources.cores" in done.stderr
    assert "QOS" not in done.stderr
    none_such = truba("+experiment=mnist", "data.name=digits", "resources.exclude=akya99", truba.runs_folder("other"))
    assert none_such.returncode == 2 and "for resources.exclude=akya99" in none_such.stderr
    (run,) = run_dirs(truba.project)
    told = truba("why", "--json", "--runs", str(run.parent), run.name)
    assert told.returncode == 0, told.stderr
    (row,) = json.loads(told.stdout)
    assert row["findings"][0]["reason"] == "filter-cores-per-node", told.stdout
    assert "56/112 cores on each node" in row["findings"][0]["means"]
