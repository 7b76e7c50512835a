"""A run of a sweep is what Hydra would compose of its command line alone, however little is composed for it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict

from truba_runner.config.composing.compose import register, typed
from truba_runner.config.schema import Experiment
from truba_runner.errors import Refused
from truba_runner.storage.package_files import shipped
from truba_runner.sweeps.batches import all_elements
from truba_runner.sweeps.compose import Composer

pytestmark = pytest.mark.programs

OWN = """
# @package _global_
name: own-${train.seed}
job: {module: mnist, options: {units: 8, width: "${job.options.units}", deep: {a: 1, b: "${train.epochs}"}}}
data: {name: digits, options: {first: "${.second}", second: 5, all: "${train.metrics}"}}
train: {epochs: 3, loss: mse, metrics: [mae, mse], optimizer: {class_name: SGD, config: {momentum: 0.9}}}
resources: {time: "${oc.env:OWN_TIME,30m}", constraint: "${oc.select:name}"}
checkpoint: {every_steps: "${plus:${train.seed},1}"}
"""


@pytest.fixture
def loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigLoaderImpl:
    """A project with an experiment in which values follow others in every way."""
    register()
    OmegaConf.register_new_resolver("plus", lambda a, b: a + b, replace=True)
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "own.yaml").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return ConfigLoaderImpl(create_config_search_path(str(shipped("conf"))))


def composer(loader: ConfigLoaderImpl, *command: str) -> Composer:
    return Composer(loader, loader.load_configuration("config", list(command), run_mode=RunMode.MULTIRUN))


SWEEPS = {
    "numbers of every kind": [
        ["train.seed=1", "train.seed=2"],
        ["train.learning_rate=1", "train.learning_rate=0.5", "train.learning_rate=null"],
    ],
    "groups": [
        ["+experiment=mnist", "+experiment=own"],
        ["cluster=local", "cluster=truba"],
        ["train.seed=3", "train.seed=4"],
    ],
    "mappings and lists": [
        ["train.optimizer=adam", "train.optimizer={class_name: RMSprop}", "train.optimizer={config: {momentum: 0.5}}"],
        ["train.metrics=[mae]", "train.metrics=[]", "train.metrics=[mae,acc]"],
    ],
    "inside of mappings": [
        ["job.options.units=1", "job.options.units=2"],
        ["train.optimizer.config.momentum=0.1", "train.optimizer.config.momentum=0.2"],
        ["train.metrics.0=mse", "train.metrics.0=mape"],
    ],
    "added and removed": [
        ["+job.options.extra=1", "+job.options.extra=word"],
        ["++job.options.units=3", "++job.options.units=4"],
        ["~data.options.second", "~job.options.deep"],
    ],
    "a mapping, then in it": [
        ["job.options={units: 1}", "job.options={units: 2}"],
        ["job.options.width=7", "job.options.width=8"],
    ],
    "interpolations as values": [["train.epochs=${train.seed}", "train.epochs=2"], ["train.seed=5", "train.seed=6"]],
    "words that look like numbers": [
        [
            "job.options.units='1'",
            "job.options.units=1",
            "job.options.units=1.0",
            "job.options.units=true",
            'job.options.units="a b"',
        ]
    ],
    "whole nodes that are followed": [
        ["train.metrics=[a]", "train.metrics=[b]"],
        ["train.seed=1", "train.seed=2"],
        ["name=x", "name=y"],
    ],
    "number keys": [
        ["+train.class_weight={0: 1.0, 1: 2.0}"],
        ["+train.class_weight.0=3.0", "+train.class_weight.0=4.0"],
    ],
}


@pytest.mark.parametrize("swept", SWEEPS.values(), ids=SWEEPS.keys())
def test_every_run_is_what_hydra_composes(loader: ConfigLoaderImpl, swept: list[list[str]]) -> None:
    chosen = [] if any("experiment" in values[0] for values in swept) else ["+experiment=own"]
    composed = composer(loader, *chosen)
    runs = [[*chosen, *run] for run in itertools.product(*swept)]
    expected = [expected_of(loader, run) for run in runs]
    assert sum(isinstance(one, Experiment) for one in expected) * 2 >= len(runs), expected
    for run, right in [*zip(runs, expected, strict=True), *reversed(list(zip(runs, expected, strict=True)))]:
        if not isinstance(right, Experiment):
            with pytest.raises(Refused):
                composed(run)
        else:
            assert composed(run).experiment == right, run
            assert repr(composed(run).experiment) == repr(right), "1, 1.0 and true are different"


def expected_of(loader: ConfigLoaderImpl, run: list[str]) -> Experiment | str:
    """What Hydra composes, or why it does not."""
    try:
        config = loader.load_configuration("config", run, run_mode=RunMode.RUN)
        with open_dict(config):
            del config["hydra"]
        return typed(config)
    except Exception as error:
        return f"{run}: {error!r}"


def test_what_is_wrong_is_told_for_its_run_and_harms_no_other(loader: ConfigLoaderImpl) -> None:
    composed = composer(loader, "+experiment=own")
    good = composed(["+experiment=own", "train.seed=1"])
    for wrong, words in (
        ("train.seed=two", "train.seed"),
        ("train.sead=1", "Did you mean seed"),
        ("+train.sead=1", "Did you mean seed"),
        ("+experiment=nothing", "has no such file"),
        ("train.seed=[1", "not a valid KEY=VALUE"),
    ):
        for _ in range(2):
            with pytest.raises(Refused, match=words):
                composed(["+experiment=own", wrong] if "experiment" not in wrong else [wrong])
        assert composed(["+experiment=own", "train.seed=1"]) == good
        assert composed(["+experiment=own", "train.seed=2"]).experiment.name == "own-2"


def test_the_swept_values_are_those_that_the_command_line_leaves_open(loader: ConfigLoaderImpl) -> None:
    composed = composer(
        loader, "+experiment=own", "train.epochs=2", "train.seed=7", "train.seed=1,2", "data.name=choice(digits)"
    )
    run = composed(["+experiment=own", "train.epochs=2", "train.seed=1", "data.name=digits", "name=given"])
    assert run.values == {"train.seed": 1, "data.name": "digits", "name": "given"}
    assert run.selector == "+experiment=own"


def test_hydra_composes_once_for_all_runs_of_one_choice(
    loader: ConfigLoaderImpl, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed = composer(loader, "+experiment=mnist", "train.seed=range(1000)")
    for override in OverridesParser.create().parse_overrides([f"train.seed={seed}" for seed in range(200)]):
        composed.knows(override)
    choices: list[object] = []
    load = loader.load_sweep_config

    def counted(*given: Any) -> Any:
        choices.append(given)
        return load(*given)

    monkeypatch.setattr(loader, "load_sweep_config", counted)
    seeds = [composed(["+experiment=mnist", f"train.seed={seed}"]).experiment.train.seed for seed in range(200)]
    assert seeds == list(range(200)) and len(choices) == 1


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.seed=range(0)", "train.seed=range(0): it has no values"),
        ("train.seed=glob(*)", "train.seed=glob(*): it has no values"),
        ("+data=glob(zz*)", "it has no values"),
        ("train.seed=range(0,1,0)", "train.seed=range(0,1,0): its values cannot be listed"),
    ],
)
def test_a_sweep_of_nothing_is_refused(loader: ConfigLoaderImpl, override: str, told: str) -> None:
    with pytest.raises(Refused) as refused:
        all_elements(OverridesParser.create(config_loader=loader).parse_overrides(["train.epochs=1,2", override]))
    assert told in str(refused.value)
