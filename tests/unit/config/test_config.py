from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError

from truba_runner.config import omegaconf_private
from truba_runner.config.identity import run_id
from truba_runner.config.schema import Experiment, detect_cluster, experiment_from
from truba_runner.storage.package_files import shipped

Compose = Callable[..., Experiment]


@pytest.mark.parametrize(
    "override",
    ["train.seed=1", "train.learning_rate=0.1", "train.epochs=9", "data.name=digits", "+job.options.units=3"],
)
def test_what_changes_the_network_changes_the_run(experiment: Compose, override: str) -> None:
    assert run_id(experiment(override)) != run_id(experiment())


@pytest.mark.parametrize(
    "override",
    ["resources.gpus=4", "resources.time=9h", "cluster.runs_folder=/x", "data.folder=/y", "fresh=true", "dry_run=true",
     "environment.python=python3", "tensorboard.enabled=false"],
)  # fmt: skip
def test_what_does_not_change_it_keeps_the_run(experiment: Compose, override: str) -> None:
    assert run_id(experiment(override)) == run_id(experiment())


def test_the_same_config_is_the_same_run_on_every_cluster(experiment: Compose) -> None:
    assert run_id(experiment(cluster="local")) == run_id(experiment(cluster="truba"))


def test_auto_is_slurm_where_sbatch_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hydra_ready: None) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (detect_cluster(), compose("config", ["+experiment=mnist"]).cluster.name) == ("local", "local")
    sbatch = tmp_path / "sbatch"
    sbatch.touch(mode=0o700)
    assert (detect_cluster(), compose("config", ["+experiment=mnist"]).cluster.name) == ("truba", "truba")
    monkeypatch.setenv("TRUBA_CLUSTER", "testcluster")
    assert compose("config", ["+experiment=mnist"]).cluster.name == "testcluster"
    assert compose("config", ["+experiment=mnist", "cluster=local"]).cluster.name == "local"


def test_scratch_follows_the_user(experiment: Compose) -> None:
    assert experiment().cluster.runs_folder.startswith(os.environ["TRUBA_SCRATCH"])


def test_a_key_that_is_not_in_the_schema_is_refused() -> None:
    with pytest.raises(ConfigKeyError):
        experiment_from({"resources": {"gpu": 2}})


@pytest.mark.parametrize("name", sorted(file.stem for file in (shipped("conf") / "experiment").glob("*.yaml")))
def test_a_config_is_converted_as_omegaconf_converts_it(hydra_ready: None, name: str) -> None:
    more = ["+job.options.same=${train}", "+job.options.list=[1,null,{a: '${name}'}]", "train.loss=null"]
    config = compose("config", [f"+experiment={name}", "cluster=truba", *more])
    assert repr(omegaconf_private.plain(config)) == repr(OmegaConf.to_object(config))


@pytest.mark.parametrize("value", ["???", "${nothing}", "${job.options.x}", r"\${name}", "${oc.env:NOTHING}"])
def test_what_has_rules_of_its_own_is_left_to_omegaconf(value: str) -> None:
    config = OmegaConf.merge(OmegaConf.structured(Experiment), {"name": "x", "job": {"options": {"x": value}}})
    config.job.module, config.data.name, config.data.folder = "a", "b", "c"
    outcomes = []
    for convert in (OmegaConf.to_object, omegaconf_private.to_object):
        try:
            outcomes.append(repr(convert(config)))
        except Exception as error:
            outcomes.append(f"{type(error).__name__}: {error}")
    assert outcomes[0] == outcomes[1]
