"""`truba nodes`: the list of bad nodes, and a node taken off it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from truba_runner.cli.main import main
from truba_runner.config.composing.compose import composed
from truba_runner.nodes.fault import Fault
from truba_runner.nodes.ledger import DAY_SECONDS, bad_nodes, record_bad

NOW = time.time()


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    record_bad(tmp_path, "", Fault("akya2", "clock", "9 s late", NOW - 7200))
    record_bad(tmp_path, str(tmp_path / "shared"), Fault("akya2", "gpus", "3 of 4 GPUs", NOW - 3600))
    return tmp_path


def nodes(runs: Path, *arguments: str) -> int:
    own = ["cluster=local", "cluster.bad_nodes=shared", "cluster.bad_nodes_days=2"]
    return main(["nodes", *own, "--runs", str(runs), *arguments])


def test_the_list(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nodes(runs) == 0
    out = capsys.readouterr().out
    assert "akya2  gpus: 3 of 4 GPUs" in out and ".nodes/bad.jsonl" in out and "shared" in out
    assert nodes(runs, "--json") == 0
    (one,) = json.loads(capsys.readouterr().out)["bad"]
    assert (one["node"], one["check"], one["times"], one["first"]) == ("akya2", "gpus", 2, NOW - 7200)
    assert one["until"] == NOW - 3600 + 2 * DAY_SECONDS and len(one["files"]) == 2


def test_a_node_is_taken_off_both_lists(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nodes(runs, "--forget", "akya3") == 2
    assert "akya3" in capsys.readouterr().err and bad_nodes(runs, "", 7.0)
    assert nodes(runs, "--forget", "akya2") == 0
    assert capsys.readouterr().out == "no node is known as bad\n"
    assert not bad_nodes(runs, "", 7.0) and not bad_nodes(runs / "none", str(runs / "shared"), 7.0)


def test_a_shared_list_is_named_for_jobs_too_which_start_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ayse")
    for named, path in (("shared", tmp_path / "shared"), ("'~/shared'", Path("/home/ayse/shared")), ("", "")):
        own = ["cluster.runs_folder=/r", "data.folder=/d", f"cluster.bad_nodes={named}"]
        assert composed(["+experiment=mnist", *own]).cluster.bad_nodes == str(path)
