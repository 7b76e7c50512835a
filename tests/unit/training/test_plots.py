from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from truba_runner.training.plots import _panels, learning_curves

ROWS = [
    {"epoch": 1, "loss": 0.9, "accuracy": 0.3, "val_loss": 0.8, "learning_rate": 0.1, "seconds": 2.0},
    {"epoch": 2, "loss": 0.5, "accuracy": 0.6, "val_loss": 0.6, "learning_rate": 0.1, "seconds": 1.0},
]


def test_training_and_validation_share_a_panel() -> None:
    assert _panels(ROWS) == {
        "loss": ["loss", "val_loss"],
        "accuracy": ["accuracy"],
        "learning_rate": ["learning_rate"],
    }


def test_the_picture_is_written_whole(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    made = learning_curves(ROWS, tmp_path / "plots")
    assert made == tmp_path / "plots" / "learning_curves.png"
    with Image.open(made) as picture:
        picture.load()
        # Three panels of 4 inches beside each other, 120 dots an inch.
        assert (picture.format, picture.size) == ("PNG", (1440, 360))
        # More than an empty page: lines in the two colours of training and validation.
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert {(31, 119, 180), (255, 127, 14)} <= colours
    assert [path.name for path in made.parent.iterdir()] == ["learning_curves.png"]


def test_no_epochs_no_picture(tmp_path: Path) -> None:
    assert learning_curves([], tmp_path / "plots") is None and not (tmp_path / "plots").exists()


def test_a_name_that_cannot_be_drawn_stops_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"epoch": 1, r"$\cost$": 1.0}]
    assert learning_curves(rows, tmp_path / "plots") is None
    assert "learning_curves.png could not be drawn" in capsys.readouterr().err


def test_a_missing_matplotlib_stops_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError("No module named 'matplotlib'")
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    assert learning_curves(ROWS, tmp_path / "plots") is None
    assert "learning_curves.png could not be drawn (No module named 'matplotlib')" in capsys.readouterr().err
