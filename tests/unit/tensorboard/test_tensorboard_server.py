"""What TensorBoard is shown of runs, how it is called there, and where it listens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from curve import Curve

from truba_runner.commands import cancel, diff, logs, pull, tensorboard, usage
from truba_runner.errors import Failed, Refused
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.record_shapes import progress_from
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.state import slurm_jobs, state_of
from truba_runner.runs.sweep_directory import Member, SweepDir
from truba_runner.search.directory import SearchDir
from truba_runner.search.overview import standing
from truba_runner.slurm.jobs import Job
from truba_runner.tensorboard import chosen, feed, listing, pulling, server
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
    run.append_submission(Event(Kind.SUBMITTED, token="t", job_id="1"), durable=False)
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


def test_a_search_whose_trials_were_purged_hides_no_other_run(tmp_path: Path) -> None:
    search = SearchDir(made(tmp_path, "search-0000000a", 2).path)
    search.create()
    search.trials_folder.rmdir()
    made(tmp_path, "mnist-0000000b", 1)
    assert names(chosen.choose([], tmp_path)) == ["mnist"]


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


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for news waits for the look at the files, however long it takes."""
    monkeypatch.setattr("truba_runner.tensorboard.feed._PATIENCE_SECONDS", 240)


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


def test_a_point_that_comes_while_the_files_are_looked_at_is_on_the_page_at_the_next_poll(
    run: RunDir, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve = Curve(run.tensorboard)
    curve.add(1, 0.5)
    assert board.steps("mnist/train") == [1]
    looked, scanned, go_on = feed.event_folders, threading.Event(), threading.Event()

    def held(root: Path) -> dict[Path, dict[str, os.stat_result]]:
        if go_on.is_set():
            time.sleep(0.2)  # The next look takes its time: what it finds is not there by chance.
        found = looked(root)
        scanned.set()
        go_on.wait(240)
        return found

    def wanted() -> None:
        threading.Event.set(board.feed._wanted)
        go_on.set()

    with monkeypatch.context() as patched:
        patched.setattr(feed, "event_folders", held)
        threading.Event.set(board.feed._wanted)
        assert scanned.wait(240)
        curve.add(2, 0.25)
        patched.setattr(board.feed._wanted, "set", wanted)
        assert board.steps("mnist/train") == [1, 2]


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


def test_what_is_written_over_half_a_record_is_read(run: RunDir, board: Board) -> None:
    curve = Curve(run.tensorboard)
    curve.add(1, 0.5)
    whole = curve.file.stat().st_size
    curve.add(2, 0.4)
    os.truncate(curve.file, whole + 30)
    assert board.steps("mnist/train") == [1], "a kill came in the middle of it"
    # The next start writes over it, and the page is asked only when the file is longer than it was.
    os.truncate(curve.file, whole)
    for step in (2, 3):
        curve.add(step, 0.3)
    assert board.steps("mnist/train") == [1, 2, 3]


def test_a_run_that_tells_its_steps_further_apart_after_a_restart_is_read_anew(run: RunDir, board: Board) -> None:
    curve = Curve(run.tensorboard)
    curve.add(1, 0.5)
    checkpoint = curve.file.stat().st_size
    for step in (2, 3):
        curve.add(step, 0.4)
    assert board.steps("mnist/train") == [1, 2, 3]
    os.truncate(curve.file, checkpoint)
    # A step of more digits is a longer record, so that nothing lies where it lay.
    for step in (200, 400, 600):
        curve.add(step, 0.3)
    assert board.steps("mnist/train") == [1, 200, 400, 600]


def test_a_name_that_becomes_one_of_two_runs_keeps_the_page_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("truba_runner.tensorboard.feed._LIST_EVERY_SECONDS", 0.0)
    curve = Curve(made(tmp_path, "mnist-0000000a", 1).tensorboard)
    curve.add(1, 0.5)
    board = Board(lambda: chosen.named(chosen.choose(["mnist-0"], tmp_path)))
    assert board.steps("mnist/train") == [1]
    # As fresh=true makes it.
    made(tmp_path, "mnist-0000000a.2", 0)
    for step in (2, 3):
        curve.add(step, 0.4)
        assert board.steps("mnist/train") == list(range(1, step + 1))
    said = capfd.readouterr().err
    assert said.count("2 runs start with it") == 1 and "Traceback" not in said


def test_what_a_cut_copy_has_left_is_no_run(run: RunDir, board: Board) -> None:
    curve = Curve(run.tensorboard)
    curve.add(1, 0.5)
    partial = curve.file.parent / ".rsync-partial"
    partial.mkdir()
    (partial / curve.file.name).write_bytes(curve.file.read_bytes()[:50])
    assert board.steps("mnist/train") == [1]
    assert board.get("/data/runs")[1] == b'["mnist/train"]'


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
from truba_runner.runs.run_directory import RunDir
from truba_runner.tensorboard import feed
from truba_runner.tensorboard.chosen import Shown
from truba_runner.tensorboard.feed import Feed, provider, without_tensorflow
from truba_runner.tensorboard.page import Page
without_tensorflow()
page = Page(Feed(lambda: [Shown("run", RunDir(Path(sys.argv[1])))]))
feed._PATIENCE_SECONDS = 240
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
    with pytest.raises(Failed, match="is not private to you"):
        PrivateSocket(["mnist"])


def test_where_there_is_a_browser_only_this_machine_can_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    with server.loopback(None) as first, server.loopback(None) as second:
        assert first.getsockname()[0] == second.getsockname()[0] == "127.0.0.1"
        assert first.getsockname()[1] != second.getsockname()[1]
        with pytest.raises(Failed, match=f"port {first.getsockname()[1]} .* in use.*--port"):
            server.loopback(first.getsockname()[1])
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    assert not server.far()
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.1 1 10.0.0.2 22")
    assert server.far()


def test_a_copys_state_is_that_of_its_records(tmp_path: Path) -> None:
    run = made(tmp_path, "mnist-0000000a", 1)
    (run.path / "pulled.json").write_text('{"from": "arf", "time": 0}')
    assert state_of(run.record(), None).state == "UNKNOWN"
    run.write_progress(progress_from({"state": "running", "job_id": "1"}))
    seen = state_of(run.record(), None)
    assert (seen.state, seen.live) == ("RUNNING", False) and " on arf; truba pull" in seen.why
    run.write_progress(
        progress_from({"state": "failed", "job_id": "1", "error": {"type": "Failed", "message": "no disk"}})
    )
    assert state_of(run.record(), {}).state == "FAILED" and state_of(run.record(), {}).why.startswith("no disk; ")
    run.write_result({"metrics": {}})
    assert state_of(run.record(), None).state == "COMPLETED"


def no_jobs(runs: Sequence[RunDir]) -> Mapping[str, Job]:
    """What a Slurm knows that has forgotten all of them."""
    return {}


def test_a_listing_names_the_sweep_of_a_run_and_its_finder(tmp_path: Path) -> None:
    run = made(tmp_path, "mnist-0000000a", 1)
    sweep = SweepDir.of(tmp_path, "mnist-sweep-1")
    sweep.describe([Member(run.id, {"train.seed": 1}, "mnist-finder-0000000f", "valley")])
    SweepDir.of(tmp_path, "other-sweep-2").describe([Member("other-0000000b", {"train.seed": 1})])
    (one,) = listing.listing([run.id], tmp_path, no_jobs)
    names = [run.id, "mnist-finder-0000000f"]
    told = {"runs_folder": str(tmp_path), "runs": names, "searches": [], "sweeps": [sweep.id], "live": [run.id]}
    assert one == {**told, "code": []}
    code = f"code-{'a' * 16}.tar.gz"
    (tmp_path / ".code").mkdir()
    for name in (code, f"code-{'b' * 16}.tar.gz"):
        (tmp_path / ".code" / name).write_bytes(b"code")
    run.append_submission(Event(Kind.INTENT, token="t", code={"archive": f"/arf/.code/{code}"}))
    assert listing.listing([run.id], tmp_path, no_jobs) == [{**told, "code": [code]}]


def test_a_listing_says_which_runs_may_still_change(tmp_path: Path) -> None:
    def listed(jobs: Mapping[str, Job] | None) -> list[str]:
        (one,) = listing.listing([], tmp_path, lambda runs: jobs)
        live: list[str] = one["live"]
        return sorted(live)

    done, killed, unknown = (made(tmp_path, f"mnist-0000000{letter}", 1) for letter in "abc")
    done.write_result({"metrics": {}})
    killed.write_progress(progress_from({"state": "running", "job_id": "1"}))
    assert listed({}) == [unknown.id], "of a run that Slurm has lost nothing more will come"
    assert listed(None) == [killed.id, unknown.id], "Slurm does not answer"
    assert listed({"1": Job("1", "RUNNING")}) == [killed.id, unknown.id]
    assert listed({"1": Job("1", "CANCELLED")}) == []


def test_a_copy_of_a_search_is_as_its_records_say(tmp_path: Path) -> None:
    """Its workers' jobs are another machine's."""
    search = SearchDir(made(tmp_path, "search-0000000a", 1).path)
    search.create()
    worker = search.create_worker(0)
    worker.append_submission(Event(Kind.SUBMITTED, token="t", job_id="1"), durable=False)
    worker.write_progress(progress_from({"state": "running", "job_id": "1"}))
    puller = pulling.Puller(SimpleNamespace(login="arf"), [], tmp_path, "truba", "", checkpoints=False)  # type: ignore[arg-type]
    puller._mark(listing.Listed(str(tmp_path), [], [search.id], [], []))
    told = standing(search, {})
    assert (told.state, told.live) == ("RUNNING", False) and " on arf; truba pull" in told.why


def test_a_copys_jobs_are_not_looked_up_in_this_machines_accounting(tmp_path: Path) -> None:
    run = made(tmp_path, "mnist-0000000a", 1)
    assert slurm_jobs(run) == {"1"}
    (run.path / "pulled.json").write_text('{"from": "arf", "time": 0}')
    assert slurm_jobs(run) == set()


@pytest.mark.parametrize(
    ("command", "words"),
    [(cancel, "its job is at arf.*truba cancel mnist-0"), (logs, "They are at arf. Run there: truba logs mnist-0"),
     (diff, "project folder is at arf. Run there: truba diff mnist-0")],
)  # fmt: skip
def test_what_a_copy_cannot_tell_is_told_where_to_ask(command: Any, words: str, tmp_path: Path) -> None:
    run = made(tmp_path, "mnist-0000000a", 1)
    run.write_progress(progress_from({"state": "running", "job_id": "1"}))
    (run.path / "pulled.json").write_text('{"from": "arf", "time": 0}')
    with pytest.raises((Refused, Failed), match=words):
        command.main(["mnist", "--runs", str(tmp_path)])


def test_what_copies_have_used_is_another_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path, "mnist-0000000a", 1)
    (run.path / "pulled.json").write_text('{"from": "arf", "time": 0}')
    assert usage.main(["--json", "--runs", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["usage"] == []


def test_one_sweep_in_two_folders_is_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (tmp_path / "here", tmp_path / "pulled"):
        SweepDir.of(folder, "mnist-sweep-1").describe([Member("mnist-0000000a", {})])
    monkeypatch.setattr("truba_runner.runs.runs_folders.folders", lambda: [tmp_path / "here", tmp_path / "pulled"])
    with pytest.raises(Refused, match="--runs FOLDER"):
        chosen.choose(["mnist-sweep"])


class FarEnd:
    """A connection whose other end answers what a test says: for each word that is asked for the runs that it means."""

    login = "arf"
    transport = list

    def __init__(self, **means: list[dict[str, Any]]) -> None:
        self.means = means

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        found = [one for word in command.partition(" -- ")[2].split() for one in self.means.get(word, [])]
        text = f"welcome\n{listing.MARK}{json.dumps(found)}\n"
        return subprocess.CompletedProcess([], 0 if found else 2, text if found else "")


def meant(folder: Path, *runs: str) -> dict[str, Any]:
    return {"runs_folder": str(folder), "runs": list(runs), "searches": [], "sweeps": [], "live": list(runs)}


def test_a_name_that_becomes_one_of_two_runs_is_followed_on(tmp_path: Path) -> None:
    one = meant(tmp_path, "mnist-0000000a")
    far = FarEnd(mnist=[one])
    puller = pulling.Puller(far, ["mnist"], tmp_path, "truba", "", checkpoints=False)  # type: ignore[arg-type]
    puller._listed = puller._list(["mnist"])
    far.means = {"mnist-0000000a": [one]}
    assert puller._list_again() == puller._listed and puller._wanted == ["mnist-0000000a"]
    far.means = {}
    for _ in range(2):
        assert puller._list_again() == puller._listed, "the login node has a bad moment"
    with pytest.raises(Failed, match="could not list the runs"):
        puller._list_again()


@pytest.mark.parametrize("for_new_ones", [False, True])
def test_a_page_looks_for_new_runs_when_all_are_over(
    for_new_ones: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulling, "_LIST_EVERY_SECONDS", 0.01)
    puller = pulling.Puller(FarEnd(), [], tmp_path, "truba", "", checkpoints=False)  # type: ignore[arg-type]
    ended, looks = threading.Event(), []

    def once() -> None:
        looks.append(1)
        if len(looks) == 3:
            ended.set()

    monkeypatch.setattr(puller, "once", once)
    puller.follow(0.01, ended, for_new_ones)
    assert len(looks) == (3 if for_new_ones else 1)


@pytest.mark.parametrize("goes_well_after", [1, 2, 3])
def test_files_that_could_not_be_read_do_not_end_a_follow_unless_it_is_so_again_and_again(
    goes_well_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    puller = pulling.Puller(FarEnd(), [], tmp_path, "truba", "", checkpoints=False)  # type: ignore[arg-type]
    failures = [pulling.Incomplete("alpha.png: Input/output error")] * goes_well_after
    monkeypatch.setattr(puller, "once", lambda: failures and raise_(failures.pop()))
    if goes_well_after < 3:
        puller.follow(0.01, threading.Event())
        assert capsys.readouterr().err.count("Input/output error\nTrying again") == goes_well_after
    else:
        with pytest.raises(Failed, match="Input/output error"):
            puller.follow(0.01, threading.Event())


def raise_(error: Exception) -> None:
    raise error


def test_old_checkpoints_go_from_a_copy_as_they_do_from_the_run(tmp_path: Path) -> None:
    run = made(tmp_path, "mnist-0000000a", 1)
    run.write_config({**run.read_config(), "checkpoint": {"keep": 2}})
    run.checkpoints.mkdir()
    for name in ("best", *(f"checkpoint-{epoch:06d}-000000000" for epoch in range(1, 6))):
        (run.checkpoints / f"{name}.ckpt").touch()
    puller = pulling.Puller(FarEnd(), [], tmp_path, "truba", "", checkpoints=True)  # type: ignore[arg-type]
    puller._retire(listing.Listed.of(meant(tmp_path, run.id, "purged-0000000b")))
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [
        "best.ckpt", "checkpoint-000004-000000000.ckpt", "checkpoint-000005-000000000.ckpt",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "words", "means"),
    [
        (12, "connection unexpectedly closed", pulling.Cut),
        (255, "unexplained error", pulling.Cut),
        (20, "received SIGINT", pulling.Cut),
        (-9, "", pulling.Cut),
        (11, "write failed: Aygıtta boş yer kalmadı", pulling.DiskFull),
        (12, "bash: line 1: rsync: command not found", Failed),
        (127, "rsync: remote command not found", Failed),
        (23, "Permission denied", pulling.Incomplete),
    ],
)
def test_what_rsyncs_end_means(
    status: int, words: str, means: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    puller = pulling.Puller(FarEnd(), [], tmp_path, "truba", "", checkpoints=False)  # type: ignore[arg-type]
    done = subprocess.CompletedProcess([], status, "", words)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(means):
        puller._copy(listing.Listed.of(meant(tmp_path, "mnist-0000000a")))


def test_a_part_of_a_copy_is_told_as_one_and_keeps_the_time_of_the_last_whole(tmp_path: Path) -> None:
    run = made(tmp_path, "mnist-0000000a", 1)
    one = listing.Listed.of(meant(tmp_path, run.id))
    puller = pulling.Puller(FarEnd(), [], tmp_path, "truba", "", checkpoints=False)  # type: ignore[arg-type]
    puller._mark(one, whole=False)
    first = run.pulled()
    assert first["from"] == "arf"
    puller._mark(one, whole=False)
    assert run.pulled() == first
    puller._mark(one)
    assert run.pulled()["time"] > first["time"]


def test_two_runs_of_one_name_are_not_put_into_one_copy(tmp_path: Path) -> None:
    other = meant(tmp_path / "other", "mnist-0000000b")
    far = FarEnd(mnist=[meant(tmp_path / "one", "mnist-0000000a"), other, meant(tmp_path / "two", "mnist-0000000a")])
    puller = pulling.Puller(far, ["mnist"], tmp_path, "truba", "", checkpoints=False)  # type: ignore[arg-type]
    with pytest.raises(Failed, match=f"--runs {tmp_path}/one or --runs {tmp_path}/two"):
        puller._list(["mnist"])


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        (tensorboard, ["--port", "70000"], "numbered from 1 to 65535"),
        (tensorboard, ["--port", "0"], "numbered from 1 to 65535"),
        (tensorboard, ["--max-runs", "-1"], "Give 1 or more"),
        (tensorboard, ["--idle-minutes", "-1"], r"Give 0 \(never\) or more"),
        (tensorboard, ["--idle-minutes", "nan"], r"Give 0 \(never\) or more"),
        (pull, ["--from", "arf", "mnist", "--every-seconds", "0"], "at most once in 0.5 s"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(command: Any, options: list[str], words: str) -> None:
    with pytest.raises(Refused, match=words):
        command.main(options)


def test_a_browser_that_is_waited_for_keeps_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    closed, opened = threading.Event(), threading.Event()

    def open_page(url: str) -> bool:
        opened.set()
        return not closed.wait(240)

    monkeypatch.setattr("webbrowser.open", open_page)
    tensorboard._show(tensorboard._options().parse_args([]), "http://127.0.0.1:1/")
    assert opened.wait(240) and not closed.is_set()
    closed.set()
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "browser")
    thread.join(240)
    assert "no browser could be started" in capsys.readouterr().err


def test_nothing_to_show_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told() -> str:
        tensorboard._say_what_is_left_out(tensorboard._options().parse_args(["--runs", str(tmp_path)]), 1)
        return capsys.readouterr().err

    assert f"{tmp_path} has no runs yet" in told()
    run = made(tmp_path, "mnist-0000000a", 2)
    assert "no curves yet" in told()
    made(tmp_path, "mnist-0000000b", 3)
    Curve(run.tensorboard)
    assert told() == "showing the newest 1 of 2 runs; --max-runs N shows more, and naming runs shows fewer\n"


def test_a_missing_tensorboard_is_told_with_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.version", None)
    monkeypatch.setattr("truba_runner.environment.modules.available", lambda: ["comp/gcc/13", "apps/some-ai/cpu-1"])
    with pytest.raises(Failed, match=r"truba_runner\[tensorboard\].*There are: apps/some-ai/cpu-1\."):
        without_tensorflow()
