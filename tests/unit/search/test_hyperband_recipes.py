"""The recipe of a trial of Hyperband's, and of one that is promoted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from truba_runner.config import recipe
from truba_runner.config.schema import Experiment, Source
from truba_runner.data.staging import needed
from truba_runner.errors import Refused
from truba_runner.rules import recipe as recipe_rules
from truba_runner.rules.experiment import plan
from truba_runner.search import hyperband_recipes


@pytest.mark.parametrize(
    "stage",
    [
        {"fit_one_cycle": {"epochs": 1, "lr": 0.01, "div": 10.0}},
        {"fit_flat_cos": {"epochs": 1, "lr": ["find.valley/10", "find.valley*3"]}},
        {"fit_one_cycle": {"epochs": 1}},
        {"fine_tune": {"epochs": 1, "base_lr": "find.steep", "wd": 0.1}},
        {"fine_tune": {"epochs": 1, "freeze_epochs": 2, "lr_mult": 50.0}},
    ],
)
def test_a_promoted_trial_has_the_same_rates_over_a_cycle_of_its_own(stage: dict[str, Any]) -> None:
    find = {"lr_find": {"name": "find"}}
    begun = hyperband_recipes.first([find, stage], 3)
    longer = hyperband_recipes.promoted(hyperband_recipes.promoted(begun, 6, 2e-3), 18, 2e-3)
    assert not list(recipe_rules.problems(longer, 1))
    parts = recipe.read(longer, 1, 2e-3)
    fits = [part for part in parts if isinstance(part, recipe.Fit)][-3:]
    assert [fit.epochs for fit in fits] == [3, 6, 18]
    assert fits[0].options == fits[1].options == fits[2].options and fits[0].lr == fits[1].lr == fits[2].lr
    # What was trained is the beginning of what is.
    for shorter in (begun, longer[:-1]):
        signature = recipe.signature(recipe.read(shorter, 1, 2e-3))
        assert recipe.signature(parts)[: len(signature)] == signature


def test_a_fit_gets_longer() -> None:
    begun = hyperband_recipes.first(["freeze", {"fit": {"epochs": 9, "lr": 0.01}}], 3)
    longer = hyperband_recipes.promoted(begun, 6, None)
    assert longer == ["freeze", {"fit": {"epochs": 9, "lr": 0.01}}]
    signature = recipe.signature(recipe.read(begun, 1, None))
    assert signature == recipe.signature(recipe.read(longer, 1, None))
    # With another stage after it, its length counts again.
    followed = recipe.signature(recipe.read([*longer, "unfreeze"], 1, None))
    assert followed[: len(signature)] != signature


def test_without_a_recipe_it_is_one_cycle() -> None:
    assert hyperband_recipes.first([], 4) == [{"fit_one_cycle": {"epochs": 4}}]


def test_a_search_over_architectures_needs_the_weights_of_each(experiment: Callable[..., Experiment]) -> None:
    given = [
        "sweep=random", "sweep.direction=min",
        "+sweep.space={job.options.arch:{choice:[resnet18,resnet34,resnet34]}}",
    ]  # fmt: skip
    files = [source.file for source in needed(experiment(*given, name="pets")) if isinstance(source, Source)]
    assert (
        len([name for name in files if "resnet18" in name]) == len([name for name in files if "resnet34" in name]) == 1
    )
    with pytest.raises(Refused, match="resnet81"):
        plan(experiment(*given[:-1], "+sweep.space={job.options.arch:{choice:[resnet18,resnet81]}}", name="pets"))
