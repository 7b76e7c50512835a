"""From a laptop with a browser to the curves of runs on the cluster, over a real sshd, and what is cut on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, left_out, wait_until
from curve import Curve
from laptop import AYSE, MEHMET, Laptop, listening, missing
from slow_run import Run
from truba import Truba

from truba_runner.runs.events import Event, Kind
from truba_runner.runs.record_shapes import RateCurve, progress_from
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.sweep_directory import Member, SweepDir
from truba_runner.search.directory import SearchDir
from truba_runner.training.summaries import event_files

# Where ayse's sockets are: her login node tells of no other place, and /tmp is this machine's own.
SOCKETS = Path(f"/tmp/truba_runner-{AYSE}")
SYNC_SECONDS = 4
CHART = "document.querySelector('scalar-card line-chart') && document.body.innerText.includes('_loss')"


@pytest.fixture(scope="module")
def laptop(cluster: Cluster) -> Iterator[Laptop]:
    if lacking := missing():
        left_out(f"no laptop beside the test cluster: {lacking} is not installed (slurm/testcluster/install)")
    shutil.rmtree(SOCKETS, ignore_errors=True)
    made = Laptop(cluster, cluster.scratch("ayse") / "laptop-state")
    yield made
    made.close()
    shutil.rmtree(SOCKETS, ignore_errors=True)


class Shelf:
    """Runs of ayse's whose event files a test writes itself, straight to the shared disk."""

    def __init__(self, laptop: Laptop, name: str) -> None:
        self.folder = laptop.cluster.scratch("ayse") / name
        self._memory = laptop.state / "truba_runner" / "runs_folders"
        self._curves: dict[str, Curve] = {}
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        self._memory.write_text(f"{self.folder}\n")
        self._give(laptop.state)

    def run(self, name: str, job_id: str = "7", **train: Any) -> RunDir:
        """`job_id` is one that Slurm knows nothing of, unless it is given."""
        run = RunDir(self.folder / name)
        run.create()
        run.write_config({"name": name.rpartition("-")[0], "train": train, "tensorboard": {"idle_minutes": 30}})
        run.append_submission(Event(Kind.SUBMITTED, token="t", job_id=job_id), durable=False)
        run.write_progress(
            progress_from({"state": "running", "job_id": job_id, "epoch": 1, "epochs": 9, "metrics": {"loss": 1.0}})
        )
        self._curves[name] = Curve(run.tensorboard)
        self.log(run, 1)
        return run

    def search(self, name: str) -> SearchDir:
        made = SearchDir(self.run(name).path)
        for folder in (made.workers_folder, made.trials_folder):
            folder.mkdir()
        return made

    def log(self, run: RunDir, step: int) -> None:
        self._curves[run.id].add(step, 1 / step)
        self._give(self.folder)

    def finish(self, run: RunDir) -> None:
        # Whole and ayse's from the first moment: somebody may be copying it.
        made = RunDir(self.folder.with_name("finished"))
        made.path.mkdir(exist_ok=True)
        made.write_result({"metrics": {"loss": 0.25}})
        self._give(made.path)
        (made.path / "result.json").replace(run.path / "result.json")

    @staticmethod
    def _give(path: Path) -> None:
        subprocess.run(["chown", "-R", f"{AYSE}:{AYSE}", str(path)], check=True)


@pytest.fixture
def shelf(laptop: Laptop, request: pytest.FixtureRequest) -> Shelf:
    return Shelf(laptop, request.node.name)


@pytest.fixture(autouse=True)
def nothing_stays(laptop: Laptop) -> Iterator[None]:
    yield
    laptop.end_programs()
    wait_until(lambda: not laptop.far_servers(), lambda: "a server stayed at the login node")
    # Of servers that were killed outright.
    for stale in SOCKETS.glob("*.sock"):
        stale.unlink()


def all_end(laptop: Laptop) -> None:
    """What a program of the laptop's had running ends with it, sooner than silence would end what is far."""

    def left() -> list[int]:
        return [*laptop.processes("ssh"), *laptop.far_servers(), *laptop.processes("rsync", uid=AYSE)]

    wait_until(lambda: not left(), left, seconds=45)


def points(run: str, tag: str) -> Callable[[Any], Any]:
    """Of an answer of TensorBoard's: the points of a curve."""

    def found(answer: Any) -> Any:
        for one in answer:
            for name, curve in (one.get("runToSeries") or {}).items():
                if one["tag"] == tag and name == run:
                    return curve
        return None

    return found


def test_a_running_jobs_curves_come_to_the_browser_and_to_nobody_else(
    laptop: Laptop, truba: Truba, tmp_path: Path
) -> None:
    truba.environment["XDG_STATE_HOME"] = str(laptop.state)
    ports_before = listening(laptop.cluster, "mehmet")
    name = truba.project.name
    # Written on the node's own disk, and copied from there.
    slow = Run(truba, "train.epochs=400", f"tensorboard.sync_seconds={SYNC_SECONDS}")
    run = slow.path
    slow.wait_until(lambda: any(run.rglob("*tfevents*")))
    program = laptop.start("tensorboard", "--from", "login", name)
    url = program.url()
    page = laptop.browse()
    try:
        page.open(url)
        page.wait_until(CHART)

        def fresh(answer: Any) -> bool:
            # The page's first chart; what is out of sight it does not ask for.
            curve = points(f"{name}/train", "batch_loss")(answer)
            last = curve[-1]["wallTime"] if curve else 0
            return bool(began < last < time.time() < last + SYNC_SECONDS + 10)

        began = time.time()
        page.wait_for_answer("timeSeries", fresh)
        shown = page.evaluate("document.body.innerText")
        assert f"{name}/train" in shown and run.name not in shown
        page.screenshot(Path(os.environ.get("TRUBA_SCREENSHOTS", tmp_path)) / "curves.png")
        check_private(laptop, run, ports_before)
    finally:
        page.close()
    assert program.interrupt() == 0, program.told
    all_end(laptop)
    assert not list(SOCKETS.glob("*.sock")), "the socket is taken away"


def check_private(laptop: Laptop, run: Path, ports_before: list[str]) -> None:
    """What mehmet, who works at the same login node, comes to see while the page is served."""
    (sock,) = SOCKETS.glob("*.sock")
    assert sock.stat().st_mode & 0o777 == 0o600 and sock.parent.stat().st_mode & 0o777 == 0o700
    connect = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    tries = [
        ["python", "-c", connect, str(sock)],
        ["ls", str(sock.parent)],
        ["ls", str(run)],
        ["cat", str(next((run / "tensorboard").rglob("*tfevents*")))],
    ]
    for argv in tries:
        seen = laptop.cluster.run(argv, user="mehmet", cwd="/", check=False)
        assert seen.returncode != 0 and "Permission denied" in seen.stderr + seen.stdout, argv
    # Slurm's own, for the job, are among neither.
    assert listening(laptop.cluster, "mehmet") == ports_before
    page = laptop.cluster.run(["cat", f"/proc/{os.getpid()}/cmdline"], user="mehmet", cwd="/", check=False)
    assert page.returncode != 0, "the cluster has processes of its own"


def test_what_is_cut_comes_back_under_the_same_address(laptop: Laptop, shelf: Shelf) -> None:
    run = shelf.run("cut-0000000a")
    program = laptop.start("tensorboard", "--from", "watched", "cut", "--silence-seconds", "15")
    url = program.url()

    def served() -> bool:
        answer = laptop.get(url + "data/runs")
        return answer.returncode == 0 and json.loads(answer.stdout) == ["cut/train"]

    wait_until(served, lambda: program.told)
    (server,) = laptop.far_servers()
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: laptop.far_servers() not in ([], [server]), lambda: program.told)
    wait_until(served, lambda: program.told)

    # As a login node's tidying of /tmp does.
    (server,) = laptop.far_servers()
    shutil.rmtree(SOCKETS)
    wait_until(lambda: laptop.far_servers() not in ([], [server]), lambda: program.told)
    wait_until(served, lambda: program.told)

    # A connection that is killed is not the server's fault, and lives that were short before count no more.
    lost = program.told["err"].count("is lost")
    for pid in laptop.processes("ssh", " -M "):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: program.told["err"].count("the connection to watched is lost") > lost, lambda: program.told)
    wait_until(served, lambda: program.told)
    wait_until(lambda: len(laptop.far_servers()) == 1, laptop.far_servers)

    lost = program.told["err"].count("is lost")
    laptop.unplug()
    wait_until(lambda: program.told["err"].count("is lost") > lost, lambda: program.told)
    laptop.plug_in_again()
    shelf.log(run, 2)
    wait_until(served, lambda: program.told)
    assert (laptop.home / "opened").read_text().split() == [url], "one page, opened once"

    laptop.unplug()
    program.process.kill()
    program.process.wait(240)
    for pid in laptop.processes("ssh", " -M "):
        os.kill(pid, signal.SIGKILL)
    try:
        # Nobody tells the far end; it hears nothing any more.
        wait_until(lambda: not laptop.far_servers())
    finally:
        laptop.plug_in_again()


def test_a_server_that_is_killed_again_and_again_is_given_up(laptop: Laptop, shelf: Shelf) -> None:
    shelf.run("killed-0000000a")
    program = laptop.start("tensorboard", "--from", "login", "killed")
    program.url()
    for times in range(4):
        wait_until(lambda times=times: program.told["err"].count("again\n") == times, lambda: program.told)  # type: ignore[misc]
        (server,) = laptop.far_servers()
        os.kill(server, signal.SIGKILL if times % 2 else signal.SIGTERM)
    assert program.process.wait(240) == 1
    program.wait_for("--pull")


def test_on_the_login_node_one_line_leads_there(laptop: Laptop, shelf: Shelf) -> None:
    shelf.run("old-0000000a", learning_rate=0.1)
    time.sleep(0.02)
    shelf.run("mnist-0000000a", learning_rate=0.1, seed=1)
    time.sleep(0.02)
    shelf.run("mnist-0000000b", learning_rate=0.01, seed=1)
    environment = {"XDG_STATE_HOME": str(laptop.state), "PYTHONPATH": str(Path(__file__).resolve().parents[2])}

    @contextmanager
    def serve(*options: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
        argv = ["python", "-m", "truba_runner", "tensorboard", "--json", *options]
        with laptop.cluster.popen(argv, user="ayse", env=environment | variables) as process:
            try:
                yield process
            finally:
                process.kill()

    def way(process: subprocess.Popen[str]) -> dict[str, str]:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        while lines[-1] and lines[-1] != "}\n":
            lines.append(process.stdout.readline())
        told: dict[str, str] = json.loads("".join(lines))
        return told

    with serve("--port", "7007") as first:
        told = way(first)
        # As pasted, with the name that ssh knows for the last word.
        line = [*told["ssh"].split()[:-1], "login"]
        forwarding = subprocess.Popen(laptop.command(*line), stdin=subprocess.DEVNULL)
        wait_until(lambda: laptop.get(told["url"] + "data/runs").returncode == 0)
        runs = json.loads(laptop.get(told["url"] + "data/runs").stdout)
        assert runs == ["mnist learning_rate=0.01/train", "mnist learning_rate=0.1/train", "old/train"]
        forwarding.terminate()
        forwarding.wait(240)
        (server,) = laptop.far_servers()
        assert os.getpriority(os.PRIO_PROCESS, server) == min(os.getpriority(os.PRIO_PROCESS, 0) + 10, 19)
        assert not {"tensorflow", "torch"} & mapped(server)

        with serve("--port", "7007") as second:
            assert way(second) == told and second.wait(240) == 0
            assert second.stderr is not None and "is already running" in second.stderr.read()
        first.send_signal(signal.SIGHUP)
        assert first.wait(240) == 0, "it ends with the session"
    assert not Path(told["socket"]).exists()

    with serve() as killed:
        stale = way(killed)["socket"]
        (server,) = laptop.far_servers()
        os.kill(server, signal.SIGKILL)
        killed.wait(240)
        assert Path(stale).exists()
    with serve("--idle-minutes", "0.05", XDG_RUNTIME_DIR=f"/tmp/{'long' * 30}") as idle:
        assert way(idle)["socket"] == stale, "another folder where one is too long, and a new socket for the stale one"
        assert idle.wait(240) == 0, "nobody looked"
    assert not Path(stale).exists()
    all_end(laptop)


def mapped(pid: int) -> set[str]:
    """The names of the packages whose libraries a process has loaded."""
    text = Path(f"/proc/{pid}/maps").read_text()
    return {name for name in ("tensorflow", "torch") if f"/{name}/" in text}


def test_a_tunnel_takes_another_ones_server_over(laptop: Laptop, shelf: Shelf) -> None:
    shelf.run("shared-0000000a")
    first = laptop.start("tensorboard", "--from", "login", "shared", "--no-browser")
    first.wait_for("TensorBoard is at", "out")
    # The one file that is copied to where nothing may be installed.
    bundle = laptop.cluster.folder / "home" / "ayse" / "truba.pyz"
    made = subprocess.run([sys.executable, "-m", "truba_runner", "bundle", "--out", str(bundle)], check=False)
    assert made.returncode == 0
    # The line of docs/tensorboard.md: a command over ssh has no `module` before the profile is read.
    laptop.cluster.module("apps/truba-ai/cpu-2024.0", Path(sys.executable).parent)
    far_command = ". /etc/profile; module load apps/truba-ai/cpu-2024.0; python3 truba.pyz"
    second = laptop.start("tensorboard", "--from", "commanded", "shared", TRUBA_FAR_COMMAND=far_command)
    url = second.url()
    assert json.loads(laptop.get(url + "data/runs").stdout) == ["shared/train"]
    assert len(list(SOCKETS.glob("*.sock"))) == 1 and second.told["err"] == ""
    first.process.send_signal(signal.SIGINT)
    assert first.process.wait(240) == 0
    wait_until(lambda: laptop.get(url + "data/runs").stdout == '["shared/train"]', lambda: second.told)
    assert second.interrupt() == 0
    all_end(laptop)


def test_pulled_runs_are_runs(laptop: Laptop, shelf: Shelf) -> None:
    done, going = shelf.run("done-0000000a"), shelf.run("going-0000000b")
    shelf.finish(done)
    for folder, name in ((done.checkpoints, "best.ckpt"), (done.plots, "loss.png"), (done.path, "model.keras")):
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x" * 1000)
    codes = [shelf.folder / ".code" / f"code-{digit * 16}.tar.gz" for digit in "ab"]
    for code in codes:
        code.parent.mkdir(exist_ok=True)
        code.write_bytes(b"code")
    done.append_submission(Event(Kind.INTENT, token="t", code={"archive": str(codes[0])}))
    curve = RateCurve({"valley": 0.1}, [0.1, 0.2], [1.0, 0.5])
    done.write_rate_curve("valley", curve)
    shelf.log(going, 2)
    search = shelf.search("search-0000000c")
    Curve(search.trial("0001").tensorboard).add(1, 0.5)
    search.best("0001").path.mkdir(parents=True)
    search.best("0001").write_result({"metrics": {"loss": 0.5}})
    sweep = SweepDir.of(shelf.folder, "going-sweep-1a2b")
    sweep.describe([Member(going.id, {"train.seed": 3})], monitor="loss", mode="min")
    shelf.log(going, 3)
    pulled = laptop.truba("pull", "--from", "login", "done", "going-sweep", "search", "--json")
    assert pulled.returncode == 0, pulled.stderr
    here = {one["run"]: Path(one["directory"]) for one in json.loads(pulled.stdout)["runs"]}
    found = sorted(path.relative_to(here[done.id]).as_posix() for path in here[done.id].rglob("*") if path.is_file())
    (events,) = (done.tensorboard / "train").iterdir()
    assert found == [
        "lr_find_valley.json", "plots/loss.png", "progress.json", "pulled.json", "result.json", "run.yaml",
        "submissions.jsonl", f"tensorboard/train/{events.name}",
    ]  # fmt: skip
    assert here[done.id].stat().st_mode & 0o777 == 0o700
    # The code that it trains, and no other.
    assert [path.name for path in (here[done.id].parent / ".code").iterdir()] == [codes[0].name]
    status = laptop.truba("status", "--json")
    assert status.returncode == 0 and status.stderr == ""
    rows = {row["run"]: row for row in json.loads(status.stdout)}
    assert rows[done.id]["state"] == "COMPLETED" and rows[done.id]["metrics"] == {"loss": 0.25}
    assert rows[going.id]["state"] == "RUNNING" and "login" in rows[going.id]["why"]

    table = laptop.truba("status", sweep.id, "--csv")
    assert f"{going.id},3,RUNNING" in table.stdout, table
    assert list((here[search.id] / "trials" / "0001" / "tensorboard" / "train").iterdir())
    assert (here[search.id] / "best" / "0001" / "result.json").exists()

    event_file = here[done.id] / "tensorboard" / "train" / events.name
    before = event_file.stat().st_ino
    assert laptop.truba("pull", "--from", "login", "done", "--checkpoints").returncode == 0
    assert event_file.stat().st_ino == before, "what has not changed is not copied again"
    assert (here[done.id] / "checkpoints" / "best.ckpt").exists()
    # Purged at the far end, and kept here: of a run that is over, and of one that is not.
    events.unlink()
    codes[0].unlink()
    (old,) = (going.tensorboard / "train").iterdir()
    new = old.with_name("events.out.tfevents.9.other")
    new.write_bytes(old.read_bytes())
    shelf.log(going, 4)
    assert laptop.truba("pull", "--from", "login", "done", "going").returncode == 0
    whole = old.read_bytes()
    old.unlink()
    # A resumed run took back what came after its checkpoint.
    event_files.cut(going.tensorboard, {})
    followed = laptop.truba("pull", "--from", "login", "done", "going", "--follow")
    assert followed.returncode == 0, "of a job that Slurm knows nothing of nothing more will come"
    assert event_file.exists() and (here[done.id].parent / ".code" / codes[0].name).exists()
    kept = here[going.id] / "tensorboard" / "train"
    assert (kept / old.name).read_bytes() == whole and (kept / new.name).read_bytes() == b""
    # A report of a copy, and its end.
    reported = laptop.truba("report", "done")
    assert reported.returncode == 0 and "COMPLETED" in Path(reported.stdout.strip()).read_text(), reported
    cleaned = laptop.truba("clean", "done", "--pulls", "0", "--yes")
    assert "last pulled from login on" in cleaned.stdout and not here[done.id].exists(), cleaned
    assert here[going.id].exists()


def test_no_link_of_anothers_is_pulled_nor_what_it_leads_to(laptop: Laptop, shelf: Shelf) -> None:
    """A link that came along would lead into files of this machine; one that was followed, into ayse's own."""
    run, search = shelf.run("linked-0000000a"), shelf.search("linked-0000000b")
    Curve(search.trial("0001").tensorboard).add(1, 0.5)
    private = shelf.folder.with_name("private-of-ayse")
    private.mkdir(mode=0o700)
    for name in ("events.out.tfevents.1.x", "loss.png", "run.yaml", "submissions.jsonl"):
        (private / name).write_text('{"secret": "hunter2"}')
    shelf._give(private)
    shelf.log(run, 2)
    for place in (run.path, search.path, search.trial("0001").path):
        for name in ("checkpoints", "plots", "tensorboard/more", "tensorboard/events.out.tfevents.1.x"):
            (place / name).symlink_to(private / "loss.png" if "." in name else private)
            os.lchown(place / name, MEHMET, MEHMET)
    # Where it is a run's own, that counts as damaged, and nothing of it comes.
    (search.trial("0001").path / "lr_find_x.json").symlink_to(private / "run.yaml")
    (search.path / "trials" / "0002").symlink_to(private)
    (shelf.folder / "linked-0000000c").symlink_to(private)
    os.lchown(shelf.folder / "linked-0000000c", MEHMET, MEHMET)
    (shelf.folder / ".code").symlink_to(private)
    into = laptop.home / "linked"
    pulled = laptop.truba("pull", "--from", "login", "linked", "--checkpoints", "--json", "--into", str(into))
    assert pulled.returncode == 0, pulled.stderr
    assert {one["run"] for one in json.loads(pulled.stdout)["runs"]} == {run.id, search.id}, pulled.stderr
    came = list(into.rglob("*"))
    assert sum("tfevents" in path.name for path in came) == 3, "of each its own curve"
    assert not any(path.is_symlink() for path in came)
    assert not any(b"hunter2" in path.read_bytes() for path in came if path.is_file())


def test_one_name_in_two_folders_is_pulled_from_the_one_that_is_said(laptop: Laptop, shelf: Shelf) -> None:
    first = shelf.run("twice-0000000a")
    other = shelf.folder / "other runs"
    shutil.copytree(first.path, other / first.id)
    (other / first.id / "history.csv").write_text("epoch\n")
    with shelf._memory.open("a") as memory:
        memory.write(f"{other}\n")
    shelf._give(shelf.folder)
    both = laptop.truba("pull", "--from", "commanded", "twice", "--into", str(laptop.home / "twice"))
    assert both.returncode == 1 and f"--runs {other}" in both.stderr and not (laptop.home / "twice").exists()
    said = laptop.truba(
        "pull", "--from", "commanded", "twice", "--into", str(laptop.home / "twice"), "--runs", str(other)
    )
    assert said.returncode == 0, said.stderr
    assert (laptop.home / "twice" / first.id / "history.csv").exists()


@pytest.fixture
def waiting_job(laptop: Laptop) -> Iterator[str]:
    """The id of a job that stays in the queue: of its run more may come."""
    job_id = laptop.cluster.sbatch(["-c10", "--gres=gpu:1", "--hold"], "true")
    yield job_id
    laptop.cluster.run(["scancel", job_id])


def test_a_pull_that_is_ended_in_mid_transfer_leaves_no_process(laptop: Laptop, shelf: Shelf, waiting_job: str) -> None:
    run = shelf.run("ended-0000000a", waiting_job)
    options = ["--from", "login", "ended", "--into", str(laptop.home / "ended"), "--follow", "--every-seconds", "0.5"]
    program = laptop.start("pull", *options)
    program.wait_for(run.id, "out")
    slow = "tc qdisc add dev to-laptop root tbf rate 1mbit burst 16kb latency 400ms"
    laptop.cluster.run(["/bin/sh", "-ec", slow], user="root")
    try:
        run.plots.mkdir()
        (run.plots / "large.png").write_bytes(os.urandom(3_000_000))
        shelf.log(run, 2)
        wait_until(lambda: [*(laptop.home / "ended" / run.id / "plots").glob(".large.png.*")])
        assert (program.interrupt(), program.told["err"]) == (0, ""), (
            "a Ctrl-C reaches rsync, and is no lost connection"
        )
    finally:
        laptop.cluster.run(["tc", "qdisc", "del", "dev", "to-laptop", "root"], user="root")
    all_end(laptop)
    again = laptop.start("pull", *options)
    again.wait_for(run.id, "out")
    for pid in laptop.processes("truba_runner", "pull"):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not laptop.processes("ssh"), lambda: "the connection stays when its owner is killed")


def test_following_survives_a_cut_and_a_full_disk(laptop: Laptop, shelf: Shelf, waiting_job: str) -> None:
    run = shelf.run("followed-0000000a", waiting_job)
    small = laptop.home / "small"
    mount = f"mkdir {small} && mount -t tmpfs -o size=64k,mode=700,uid=60003 tmpfs {small}"
    laptop.cluster.run(["/bin/sh", "-ec", mount], user="root")
    options = ["--from", "watched", "followed", "--into", str(small), "--follow", "--every-seconds", "0.5"]
    program = laptop.start("pull", *options)
    program.wait_for(run.id, "out")

    def here(name: str) -> int:
        seen = laptop.cluster.run(["sh", "-c", f"cat {small}/{run.id}/{name} | wc -c"], user="root", check=False)
        return int(seen.stdout)

    def same() -> bool:
        (events,) = (run.tensorboard / "train").iterdir()
        return here(f"tensorboard/train/{events.name}") == events.stat().st_size

    shelf.log(run, 2)
    wait_until(same, lambda: program.told)
    laptop.unplug()
    program.wait_for("There is no connection to watched")
    shelf.log(run, 3)
    laptop.plug_in_again()
    wait_until(same, lambda: program.told)

    run.plots.mkdir()
    (run.plots / "large.png").write_bytes(os.urandom(200_000))
    shelf.log(run, 4)
    program.wait_for("the disk is full")
    once = laptop.truba("pull", "--from", "login", "followed", "--into", str(small))
    assert once.returncode == 1 and "Free some space" in once.stderr and "Traceback" not in once.stderr
    laptop.cluster.run(["mount", "-o", "remount,size=2m", str(small)], user="root")
    program.wait_for("copying again")
    wait_until(lambda: same() and here("plots/large.png") == 200_000, lambda: program.told)
    shelf.finish(run)
    assert program.process.wait(240) == 0, "it ends when the run is over"
    all_end(laptop)


def test_pulled_curves_are_followed_in_a_page_served_here(laptop: Laptop, shelf: Shelf, waiting_job: str) -> None:
    shelf.run("alpha-0000000a")
    time.sleep(0.02)
    run = shelf.run("zeta-0000000a", waiting_job)
    program = laptop.start("tensorboard", "--from", "login", "--pull")
    url = program.url()
    assert laptop.far_servers() == []
    page = laptop.browse()
    try:
        page.open(url)
        page.wait_until(CHART)
        shown = page.evaluate("document.querySelector('runs-data-table').innerText")
        assert -1 < shown.index("zeta/train") < shown.index("alpha/train"), "the newest first"
        shelf.log(run, 2)
        page.wait_for_answer("timeSeries", lambda answer: len(points("zeta/train", "epoch_loss")(answer) or ()) == 2)
    finally:
        page.close()
    assert program.interrupt() == 0, program.told
    all_end(laptop)


def test_what_cannot_be_is_said_in_one_paragraph(laptop: Laptop, shelf: Shelf) -> None:
    shelf.run("real-0000000a")
    stand_in = laptop.home / "bin"
    stand_in.mkdir()
    (stand_in / "ssh").write_text("#!/bin/sh\necho 'OpenSSH_6.6.1p1, OpenSSL 1.0' >&2\n")
    (stand_in / "ssh").chmod(0o755)
    without = laptop.cluster.scratch("ayse") / "without"
    (without / "tensorboard").mkdir(parents=True)
    (without / "tensorboard" / "__init__.py").write_text("raise ImportError('no such thing')\n")
    subprocess.run(["chown", "-R", f"{AYSE}", str(without)], check=True)
    no_tensorboard = f"PYTHONPATH={without}:$PYTHONPATH truba"
    cases = [
        (["--from", "login", "unreal"], {}, 1, "Did you mean real"),
        (["--from", "nowhere.invalid", "real"], {}, 1, "there is no connection to nowhere.invalid"),
        (["--from", "stranger", "real"], {}, 1, "Host key verification failed"),
        (["--from=-oProxyCommand=false", "real"], {}, 2, "this is not a name for ssh"),
        (["--from", "login", "real"], {"PATH": f"{stand_in}:/usr/bin:/bin"}, 1, "OpenSSH can since 6.7"),
        (["--from", "login", "--far-command", "turba", "real"], {}, 1, "does not find truba"),
        (["--from", "login", "--far-command", no_tensorboard, "real"], {}, 1, "truba_runner[tensorboard]"),
        (["--from", "login", "--far-command", "kill -9 $$;", "real"], {}, 1, "ended soon after its start"),
        (["--from", "closed", "real"], {}, 1, "does not let ssh reach the server's socket"),
        (["--pull", "real"], {}, 2, "Add --from LOGIN"),
    ]
    for arguments, variables, status, words in cases:
        done = laptop.truba("tensorboard", *arguments, **variables)
        assert (done.returncode, words in done.stderr) == (status, True), (arguments, done)
        assert "Traceback" not in done.stderr and not (laptop.home / ".ssh" / "known_hosts.old").exists()
    all_end(laptop)
