"""What TensorBoard is shown of runs, how it is called there, and where it listens."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from curve import Curve

from truba_runner.errors import Failed, Refused
from truba_runner.rundir import RunDir
from truba_runner.state import state_of
from truba_runner.sweeps.record import Member, SweepDir
from truba_runner.tensorboard import chosen, pulling, server
from truba_runner.tensorboard.feed import Feed, provider, without_tensorflow
from truba_runner.tensorboard.page import Page
from truba_runner.tensorboard.sockets import PrivateSocket

# Of the libraries that it brings along.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*")


def made(folder: Path, name: str, age: int, **train: Any) -> RunDir:
    """A run that was submitted `age` seconds ago."""
    run = RunDir(folder / name)
    run.create()
    run.write_config({"name": name.rpartition("-")[0], "job": {"module": "m", "weights": {"a": name}}, "train": train})
    run.append_submission({"event": "submitted", "token": "t", "job_id": "1"}, durable=False)
    os.utime(run.submissions_file, (time.time() - age,) * 2)
    return run


def names(runs: list[RunDir]) -> list[str]:
    return [one.name for one in chosen.named(runs)]


def test_runs_are_named_by_what_differs_the_newest_first(tmp_path: Path) -> None:
    made(tmp_path, "mnist-0000000a", 3, learning_rate=0.1, optimizer={"name": "adam"}, epochs=3)
    made(tmp_path, "mnist-0000000b", 2, learning_rate=0.001, optimizer={"name": "sgd"}, epochs=3)
    made(tmp_path, "pets-0000000c", 1, epochs=9)
    assert names(chosen.choose([], tmp_path)) == [
        "pets",
        "mnist learning_rate=0.001 name=sgd",
        "mnist learning_rate=0.1 name=adam",
    ]
    assert names(chosen.choose(["mnist-0000000b"], tmp_path)) == ["mnist"]
    assert names(chosen.choose(["mnist"], tmp_path))[0] == "mnist learning_rate=0.001 name=sgd"


def test_the_runs_of_a_sweep_are_named_by_its_values_and_no_name_comes_twice(tmp_path: Path) -> None:
    runs = [made(tmp_path, f"mnist-0000000{index}", 9 - index, seed=0) for index in range(3)]
    values: list[dict[str, Any]] = [
        {"a.rate": 0.1, "b.rate": None},
        {"a.rate": "x/y", "b.rate": 2},
        {"a.rate": "x/y", "b.rate": 2},
    ]
    sweep = SweepDir.of(tmp_path, "mnist-sweep-1")
    sweep.describe(Member(run.id, value) for run, value in zip(runs, values, strict=True))
    shown = names(chosen.choose(["mnist-sweep"], tmp_path))
    assert shown == [
        "mnist a.rate=x|y b.rate=2 00000002",
        "mnist a.rate=x|y b.rate=2 00000001",
        "mnist a.rate=0.1 b.rate=null",
    ]


def test_a_name_that_is_none_is_refused_with_the_nearest(tmp_path: Path) -> None:
    made(tmp_path, "mnist-0000000a", 3)
    with pytest.raises(Refused, match="Did you mean mnist"):
        chosen.choose(["mnits"], tmp_path)


class Board:
    """A page that a test asks as a browser does."""

    def __init__(self, list_runs: Callable[[], list[chosen.Shown]]) -> None:
        without_tensorflow()
        self.feed = Feed(list_runs)
        self._page = Page(self.feed)

    def get(self, path: str, host: str = "127.0.0.1:6006", query: str = "") -> tuple[str, bytes]:
        from io import BytesIO

        told: list[str] = []
        environ = {
            "REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "PATH_INFO": path, "QUERY_STRING": query, "HTTP_HOST": host,
            "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "6006", "SERVER_PROTOCOL": "HTTP/1.1", "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http", "wsgi.input": BytesIO(), "wsgi.errors": sys.stderr,
        }  # fmt: skip
        body = b"".join(self._page(environ, lambda status, *_: told.append(status)))
        return told[0], body

    def steps(self, run: str) -> list[int]:
        self.get("/truba/news")
        return [event.step for event in self.feed.multiplexer.GetAccumulator(run).Tensors("epoch_loss")]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return made(tmp_path, "mnist-0000000a", 1)


@pytest.fixture
def board(run: RunDir) -> Board:
    return Board(lambda: [chosen.Shown("mnist", run)])


def test_the_page_is_told_of_every_point_and_of_nothing_else(run: RunDir, board: Board) -> None:
    assert board.get("/data/runs")[1] == b"[]", "a run that waits in the queue has no curves"
    curve = Curve(run.tensorboard)
    curve.add(1, 0.5)
    assert board.steps("mnist/train") == [1]
    before = board.get("/truba/news")
    assert board.get("/truba/news") == before, "nothing is new"
    curve.add(2, 0.25)
    assert board.get("/truba/news") != before
    assert board.steps("mnist/train") == [1, 2]
    status, page = board.get("/")
    assert status == "200 OK" and b'<script src="truba/follow.js"' in page
    assert b"reload-button" in board.get("/truba/follow.js")[1]


def test_points_are_those_that_tensorboard_itself_would_show(run: RunDir, board: Board) -> None:
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.context import RequestContext
    from tensorboard.plugins.scalar.summary_v2 import scalar_pb

    curve = Curve(run.tensorboard)
    for step, value in enumerate((0.1, 1e-30, float("inf"), -3.0)):
        curve.add(step, value)
        as_a_tensor: Summary = scalar_pb("batch_loss", value)  # As Keras' own callback writes it.
        curve.write(step=step, summary=as_a_tensor)
    board.steps("mnist/train")
    asked = {"experiment_id": "", "plugin_name": "scalars", "downsample": 100}
    plain = MultiplexerDataProvider(board.feed.multiplexer, "").read_scalars(RequestContext(), **asked)
    assert provider(board.feed).read_scalars(RequestContext(), **asked) == plain
    assert {len(points) for points in plain["mnist/train"].values()} == {4} and len(plain["mnist/train"]) == 2


def test_what_a_resumed_run_took_back_goes_from_the_page(run: RunDir, board: Board) -> None:
    curve = Curve(run.tensorboard)
    curve.add(1, 0.5)
    checkpoint = curve.file.stat().st_size
    for step in (2, 3):
        curve.add(step, 0.4)
    assert board.steps("mnist/train") == [1, 2, 3]
    os.truncate(curve.file, checkpoint)
    assert board.steps("mnist/train") == [1]
    # The next start's file; what an unfinished record leaves at the end of the first is passed over.
    Curve(run.tensorboard).add(2, 0.3)
    assert board.steps("mnist/train") == [1, 2]


def test_a_copy_that_grew_is_read_on_and_another_file_is_read_anew(run: RunDir, board: Board) -> None:
    curve = Curve(run.tensorboard)
    curve.add(1, 0.5)
    assert board.steps("mnist/train") == [1]
    accumulator = board.feed.multiplexer.GetAccumulator("mnist/train")
    # As rsync leaves it: the whole under the same name.
    copy = curve.file.with_name(".copy")
    copy.write_bytes(curve.file.read_bytes())
    copy.replace(curve.file)
    curve.add(2, 0.4)
    assert board.steps("mnist/train") == [1, 2]
    assert board.feed.multiplexer.GetAccumulator("mnist/train") is accumulator
    other = Curve(run.tensorboard, "other")
    other.add(7, 0.1)
    other.file.replace(curve.file)
    assert board.steps("mnist/train") == [7]


def test_a_page_of_another_name_is_not_answered(board: Board) -> None:
    for host in ("127.0.0.1:6006", "localhost:6006", "[::1]:6006"):
        assert board.get("/truba/news", host)[0] == "200 OK"
    for host in ("evil.example:6006", "127.0.0.1.evil.example:6006", ""):
        assert board.get("/data/runs", host)[0] == "403 Forbidden"


def test_tensorflow_is_not_imported_though_it_is_there(run: RunDir) -> None:
    Curve(run.tensorboard).add(1, 0.5)
    program = """
import sys
from pathlib import Path
from truba_runner.rundir import RunDir
from truba_runner.tensorboard.chosen import Shown
from truba_runner.tensorboard.feed import Feed, provider, without_tensorflow
from truba_runner.tensorboard.page import Page
without_tensorflow()
page = Page(Feed(lambda: [Shown("run", RunDir(Path(sys.argv[1])))]))
assert page._feed.news() == 1
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program, str(run.path)], capture_output=True, text=True, check=True)
    assert not {"tensorflow", "torch", "pandas"} & set(done.stdout.split())


def test_a_private_socket_is_in_a_folder_that_is_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    place = PrivateSocket(["mnist"])
    assert place.path.parent == tmp_path / "truba_runner" and place.take()
    with place.listen():
        assert place.path.stat().st_mode & 0o777 == 0o600 and place.path.parent.stat().st_mode & 0o777 == 0o700
        second = PrivateSocket(["mnist"])
        assert second.path == place.path and not second.take() and second.holder() == str(os.getpid())
        assert PrivateSocket(["pets"]).path != place.path
    place.leave()
    assert second.take() and not place.path.exists()


def test_a_folder_that_others_may_enter_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "truba_runner").mkdir(mode=0o755)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("truba_runner.tensorboard.sockets.os.getuid", lambda: 12345)
    monkeypatch.setattr("truba_runner.tensorboard.sockets._candidates", lambda: iter([tmp_path / "truba_runner"]))
    with pytest.raises(Failed, match="is not yours alone"):
        PrivateSocket(["mnist"])


def test_where_there_is_a_browser_only_this_machine_can_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    with server.loopback(None) as first, server.loopback(None) as second:
        assert first.getsockname()[0] == second.getsockname()[0] == "127.0.0.1"
        assert first.getsockname()[1] != second.getsockname()[1]
        with pytest.raises(OSError):
            server.loopback(first.getsockname()[1])
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    assert not server.far()
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.1 1 10.0.0.2 22")
    assert server.far()


def test_a_copys_state_is_that_of_its_records(tmp_path: Path) -> None:
    run = made(tmp_path, "mnist-0000000a", 1)
    (run.path / "pulled.json").write_text('{"from": "arf", "time": 0}')
    assert state_of(run, None).state == "UNKNOWN"
    run.write_progress({"state": "running", "job_id": "1"})
    seen = state_of(run, None)
    assert (seen.state, seen.live) == ("RUNNING", False) and "as it was at arf" in seen.why
    run.write_progress({"state": "failed", "job_id": "1", "error": {"type": "Failed", "message": "no disk"}})
    assert state_of(run, {}).state == "FAILED" and state_of(run, {}).why.startswith("no disk; ")
    run.write_result({"metrics": {}})
    assert state_of(run, None).state == "COMPLETED"


def test_a_listing_names_the_sweep_of_a_run(tmp_path: Path) -> None:
    run = made(tmp_path, "mnist-0000000a", 1)
    sweep = SweepDir.of(tmp_path, "mnist-sweep-1")
    sweep.describe([Member(run.id, {"train.seed": 1})])
    SweepDir.of(tmp_path, "other-sweep-2").describe([Member("other-0000000b", {"train.seed": 1})])
    (one,) = pulling.listing([run.id], tmp_path)
    told = {"runs_folder": str(tmp_path), "runs": {run.id: False}, "searches": [], "sweeps": [sweep.id]}
    assert one == {**told, "code": []}
    name = f"code-{'a' * 16}.tar.gz"
    (tmp_path / ".code").mkdir()
    for other in (name, f"code-{'b' * 16}.tar.gz"):
        (tmp_path / ".code" / other).write_bytes(b"code")
    run.append_submission({"event": "intent", "token": "t", "code": {"archive": f"/arf/.code/{name}"}})
    assert pulling.listing([run.id], tmp_path) == [{**told, "code": [name]}]


def test_a_missing_tensorboard_is_told_with_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.version", None)
    with pytest.raises(Failed, match=r"truba_runner\[tensorboard\].*module load"):
        without_tensorflow()
