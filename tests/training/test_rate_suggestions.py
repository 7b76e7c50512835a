"""The four suggestions are fastai's own, number for number, on the same curve."""

from __future__ import annotations

import math
import random
from pathlib import Path

from fastai_resume_runs import Ask

from truba_runner.training.rate_suggestions import suggestions

Curve = tuple[list[float], list[float], int]


def curve(dice: random.Random) -> Curve:
    """A loss that wanders, falls and grows; it may end early, become NaN, or stand still for a while."""
    steps = dice.choice([6, 12, 20, 30, 50, 100, 100, 200])
    made = dice.choice([steps, steps, dice.randint(1, steps)])
    loss, losses = dice.uniform(0.5, 5), []
    for step in range(made):
        loss += dice.gauss(0, 0.02) - dice.choice([0, 0.01, 0.05]) * (step < 0.8 * steps)
        loss *= 1.3 if step > 0.85 * steps else 1
        losses.append(loss)
    if dice.random() < 0.2:
        broken = dice.randrange(made)
        losses[broken:] = [math.nan] * (made - broken)
    if dice.random() < 0.2:
        start = dice.randrange(made)
        losses[start : start + 10] = [losses[start]] * len(losses[start : start + 10])
    return [1e-7 * 1e8 ** (step / steps) for step in range(made)], losses, steps


def test_on_hundreds_of_curves(start: Ask, tmp_path: Path) -> None:
    dice = random.Random(5)
    curves = [curve(dice) for _ in range(300)]
    expected = start(tmp_path, do="in_fork", function="suggestions", curves=curves)
    found = [suggestions(*one) for one in curves]
    assert found == expected
    answers = {name: sum(one[name] is not None for one in found) for name in found[0]}
    assert all(100 < count < 300 for count in answers.values()), f"some have nothing to suggest: {answers}"
