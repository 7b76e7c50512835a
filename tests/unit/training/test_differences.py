"""Two states compared: paths, values, and what is no difference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from truba_runner.config.schema import Train
from truba_runner.training.walk.differences import between
from truba_runner.verify import judged
from truba_runner.verify.plan import EPOCH_END, TRAINING, VALIDATION, Break, _few, breaks


def differ(one: Any, other: Any) -> list[tuple[str, ...]]:
    return [(leaf.path + leaf.index, leaf.one, leaf.other) for leaf in between(one, other, ("/a", "/b"))]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"values": {"model.beta": 0.5}}, {"values": {"model.beta": 1.0}}, ("model.beta", "0.5", "1.0")),
        ({"data": {"values": {"train.seen": 1}}}, {"data": {"values": {"train.seen": 2}}}, ("train.seen", "1", "2")),
        ({"stop": 1}, {"stop": True}, ("stop", "1", "True")),
        ({"one": [1]}, {"one": []}, ("len(one)", "1", "0")),
        ({"one": {}}, {"one": {"two": None}}, ("one.two", "–", "None")),
        ({"one": 0.0}, {"one": -0.0}, ("one", "0.0", "-0.0")),
        ({"callbacks": [["Own", {"n": {"~tuple": [1]}}]]}, {"callbacks": [["Own", {"n": {"~tuple": [2]}}]]},
         ("callbacks[0] (Own).n[0]", "1", "2")),
    ],
)  # fmt: skip
def test_a_difference_has_its_path_and_both_values(one: Any, other: Any, expected: tuple[str, ...]) -> None:
    assert expected in differ(one, other)


def test_of_an_array_the_first_number_that_differs_is_told() -> None:
    weights = np.arange(6, dtype="float32").reshape(2, 3)
    assert differ({"pieces": {"model.kernel": weights}}, {"pieces": {"model.kernel": weights + [0, 0, 1]}}) != []
    other = weights.copy()
    other[1, 0] = np.nan
    assert differ({"pieces": {"model.kernel": weights}}, {"pieces": {"model.kernel": other}}) == [
        ("model.kernel[1, 0]", "3.0", "nan")
    ]


def test_causes_stand_before_the_weights_and_metrics_after_them() -> None:
    one = {"reporter": {"rows": [1]}, "pieces": {"model.kernel": np.zeros(2)}, "values": {"model.beta": 1}}
    other = {"reporter": {"rows": [2]}, "pieces": {"model.kernel": np.ones(2)}, "values": {"model.beta": 2}}
    assert [path for path, *_ in differ(one, other)] == ["model.beta", "model.kernel[0]", "reporter.rows[0]"]


def test_clocks_folders_and_sizes_of_files_are_no_difference() -> None:
    one = {
        "reporter": {"rows": [{"seconds": 1.0}]},
        "event_files": {"x": 1},
        "at": "/a/x",
        "log": ["00:01"],
        "nan": np.nan,
    }
    other = {
        "reporter": {"rows": [{"seconds": 2.0}]},
        "event_files": {"x": 2},
        "at": "/b/x",
        "log": ["00:02"],
        "nan": np.nan,
    }
    assert differ(one, other) == []


@pytest.mark.parametrize(
    ("steps", "saves", "validated", "expected"),
    [
        ({1: [1, 2, 3, 4, 5], 2: [1, 2, 3, 4, 5], 3: [1, 2, 3, 4, 5]}, True, [1, 2, 3],
         [Break(TRAINING, 2, 3, (1, 2)), Break(VALIDATION, 2, 5), Break(EPOCH_END, 2)]),
        ({1: [1, 2, 3, 4, 5]}, True, [], [Break(TRAINING, 1, 3, (0, 2))]),
        ({1: [1], 2: [1], 3: [1]}, False, [], [Break(TRAINING, 2, 1, (1, 0)), Break(EPOCH_END, 2)]),
        ({1: [1]}, False, [1], [Break(VALIDATION, 1, 1)]),
    ],
)  # fmt: skip
def test_a_training_is_broken_off_in_its_last_epoch_but_one(
    steps: dict[int, list[int]], saves: bool, validated: list[int], expected: list[Break]
) -> None:
    assert breaks(Train(), steps, saves, validated) == expected


@pytest.mark.parametrize(("steps", "execution", "few"), [(100, 1, 4), (97, 1, 97), (96, 32, 96), (600, 4, 12)])
def test_epochs_of_a_given_length_get_shorter_by_whole_parts(steps: int, execution: int, few: int) -> None:
    assert _few(steps, execution) == few


def found(path: str, position: tuple[int, int], *values: str) -> dict[str, Any]:
    return {"position": list(position), "path": path, "index": "", "values": list(values)}


def test_what_is_told_first_is_of_a_checkpoint_and_the_loss_beside_it() -> None:
    differences = [found("metrics.loss", (1, 3), "0.5", "0.6"), found("model.beta", (1, 4), "0.7", "1.0")]
    first = judged(differences, [])
    assert first is not None and (first["path"], first["undisturbed"], first["resumed"]) == ("model.beta", "0.7", "1.0")
    assert (first["epoch"], first["step"], first["repeatable"]) == (2, 4, True)
    assert (
        "At epoch 2, step 4 model.beta is 1.0; uninterrupted it is 0.7; loss differs from epoch 2, step 3 on"
        in first["text"]
    )


def test_what_differs_without_an_interruption_is_the_clocks_unless_the_losses_do() -> None:
    clock = found("callbacks[0].started", (1, 4), "1", "2")
    assert judged([clock], [clock]) is None
    loss = found("metrics.loss", (0, 1), "0.5", "0.6")
    first = judged([clock, loss], [loss])
    assert first is not None and not first["repeatable"] and "another result each time" in first["text"]
