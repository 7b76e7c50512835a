"""A damaged record costs its own run a row, and no other anything, in every command that lists or reads runs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import damaged_runs
import pytest
import yaml
from damaged_runs import TIME, make_run, make_search, make_sweep

from truba_runner import damage, places, record_files, safe_files, scheduler
from truba_runner.__main__ import main
from truba_runner.report import content
from truba_runner.rundir import RunDir
from truba_runner.tensorboard import chosen

# What commands read of a config, in small: of a whole one the reading takes ten times as long.
CONFIG = yaml.safe_dump(
    {
        "name": "mnist",
        "job": {"module": "jobs.mnist", "backend": "keras", "options": {"dropout": 0.2}},
        "data": {"name": "mnist", "folder": "/data", "options": {}},
        "train": {"epochs": 2, "seed": 1},
        "checkpoint": {"keep": 2},
        "resources": {"partition": "akya-cuda"},
        "cluster": {"runs_folder": "/runs", "scratch": "/", "scratch_days": 30, "acknowledgement": "Thanks."},
    }
).encode()
OF_A_RUN = (
    "submissions.jsonl",
    "progress.json",
    "result.json",
    "history.csv",
    "run.yaml",
    "lr_find_find.json",
    "pulled.json",
)
OF_A_SEARCH = (
    *["state.json"] * 6,
    "submissions.jsonl",
    "run.yaml",
    "trials/0000/progress.json",
    "trials/0000/history.csv",
)
OF_A_SWEEP = ("sweep.json", "submissions.jsonl")
# The quick part (make check) has fewer: all of them take a minute.
RECORDS, AT_ONCE = int(os.environ.get("TRUBA_TEST_RECORDS", "2000")), 100
SOUND = ("good-00000000", "bad-00000000", "hunt-00000000", "swept-0000000f", *(f"swept-0000000{n}" for n in range(3)))


def answer(argv: Sequence[str], **_more: object) -> str:
    """Slurm's, which knows nothing of any job."""
    assert not any("\0" in word for word in argv), "subprocess would raise"
    return ""


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs, a search and a sweep, whose jobs Slurm has forgotten."""
    monkeypatch.setattr(scheduler, "query", answer)
    # Half a second each.
    monkeypatch.setattr(content, "draw", lambda shown, file: file.write_bytes(b"") or file)
    folder = tmp_path / "runs"
    make_run(RunDir(folder / "good-00000000"), "100", CONFIG)
    make_run(RunDir(folder / "bad-00000000"), "101", CONFIG, finished=False)
    make_search(folder / "hunt-00000000", CONFIG)
    make_sweep(folder, "swept", 200, CONFIG)
    return folder


class Given:
    """Commands in this process. What a terminal cannot show is not their matter: any text may be printed."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs

    def __call__(self, command: str, *arguments: str) -> tuple[int, str, str]:
        """Exit status, output, and what was said beside it; an exception that gets out of it is the test's."""
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", write_through=True) for _ in range(2))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main([command, "--runs", str(self._runs), *arguments])
        assert status in {0, 1, 2}
        told = [one.buffer.getvalue().decode() for one in (out, err)]  # type: ignore[attr-defined]
        return status, told[0], told[1]

    def rows(self, command: str, key: str = "") -> list[dict[str, Any]]:
        """What a command that lists says of the sound runs."""
        status, out, err = self(command, "--json")
        assert status == 0, err
        told = json.loads(out)
        return [row for row in (told[key] if key else told) if "victim" not in json.dumps(row)]

    def listings(self) -> list[Any]:
        """What the commands that list say of them."""
        return [self.rows("status"), self.rows("usage", "usage"), self.rows("expiring")]


def victims(runs: Path, chance: random.Random) -> Iterator[tuple[str, str]]:
    """Puts as many runs, searches and sweeps among the others as are looked at together; each with a spoilt record."""
    for number in range(AT_ONCE):
        kind, name = chance.choice(["run"] * 9 + ["search", "search", "sweep"]), f"victim-{number:08d}"
        if kind == "run":
            path = Path(shutil.copytree(runs / chance.choice(SOUND[:2]), runs / name))
            if number % 7 == 0:
                (path / "pulled.json").write_text(json.dumps({"from": "arf", "runs_folder": "/x", "time": TIME}))
            files = [path / one for one in OF_A_RUN if (path / one).exists()]
        elif kind == "search":
            path = make_search(runs / name, CONFIG).path
            files = [path / one for one in (*OF_A_SEARCH, f"workers/{name}-w0/submissions.jsonl")]
        else:
            path = make_sweep(runs, f"victim{number}", 200, CONFIG).path
            files = [path / one for one in OF_A_SWEEP]
        yield path.name, damaged_runs.damage(chance.choice(files), chance)


def test_a_run_that_vanishes_meanwhile_is_a_row(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, listed = Given(runs), places.runs(runs)
    whole = given.rows("status")
    shutil.rmtree(runs / "bad-00000000")
    monkeypatch.setattr(places, "runs", lambda runs_folder=None: listed)
    rows = {row["run"]: row for row in given.rows("status")}
    assert rows["bad-00000000"]["state"] == "DAMAGED" and "not there" in rows["bad-00000000"]["why"]
    del rows["bad-00000000"]
    assert [row for row in whole if row["run"] in rows] == list(rows.values())
    for command in ("usage", "expiring", "clean", "pull --list"):
        assert given(*command.split())[0] == 0


@pytest.mark.parametrize("gone", ["bad-00000000", "swept-00000000"])
@pytest.mark.parametrize(
    "command",
    ["report swept-sweep", "keep good-00000000 bad-00000000 swept-sweep", "expiring", "usage", "status", "clean --json",
     "pull --list", "why good bad swept-sweep", "cancel -y good bad swept-sweep"],
)  # fmt: skip
def test_a_run_that_vanishes_while_it_is_read_is_its_own_loss(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, gone: str
) -> None:
    """Before each of the files that a command opens in it, in turn."""
    given, opened = Given(runs), safe_files.opened
    into = {"report": ["--out", str(tmp_path / "report.html")], "keep": ["--to", str(tmp_path / "kept")]}
    (tmp_path / "aside").mkdir()
    looks, moment = 1, 0
    while moment < looks:
        looks, moment = 0, moment + 1

        def vanishing(path: Path, within: Path, at: int = moment) -> int:
            nonlocal looks
            looks += gone in path.parts
            if looks == at and (runs / gone).exists():
                (runs / gone).rename(tmp_path / "aside" / gone)
            return opened(path, within)

        monkeypatch.setattr(safe_files, "opened", vanishing)
        record_files._events.cache_clear()
        damage._of_run.cache_clear()
        status, out, err = given(*command.split(), *into.get(command.split()[0], []))
        if (tmp_path / "aside" / gone).exists():
            (tmp_path / "aside" / gone).rename(runs / gone)
        if command.startswith("keep"):
            assert {"good-00000000.tar", "swept-sweep-00000000.tar"} <= set(os.listdir(tmp_path / "kept"))
            shutil.rmtree(tmp_path / "kept")
            assert status == 0 or gone == "bad-00000000", err
        else:
            assert status == 0, (moment, err)
            assert command in {"expiring", "clean --json"} or any(
                one in out for one in ("good", "swept", "report.html")
            )


def test_a_name_that_no_process_can_be_given_is_damage(runs: Path) -> None:
    given = Given(runs)
    file = runs / "bad-00000000" / "submissions.jsonl"
    file.write_text(file.read_text().replace('"account": "abc"', '"account": "a\\u0000b"'))
    (damaged,) = [row for row in given.rows("status") if row["state"] == "DAMAGED"]
    assert damaged["run"] == "bad-00000000" and "account='a\\x00b'" in damaged["why"]
    assert given("usage")[0] == 0
    with pytest.raises(scheduler.SlurmError, match="NUL"):
        scheduler.run(["sacctmgr", "show", "assoc", "account=a\0b"])


@pytest.mark.parametrize(
    "file, content",
    [("submissions.jsonl", '{"event": "submitted", "token": "t"}'), ("progress.json", "[" * 100_000),
     ("result.json", '{"metrics": {"loss": "text"}}'), ("history.csv", "epoch,loss\n1,text\n"),
     ("result.json", '{"met')],
)  # fmt: skip
def test_a_damaged_run_is_a_row_with_the_reason(runs: Path, file: str, content: str) -> None:
    given = Given(runs)
    whole = given.rows("status")
    (runs / "bad-00000000" / file).write_text(content)
    rows = given.rows("status")
    (damaged,) = [row for row in rows if row["state"] == "DAMAGED"]
    assert damaged["run"] == "bad-00000000" and file in damaged["why"]
    assert [row for row in rows if row is not damaged] == [row for row in whole if row["run"] != "bad-00000000"]
    assert "DAMAGED" in given("why", "bad")[1] and "DAMAGED" in given("logs", "bad")[2]


def alone(given: Given, name: str, of_sweep: bool, is_search: bool, into: Path) -> None:
    """The commands that look at one."""
    if not of_sweep:
        for command in ("logs", "diff", *(["best"] if is_search else [])):
            given(command, name)
    if of_sweep or is_search:  # Of a run it is the row that the list has.
        given("status", name)
    given("clean", name)
    given("report", name, "--out", str(into / "report.html"))
    given("keep", name, "--to", str(into / "kept"))


def clear(runs: Path) -> None:
    for path in (*runs.glob("victim*"), *runs.glob(".sweeps/victim*")):
        shutil.rmtree(path)


def test_mutated_records_take_no_command_away(runs: Path, tmp_path: Path) -> None:
    given = Given(runs)
    whole = given.listings()
    assert [row["state"] for row in whole[0]].count("COMPLETED") == 4
    for number in range(RECORDS // AT_ONCE):
        told = dict(victims(runs, random.Random(number)))
        try:
            assert given.listings() == whole
            for command in ("clean", "pull --list", "status"):
                assert given(*command.split())[0] == 0
            chosen.named(chosen.choose([], runs))
            there = [name for name in told if "-sweep-" not in name and (runs / name).exists()]
            for command in ("why", "cancel -y"):
                given(*command.split(), *there, *SOUND[:2])
            for name in told:
                alone(given, name, "-sweep-" in name, (runs / name / "workers").is_dir(), tmp_path)
        except BaseException:
            print(number, told)
            raise
        clear(runs)
