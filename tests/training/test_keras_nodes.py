"""Two processes of this machine as two nodes with two devices each. Run as a script it is one of them: see `ranks`."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_keras import ROOT, context, elsewhere, small_job, train

from truba_runner.errors import Failed
from truba_runner.training.interrupt import Interruption

LIMIT_SECONDS = 400
# 301 images leave one out each epoch, and 31 are no multiple of 4: a rank gets fewer.
SECTIONS: dict[str, Any] = {
    "train": {"epochs": 2, "batch_size": 32, "steps_per_execution": 4, "jit_compile": True},
    "data": {"options": {"train": 301, "validation": 33, "test": 31}},
    "tensorboard": {"enabled": True},
    "checkpoint": {"save_model": True},
}
TWO_NODES = {**SECTIONS, "resources": {"gpus": 2}}
ONE_NODE = {**SECTIONS, "resources": {"gpus": 4}}


def ranks(folder: Path, tasks: int = 2) -> list[dict[str, Any]]:
    """What each rank printed last, as JSON; its run directory is `folder/RANK/mnist-0`."""
    variables = {
        "PYTHONPATH": str(ROOT),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "127.0.0.1",
        "SLURM_TASKS_PER_NODE": str(tasks),
        # Nobody listens there: it must not be asked for the way to the other node.
        "http_proxy": "http://127.0.0.1:9",
    }
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder / str(rank)), str(rank), str(tasks)],
            env={**os.environ, **variables}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(tasks)
    ]  # fmt: skip
    try:
        logs = [process.communicate(timeout=LIMIT_SECONDS)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * tasks, "\n".join(logs)
    return [{**json.loads(log.splitlines()[-1]), "log": log} for log in logs]


def main(folder: Path, rank: int, tasks: int) -> None:
    """Trains as one rank, then is asked to stop, or not."""
    from truba_runner.training.keras import train as backend
    from truba_runner.training.keras.devices.team import Team

    teams = []

    class Kept(Team):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            teams.append(self)

    backend.Team = Kept  # type: ignore[misc]
    folder.mkdir()
    given = dataclasses.replace(context(folder, small_job(folder), **TWO_NODES), rank=rank, tasks=tasks)
    given.progress._writes = rank == 0
    result = train(given)
    (team,) = teams
    nobody, somebody = Interruption(), Interruption()
    team.interruption = nobody
    answers = [team.agree(), team.agree(due=rank == tasks - 1)]
    if rank == tasks - 1:
        somebody.received.append(Interruption.signals()[0])
    team.interruption = somebody
    answers.append(team.agree())
    gathered = [part.decode() for part in team.gather(b"abcdefghi"[: 3 + 5 * rank])]
    team.interruption = nobody
    took_seconds = []
    for _ in range(100):
        started = time.perf_counter()
        team.agree()
        took_seconds.append(time.perf_counter() - started)
    milliseconds = 1000 * statistics.median(took_seconds)
    print(
        json.dumps(
            {**result, "agreed": answers, "gathered": gathered, "requeue": somebody.requeue, "agree_ms": milliseconds}
        )
    )
    sys.stdout.flush()
    team.wait_for_all()


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    path = tmp_path_factory.mktemp("nodes")
    return SimpleNamespace(path=path, ranks=ranks(path), run=path / "0" / "mnist-0")


@pytest.fixture(scope="module")
def one_node(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    path = tmp_path_factory.mktemp("node")
    (four,) = elsewhere({"folder": str(path / "four"), **ONE_NODE})
    given = context(path, small_job(path), **SECTIONS)
    return SimpleNamespace(runs=[path / "four" / "mnist-0", given.run.path], results=[four, train(given)])


def weights(run: Path) -> list[Any]:
    import keras

    values: list[Any] = keras.models.load_model(run / "model.keras").get_weights()
    return values


def history(run: Path) -> list[dict[str, float]]:
    header, *rows = [line.split(",") for line in (run / "history.csv").read_text().splitlines()]
    named = [dict(zip(header, map(float, row), strict=True)) for row in rows]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in named]


def test_two_nodes_train_what_one_trains(two_nodes: SimpleNamespace, one_node: SimpleNamespace) -> None:
    import numpy as np

    first, second = two_nodes.ranks
    assert first["weights_sha256"] == second["weights_sha256"]
    assert (first["steps"], first["tasks"]) == (20, 2)
    four, one = one_node.results
    # Other devices leave out the same image: four divide what four divide.
    assert first["steps"] == four["steps"]
    assert first["metrics"] == pytest.approx(four["metrics"], rel=1e-6)
    for mine, theirs in zip(history(two_nodes.run), history(one_node.runs[0]), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6)
    for mine, theirs in zip(weights(two_nodes.run), weights(one_node.runs[0]), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6)
    assert first["examples"] == four["examples"] == one["examples"]


def test_metrics_and_predictions_are_complete_and_in_order(two_nodes: SimpleNamespace) -> None:
    import keras
    import numpy as np

    given = context(two_nodes.path, small_job(two_nodes.path))
    x, y = given.job.load_data("digits", None, **SECTIONS["data"]["options"])["test"]
    model = keras.models.load_model(two_nodes.run / "model.keras")
    np.testing.assert_allclose(np.load(two_nodes.run / "predictions.npy"), model.predict(x, verbose=0), atol=1e-6)
    plain = model.evaluate(x, y, verbose=0, return_dict=True)
    metrics = two_nodes.ranks[0]["metrics"]
    assert {name: metrics[f"test_{name}"] for name in plain} == pytest.approx(plain, rel=1e-5)
    v, w = given.job.load_data("digits", None, **SECTIONS["data"]["options"])["validation"]
    plain = model.evaluate(v, w, verbose=0, return_dict=True)
    assert {name: metrics[f"val_{name}"] for name in plain} == pytest.approx(plain, rel=1e-5)


def test_rank_0_alone_writes(two_nodes: SimpleNamespace) -> None:
    written = {path.name for path in two_nodes.run.iterdir() if path.is_dir() is False or any(path.iterdir())}
    assert {"history.csv", "progress.json", "model.keras", "predictions.npy", "tensorboard"} <= written
    assert not [path for path in (two_nodes.path / "1" / "mnist-0").rglob("*") if path.is_file()]
    assert "Total params" in two_nodes.ranks[0]["log"] and "Total params" not in two_nodes.ranks[1]["log"]
    assert "train.steps_per_execution is set to 1" in two_nodes.ranks[0]["log"]


def test_ranks_agree_to_stop_when_one_was_asked_to(two_nodes: SimpleNamespace) -> None:
    assert [rank["agreed"] for rank in two_nodes.ranks] == [[[False, False], [False, True], [True, False]]] * 2
    assert [rank["requeue"] for rank in two_nodes.ranks] == [True, True]
    assert all(rank["agree_ms"] < 100 for rank in two_nodes.ranks)


def test_every_rank_gets_what_each_has(two_nodes: SimpleNamespace) -> None:
    assert [rank["gathered"] for rank in two_nodes.ranks] == [["abc", "abcdefgh"]] * 2


def test_other_versions_are_refused_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    monkeypatch.setattr(keras, "__version__", "3.16.0")
    given = dataclasses.replace(context(tmp_path, small_job(tmp_path)), tasks=2)
    with pytest.raises(Failed, match="Keras 3.16.0 is installed.*keras==3.15.*resources.nodes=1"):
        train(given)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
