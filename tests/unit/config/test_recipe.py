"""What a recipe may say, what it means, and what is told of one that says something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from truba_runner.config import recipe
from truba_runner.config.recipe import Find, Fit, Freeze, Rate, Rates, Resize
from truba_runner.config.schema import Experiment
from truba_runner.errors import Refused
from truba_runner.rules import recipe as recipe_rules
from truba_runner.rules.experiment import plan

LESSON = [
    {"lr_find": {"name": "find"}},
    {"fit_one_cycle": {"epochs": 3, "lr": "find.valley"}},
    "unfreeze",
    {"lr_find": {"name": "find2", "num_it": 50}},
    {"fit_one_cycle": {"epochs": 12, "lr": [1e-6, "find2.steep/10"]}},
    {"resize": {"size": 224, "batch_size": 32}},
    "freeze",
]


def test_the_lessons_two_stages() -> None:
    assert not list(recipe_rules.problems(LESSON, epochs=1))
    find, head, unfreeze, find2, whole, resize, freeze = recipe.read(LESSON, 1, None)
    assert find == Find("find") and find2 == Find("find2", {"num_it": 50})
    assert head == Fit("fit_one_cycle", 3, Rates(Rate(1.0, "find", "valley")))
    assert (unfreeze, freeze) == (Freeze(False), Freeze(True))
    assert whole == Fit("fit_one_cycle", 12, Rates(Rate(0.1, "find2", "steep"), low=Rate(1e-6)))
    assert resize == Resize(224, 32)
    assert recipe.epochs_of([find, head, unfreeze, find2, whole, resize, freeze]) == 15


def test_fine_tune_is_what_fastais_own_does() -> None:
    stages = [{"fine_tune": {"epochs": 6, "freeze_epochs": 3, "wd": 0.1}}]
    frozen, head, unfrozen, whole = recipe.read(stages, 1, None)
    assert (frozen, unfrozen) == (Freeze(True), Freeze(False))
    assert head == Fit("fit_one_cycle", 3, Rates(Rate(2e-3), falling=True), {"wd": 0.1, "pct_start": 0.99})
    rates = Rates(Rate(1e-3), low=Rate(1e-5))
    assert whole == Fit("fit_one_cycle", 6, rates, {"wd": 0.1, "pct_start": 0.3, "div": 5.0})
    # A swept rate is the base, unless the stage has one of its own.
    assert recipe.read(stages, 1, 0.01)[1] == Fit(
        "fit_one_cycle", 3, Rates(Rate(0.01), falling=True), {"wd": 0.1, "pct_start": 0.99}
    )
    found = recipe.read([{"fine_tune": {"epochs": 1, "base_lr": "find.valley", "lr_mult": 10}}], 1, 0.01)[3]
    assert isinstance(found, Fit) and found.lr == Rates(Rate(0.5, "find", "valley"), low=Rate(0.05, "find", "valley"))


def test_without_a_recipe_one_cycle_is_trained() -> None:
    assert recipe.read([], 4, None) == (Fit("fit_one_cycle", 4),)
    assert not list(recipe_rules.problems([], epochs=4))


@pytest.mark.parametrize(
    ("written", "means"),
    [("find.valley", 0.01), ("find.steep*2", 0.06), (" find.steep / 3 ", 0.01), ("1e-4", 1e-4), (0.5, 0.5)],
)
def test_a_rate(written: Any, means: float) -> None:
    (fit,) = recipe.read([{"fit": {"epochs": 1, "lr": written}}], 1, None)
    assert isinstance(fit, Fit) and fit.lr
    answers = {"find": {"valley": 0.01, "steep": 0.03, "slide": None}}
    assert fit.lr.high.resolve(answers) == pytest.approx(means)
    assert Rate(1.0, "find", "slide").resolve(answers) is None


FIND = {"lr_find": {"name": "find"}}


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        ({"lr_fnd": {}}, "train.recipe[1]=lr_fnd: there is no such stage. Did you mean lr_find?"),
        ("unfreez", "unfreez: there is no such stage. Did you mean unfreeze"),
        (7, "train.recipe[1]=7: a stage is a name"),
        ({"fit": {"epochs": 1}, "freeze": None}, "a stage is a name, or a name with its settings"),
        ({"fit_one_cycle": {"lr": 1e-3}}, "train.recipe[1].fit_one_cycle.epochs: it is missing"),
        ({"fit_one_cycle": {"epochs": 0}}, "fit_one_cycle.epochs=0: it must be a whole number, 1 or more"),
        ({"fit_one_cycle": {"epochs": 1.5}}, "epochs=1.5: it must be a whole number"),
        ({"fit_one_cycle": {"epochs": 1, "pct_stat": 0.3}}, "has no such setting. Did you mean pct_start?"),
        ({"fit_one_cycle": {"epochs": 1, "pct_start": 1.0}}, "the share of the steps"),
        ({"fit_one_cycle": {"epochs": 1, "lr": -1}}, "lr=-1: a rate must be a positive number"),
        ({"fit_one_cycle": {"epochs": 1, "lr": True}}, "a rate must be a positive number"),
        ({"fit_one_cycle": {"epochs": 1, "lr": "find.valley/0"}}, "a rate must be a positive number"),
        ({"fit_one_cycle": {"epochs": 1, "lr": [1e-3]}}, "a list must have two rates"),
        ({"fit_one_cycle": {"epochs": 1, "lr": "fid.valley"}}, "no lr_find named fid comes before it. Did you mean"),
        ({"fit_one_cycle": {"epochs": 1, "lr": [1e-6, "find.vally"]}}, "no such rate. Did you mean valley"),
        ({"fine_tune": {"epochs": 1, "base_lr": [1e-6, 1e-4]}}, "it takes a single rate"),
        ({"lr_find": {"name": "find"}}, "an earlier lr_find has this name. Write name: find2."),
        ({"lr_find": {"name": "a b"}}, "letters, digits and '_' only"),
        ({"lr_find": {"name": "f", "start_lr": 0.1, "end_lr": 0.01}}, "start_lr=0.1, end_lr=0.01: lr_find raises"),
        ({"lr_find": {"name": "f", "start_lr": 10}}, "Leave them out for the defaults, 1e-07 and 10."),
        ({"lr_find": {}}, "lr_find.name: it is missing. Write lr_find: {name: find}."),
        ({"resize": {"batch_size": 8}}, "resize.size: it is missing"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(stage: Any, told: str) -> None:
    found = [str(problem) for problem in recipe_rules.problems([FIND, stage, {"fit": {"epochs": 1}}], epochs=1)]
    assert any(told in problem for problem in found), found


def test_a_rate_that_is_found_too_late() -> None:
    stages = [{"fit": {"epochs": 1, "lr": "find.valley"}}, FIND]
    (problem,) = recipe_rules.problems(stages, epochs=1)
    assert "no lr_find named find comes before it. Put {lr_find: {name: find}} before it." in str(problem)


def test_a_recipe_has_to_train_and_to_heed_the_epochs_that_are_set() -> None:
    assert "none of its stages trains" in str(next(recipe_rules.problems([FIND], epochs=1)))
    assert not list(recipe_rules.problems([{"fine_tune": {"epochs": 5}}], epochs=5))
    (problem,) = recipe_rules.problems([{"fine_tune": {"epochs": 2}}], epochs=5)
    assert "Set train.epochs=2, or write epochs: ${train.epochs}" in str(problem)
    told = [str(problem) for problem in recipe_rules.problems([{"fit_one_cycl": {"epochs": 2}}], epochs=5)]
    assert not [one for one in told if "train.epochs=5" in one], "it follows from what is told of the stage"


def test_a_recipe_has_to_heed_the_rate_that_is_set() -> None:
    of_its_own = [FIND, {"fit": {"epochs": 1, "lr": "find.valley"}}, {"fine_tune": {"epochs": 1, "base_lr": 0.1}}]
    (problem,) = recipe_rules.problems(of_its_own, epochs=1, learning_rate=0.01)
    assert "train.learning_rate=0.01" in str(problem) and "lr: ${train.learning_rate}" in str(problem)
    assert not list(recipe_rules.problems(of_its_own, epochs=1))
    for takes_it in ({"fit": {"epochs": 1}}, {"fine_tune": {"epochs": 1}}, {"fit": {"epochs": 1, "lr": 0.01}}):
        assert not list(recipe_rules.problems([*of_its_own, takes_it], epochs=1, learning_rate=0.01))


@pytest.mark.parametrize("written", ["find.valley", "find.valley/10", "find.steep*2", "0.01"])
def test_a_rate_is_told_as_it_was_written(written: str) -> None:
    (fit,) = recipe.read([{"fit": {"epochs": 1, "lr": written}}], 1, None)
    assert isinstance(fit, Fit) and fit.lr and str(fit.lr.high) == written


def test_a_drill_shortens_each_stage() -> None:
    stages = [FIND, "unfreeze", {"fine_tune": {"epochs": 6, "freeze_epochs": 3}}, {"fit": {"epochs": 1}}]
    assert recipe.shortened(stages, 2) == [
        FIND,
        "unfreeze",
        {"fine_tune": {"epochs": 2, "freeze_epochs": 2}},
        {"fit": {"epochs": 1}},
    ]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["train.recipe=[unfreez,{fit:{epochs:1}}]", "train.epochs=1"], "Did you mean unfreeze"),
        (["train.optimizer=sgd"], "train.optimizer=sgd: the fastai backend does not use it. Pass opt_func"),
        (["train.loss=mse"], "pass loss_func"),
        (["train.steps_per_execution=8"], "each step is one execution"),
        (["train.jit_compile=true"], "train.jit_compile=True"),
        (["train.class_weight=balanced"], "CrossEntropyLossFlat"),
        (["data.preprocessing=model"], "the job's data_block says"),
        (["data.workers=-1"], "must be 0 or more"),
        (["train.mixed_precision=float64"], "there is no such choice"),
        (["train.batch_size=63", "resources.gpus=2"], "is not divisible by the 2 devices"),
        (["resources.gpus=2", "cluster.scheduler=local"], "one process per GPU, and a local run is one process"),
    ],
)
def test_what_the_fastai_backend_cannot_do_is_refused_at_submission(
    experiment: Callable[..., Experiment], overrides: list[str], told: str
) -> None:
    with pytest.raises(Refused) as refused:
        plan(experiment(*overrides, name="pets"))
    assert told in str(refused.value)


@pytest.mark.parametrize("name", ["pets", "pets_two_stage", "pets_deep_fp16"])
def test_the_lessons_experiments_are_a_process_a_gpu_on_any_nodes(
    experiment: Callable[..., Experiment], name: str
) -> None:
    made = plan(experiment("resources.gpus=2", "resources.nodes=2", name=name))
    assert (made.request.tasks_per_node, made.request.cpus_per_task, made.request.nodes) == (2, 10, 2)
    assert not [warning for warning in made.warnings if "saves no state" in warning]


def test_a_recipe_is_for_fastai_alone(experiment: Callable[..., Experiment]) -> None:
    with pytest.raises(Refused) as refused:
        plan(experiment("train.recipe=[unfreeze]", "data.workers=2"))
    assert "train.recipe: it is a setting of fastai, and the backend is keras" in str(refused.value)
    assert "data.workers: it is a setting of fastai" in str(refused.value)
