"""What serving curves costs a login node, against plain `tensorboard --logdir` on the same runs.

Processor seconds and memory of the server while a page is open and one of the runs goes on, and seconds from its start
to the first chart. The page is a real Chromium's; ours looks for news every three seconds, plain TensorBoard's reloads
every thirty, which is as often as it can. Needs chromium-headless-shell. `--without-tensorflow PYTHON` measures
plain TensorBoard with that Python too: one where it is installed, and TensorFlow is not.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "slurm")]

from browser import COMMAND, Browser  # noqa: E402
from curve import Curve  # noqa: E402

from truba_runner.runs.events import Event, Kind  # noqa: E402
from truba_runner.runs.run_directory import RunDir  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")
STEPS, EPOCHS = 300, 20
# On a loopback port, that a browser here may open it; all else is as on a login node.
OURS = """
import sys
from truba_runner.__main__ import main
from truba_runner.slurm import client
from truba_runner.tensorboard import server
client.available = lambda: False
server.stay_small()
sys.exit(main(["tensorboard", "--no-browser", "--max-runs=1000", *sys.argv[1:]]))
"""
RELOADS_ITSELF = 'localStorage.setItem("_tb_global_settings", \'{"autoReload": true, "autoReloadPeriodInMs": 30001}\')'


# What runs plain TensorBoard, by kind.
PYTHONS = {"plain": sys.executable, "plain, no data server": sys.executable}


def make_runs(folder: Path, count: int) -> Curve:
    """Runs of a sweep of twenty epochs and three hundred points by step; the curve of the one that goes on."""
    curve = None
    for index in range(count):
        run = RunDir(folder / f"made-{index:08x}")
        run.create()
        run.write_config({"name": "made", "train": {"learning_rate": 0.1 / (index + 1), "seed": index % 3}})
        run.append_submission(Event(Kind.LOCAL, job_id="local-1"), durable=False)
        for kind, points in (("train", STEPS), ("validation", EPOCHS)):
            curve = Curve(run.tensorboard, kind)
            for step in range(1, points + 1):
                curve.add(step, 1 / (step + index))
        if index < count - 1:
            run.write_result({"metrics": {}})
    assert curve is not None
    return curve


@contextmanager
def server(kind: str, runs: Path) -> Iterator[tuple[int, str]]:
    """A server and its address, once the port is open."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = [sys.executable, "-c", OURS, "--runs", str(runs), "--port", str(port)]
    if kind != "ours":
        argv = [PYTHONS[kind], "-m", "tensorboard.main", "--logdir", str(runs), "--port", str(port)]
    if kind.endswith("no data server"):
        argv += ["--load_fast=false"]
    environment = {name: value for name, value in os.environ.items() if name != "SSH_CONNECTION"}
    environment |= {"PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(runs / "state")}
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            assert process.poll() is None, kind
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        yield process.pid, f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    process = subprocess.Popen(
        ["/bin/sh", "-c", COMMAND, "sh", tempfile.mkdtemp(dir=folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    page = Browser(process)
    try:
        yield page
    finally:
        page.close()


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    children = (Path(f"/proc/{pid}/task/{pid}/children").read_text() if Path(f"/proc/{pid}").exists() else "").split()
    threads = Path(f"/proc/{pid}/task")
    more = [int(one) for thread in threads.iterdir() for one in (thread / "children").read_text().split()]
    return [pid, *(one for child in {*map(int, children), *more} for one in family(child))]


def spent(pid: int) -> float:
    """Processor seconds of a process and its descendants."""
    total = 0
    for one in family(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        total += sum(int(field) for field in fields[11:15])
    return total / TICKS


def memory_mb(pid: int) -> float:
    """Resident memory of a process and its descendants."""
    lines = [line for one in family(pid) for line in Path(f"/proc/{one}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def has_points(answer: Any) -> bool:
    return any(one.get("runToSeries") for one in answer)


def first_chart(page: Browser, url: str, kind: str) -> None:
    """Opens the page, and where it does not look again by itself opens it anew every twenty seconds."""
    page.open(url)
    while True:
        try:
            page.wait_for_answer("timeSeries", has_points, 20)
            return
        except AssertionError:
            if kind != "ours":
                page.open(url)


def open_page(kind: str, runs: Path, going: Curve, seconds: float, point_seconds: float) -> dict[str, float]:
    """Of the server, from when its first chart is there: processor seconds an hour, and memory at the end."""
    with server(kind, runs) as (pid, url), browser(runs) as page:
        if kind != "ours":
            page.open(url)
            page.evaluate(RELOADS_ITSELF)
        first_chart(page, url, kind)
        # What is loaded at the start is the other measurement's.
        time.sleep(20)
        before, began, step = spent(pid), time.monotonic(), STEPS
        while time.monotonic() - began < seconds:
            step += 1
            going.add(step, 1 / step)
            time.sleep(point_seconds)
        took = time.monotonic() - began
        return {"CPU seconds an hour": (spent(pid) - before) / took * 3600, "MB": memory_mb(pid)}


def to_first_chart(kind: str, runs: Path) -> dict[str, float]:
    """Seconds from the server's start to the page's first chart, and what they cost the server."""
    with browser(runs) as page:
        began = time.monotonic()
        with server(kind, runs) as (pid, url):
            first_chart(page, url, kind)
            return {"seconds": time.monotonic() - began, "CPU seconds": spent(pid), "MB": memory_mb(pid)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--open-seconds", type=float, default=180)
    options.add_argument("--point-seconds", type=float, default=30, help="as often as a job's event files are copied")
    options.add_argument("--runs", type=int, nargs="*", default=[1, 50, 500])
    options.add_argument("--open-runs", type=int, default=50)
    options.add_argument("--kinds", nargs="*", default=["ours", "plain", "plain, no data server"])
    options.add_argument("--without-tensorflow", metavar="PYTHON", help="a Python that has TensorBoard and not that")
    given = options.parse_args()
    if given.without_tensorflow:
        for kind in ("plain without TensorFlow", "plain without TensorFlow, no data server"):
            PYTHONS[kind] = given.without_tensorflow
            given.kinds += [kind] if kind not in given.kinds else []
    for count in given.runs:
        with tempfile.TemporaryDirectory() as folder:
            make_runs(Path(folder), count)
            measured = [(kind, to_first_chart(kind, Path(folder))) for _ in range(given.rounds) for kind in given.kinds]
        tell(f"first chart of {count} runs", measured)
    if given.open_seconds:
        with tempfile.TemporaryDirectory() as folder:
            going = make_runs(Path(folder), given.open_runs)
            measured = [
                (kind, open_page(kind, Path(folder), going, given.open_seconds, given.point_seconds))
                for _ in range(given.rounds)
                for kind in given.kinds
            ]
        every = f"a point every {given.point_seconds:g} s, {given.open_seconds:g} s measured"
        tell(f"an open page of {given.open_runs} runs, {every}", measured)


def tell(what: str, measured: list[tuple[str, dict[str, float]]]) -> None:
    """The median of each kind, and the least and the most."""
    for kind in dict.fromkeys(kind for kind, _ in measured):
        values = [value for one, value in measured if one == kind]
        words = []
        for name in values[0]:
            every = [value[name] for value in values]
            words.append(f"{name} {statistics.median(every):.3g} ({min(every):.3g}-{max(every):.3g})")
        print(f"{what}: {kind}: {', '.join(words)}", flush=True)


if __name__ == "__main__":
    main()
