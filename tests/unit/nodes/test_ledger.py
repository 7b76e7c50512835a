"""The list of bad nodes: what its file may hold, who may write it, and when a node is off it."""

from __future__ import annotations

import itertools
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from truba_runner.errors import Refused
from truba_runner.nodes import ledger
from truba_runner.nodes.fault import Fault
from truba_runner.nodes.ledger import DAY_SECONDS, NODES, bad_nodes, forget, record_bad, record_healthy

NOW = time.time()


def fault(node: str, hours_ago: float = 1.0, check: str = "gpus", message: str = "no GPU") -> Fault:
    return Fault(node, check, message, NOW - 3600 * hours_ago)


def names(runs: Path, shared: str = "", days: float = 7.0) -> list[str]:
    return [one.node for one in bad_nodes(runs, shared, days)]


def own(runs: Path) -> Path:
    return runs / NODES / "bad.jsonl"


def write(runs: Path, *lines: str) -> None:
    own(runs).parent.mkdir(mode=0o700, exist_ok=True)
    own(runs).write_text("\n".join(lines))


def line(**fields: object) -> str:
    return json.dumps({"event": "bad", **vars(fault("akya1")), **fields})


def test_a_node_is_listed_with_its_faults(tmp_path: Path) -> None:
    assert record_bad(tmp_path, "", fault("akya2", 3)) == {"akya2"}
    assert record_bad(tmp_path, "", fault("akya1", 2, "clock", "9 s late")) == {"akya1", "akya2"}
    record_bad(tmp_path, "", fault("akya2", 1, "node_disk", "full"))
    first, second = bad_nodes(tmp_path, "", 7.0)
    assert first.faults == (fault("akya1", 2, "clock", "9 s late"),) and first.files == (own(tmp_path),)
    assert second.faults == (fault("akya2", 3), fault("akya2", 1, "node_disk", "full"))
    assert (second.first, second.last.check) == (NOW - 3 * 3600, "node_disk")
    assert second.until(7.0) == NOW - 3600 + 7 * DAY_SECONDS
    assert own(tmp_path).stat().st_mode & 0o777 == 0o600 and own(tmp_path).parent.stat().st_mode & 0o777 == 0o700


def test_an_entry_expires(tmp_path: Path) -> None:
    record_bad(tmp_path, "", fault("akya1", 30))
    assert names(tmp_path, days=2.0) == ["akya1"] and names(tmp_path, days=1.0) == []


def test_a_healthy_start_ends_it_and_a_later_fault_begins_anew(tmp_path: Path) -> None:
    record_bad(tmp_path, "", fault("akya1"))
    record_bad(tmp_path, "", fault("akya2"))
    record_healthy(tmp_path, "", "akya1")
    assert names(tmp_path) == ["akya2"]
    assert record_bad(tmp_path, "", Fault("akya1", "gpus", "again", time.time() + 1)) == {"akya1", "akya2"}
    assert len(bad_nodes(tmp_path, "", 7.0)[0].faults) == 1


def test_a_healthy_start_on_a_good_node_writes_nothing(tmp_path: Path) -> None:
    record_healthy(tmp_path, str(tmp_path / "shared"), "akya1")
    assert not list(tmp_path.iterdir())
    record_bad(tmp_path, "", fault("akya2"))
    before = own(tmp_path).read_bytes()
    record_healthy(tmp_path, "", "akya1")
    assert own(tmp_path).read_bytes() == before


def test_a_healthy_start_ends_a_fault_of_a_clock_that_is_ahead(tmp_path: Path) -> None:
    record_bad(tmp_path, "", fault("akya1", hours_ago=-0.5))
    record_healthy(tmp_path, "", "akya1")
    assert names(tmp_path) == []


def test_the_user_takes_a_node_off(tmp_path: Path) -> None:
    record_bad(tmp_path, "", fault("akya1"))
    assert forget(tmp_path, "", "akya1") and names(tmp_path) == []
    assert not forget(tmp_path, "", "akya1")


def test_colleagues_share_a_list(tmp_path: Path) -> None:
    mine, theirs, shared = tmp_path / "mine", tmp_path / "theirs", str(tmp_path / "bad.jsonl")
    mine.mkdir()
    theirs.mkdir()
    record_bad(mine, shared, fault("akya1"))
    record_bad(theirs, "", fault("akya2"))
    assert names(theirs, shared) == ["akya1", "akya2"] and names(theirs) == ["akya2"]
    (one,) = bad_nodes(mine, shared, 7.0)
    assert len(one.faults) == 1 and one.files == (own(mine), Path(shared))
    # A healthy start of theirs is one for me.
    record_healthy(theirs, shared, "akya1")
    assert names(mine, shared) == [] and names(theirs, shared) == ["akya2"]


@pytest.mark.parametrize(
    "damage",
    [
        "", "{", "null", "[]", "[" * 100_000, "\0\0\0", '{"event": "bad"}', '{"event": ["bad"]}', line()[:40],
        line(node="akya1,akya9"), line(node="/etc/passwd"), line(node=""), line(node=7), line(node="a[1-9]"),
        line(node="x" * 300), line(time="now"), line(time=float("nan")), line(time=1e300), line(time=-1),
        line(event="?"), line(message=None), line(check={}), line(time=NOW + 30 * DAY_SECONDS),
    ],
    ids=itertools.count(),
)  # fmt: skip
def test_lines_that_hold_no_fact_are_skipped(tmp_path: Path, damage: str) -> None:
    write(tmp_path, damage, line(node="akya7", more={"of": "another version"}), damage)
    assert names(tmp_path) == ["akya7"]
    # A line that was cut short does not take the next one with it.
    assert record_bad(tmp_path, "", fault("akya8")) == {"akya7", "akya8"}
    assert names(tmp_path) == ["akya7", "akya8"]


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    write(tmp_path, line(node="akya7"))
    with own(tmp_path).open("ab") as file:
        file.write(b"\n\xff\xfe\x80" + os.urandom(500))
    assert record_bad(tmp_path, "", Fault("akya8", "gpus", "\ud800", NOW)) == {"akya7", "akya8"}


def test_a_long_message_is_shortened(tmp_path: Path) -> None:
    record_bad(tmp_path, "", fault("akya1", message="x" * 10_000))
    assert len(bad_nodes(tmp_path, "", 7.0)[0].last.message) == 500


def test_a_list_that_cannot_be_read_is_empty(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text(line())
    (tmp_path / NODES).mkdir(mode=0o700)
    own(tmp_path).symlink_to(tmp_path / "elsewhere")
    assert names(tmp_path) == []
    assert record_bad(tmp_path, "", fault("akya5")) == {"akya5"}
    assert (tmp_path / "elsewhere").read_text() == line()
    own(tmp_path).unlink()
    os.mkfifo(own(tmp_path))
    assert names(tmp_path) == [] and record_bad(tmp_path, "", fault("akya5")) == {"akya5"}


def test_a_folder_that_others_may_write_to_is_not_used(tmp_path: Path) -> None:
    (tmp_path / NODES).mkdir()
    (tmp_path / NODES).chmod(0o777)
    assert record_bad(tmp_path, "", fault("akya1")) == {"akya1"} and not own(tmp_path).exists()
    write(tmp_path, line())
    with pytest.raises(Refused):
        forget(tmp_path, "", "akya1")


def test_a_full_disk_keeps_no_job_from_leaving(tmp_path: Path) -> None:
    record_bad(tmp_path, "", fault("akya1"))
    size, before = own(tmp_path).stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
    try:
        assert record_bad(tmp_path, "", fault("akya2")) == {"akya1", "akya2"}
        record_healthy(tmp_path, "", "akya1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert own(tmp_path).stat().st_size == size + 20
    assert names(tmp_path) == ["akya1"]
    record_bad(tmp_path, "", fault("akya3"))
    assert names(tmp_path) == ["akya1", "akya3"]


def test_a_missing_runs_folder_keeps_no_job_from_leaving(tmp_path: Path) -> None:
    assert record_bad(tmp_path / "none", str(tmp_path / "no" / "file"), fault("akya1")) == {"akya1"}
    record_healthy(tmp_path / "none", "", "akya1")


_WRITER = """
import sys, time
from pathlib import Path
from truba_runner.nodes.fault import Fault
from truba_runner.nodes.ledger import record_bad, record_healthy
runs, number = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for count in range(30):
    node = f"node{number}-{count}"
    known = record_bad(runs, str(runs / "shared"), Fault(node, "gpus", "x" * 200, time.time()))
    assert node in known and f"node{number}-0" in known, (node, len(known))
"""


@pytest.mark.parametrize("long_bytes", [1 << 16, 1 << 12])
def test_ten_jobs_write_at_once(tmp_path: Path, long_bytes: int) -> None:
    # The second time, each of them compacts the list over and over.
    writer = f"from truba_runner.nodes import ledger; ledger._LONG_BYTES = {long_bytes}\n{_WRITER}"
    argv = [sys.executable, "-c", writer, str(tmp_path)]
    jobs = [
        subprocess.Popen([*argv, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for number in range(10)
    ]
    for job in jobs:
        assert job.stdout and job.stdout.readline() == "ready\n"
    for job in jobs:
        assert job.stdin
        job.stdin.write("go\n")
        job.stdin.flush()
    for job in jobs:
        job.communicate()
        assert job.returncode == 0
    expected = {f"node{number}-{count}" for number in range(10) for count in range(30)}
    for runs, shared in ((tmp_path, ""), (tmp_path / "none", str(tmp_path / "shared"))):
        assert set(names(runs, shared)) == expected
    assert all(json.loads(text) for text in own(tmp_path).read_text().splitlines())


def test_a_long_list_is_compacted_when_it_is_written(tmp_path: Path) -> None:
    lines = [line(node="akya1", time=NOW - 1000 + count, message="x" * 200) for count in range(400)]
    lines += [line(node="akya2", time=NOW - 40 * DAY_SECONDS), line(node="akya3", time=NOW - 20 * DAY_SECONDS)]
    lines += [
        line(node="akya4", time=NOW - 90),
        line(node="akya4", time=NOW - 80, event="healthy", check="", message=""),
    ]
    write(tmp_path, *lines)
    assert own(tmp_path).stat().st_size > ledger._LONG_BYTES
    record_bad(tmp_path, "", fault("akya5"))
    kept = [json.loads(text) for text in own(tmp_path).read_text().splitlines()]
    assert [one["node"] for one in kept].count("akya1") == 10 and len(kept) == 13
    # A colleague may keep entries longer; and the end of akya4's faults ends those in the other file too.
    assert {one["node"] for one in kept} == {"akya1", "akya3", "akya4", "akya5"}
    assert names(tmp_path) == ["akya1", "akya5"] and names(tmp_path, days=30.0) == ["akya1", "akya3", "akya5"]
    assert bad_nodes(tmp_path, "", 7.0)[0].last.time == NOW - 1000 + 399


def test_only_the_end_of_a_huge_file_is_read(tmp_path: Path) -> None:
    write(tmp_path, line(node="old"), *[line(message="x" * 400)] * 3000, line(node="new"))
    assert own(tmp_path).stat().st_size > ledger._MOST_BYTES
    assert names(tmp_path) == ["akya1", "new"]
    record_bad(tmp_path, "", fault("akya2"))
    assert own(tmp_path).stat().st_size < ledger._LONG_BYTES


def test_a_node_is_taken_off_for_a_user_who_cannot_write_the_shared_list(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    record_bad(tmp_path / "none", str(shared), fault("akya1"))
    content, before = shared.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    # The shared file cannot grow; the user's own has room for one line.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content), before[1]))
    try:
        assert forget(tmp_path, str(shared), "akya1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert shared.read_bytes() == content and names(tmp_path, str(shared)) == []
    assert names(tmp_path / "none", str(shared)) == ["akya1"]


def test_a_fault_that_only_a_longer_list_still_holds_is_ended_too(tmp_path: Path) -> None:
    record_bad(tmp_path, "", fault("akya1", hours_ago=24 * 45))
    assert names(tmp_path) == [] and names(tmp_path, days=60.0) == ["akya1"]
    assert forget(tmp_path, "", "akya1") and names(tmp_path, days=60.0) == []
