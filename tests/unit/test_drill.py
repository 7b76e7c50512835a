"""What the drill reports of two runs that are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from truba_runner.commands.drill import _print, compared
from truba_runner.rundir import RunDir


def test_what_the_interrupted_run_warned_of_stands_in_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, cut = RunDir(tmp_path / "whole-0"), RunDir(tmp_path / "cut-0")
    for run, digest in ((whole, "a"), (cut, "b")):
        run.create()
        run.write_history([{"epoch": 1, "loss": 0.5, "seconds": len(digest)}])
        counts = {"restarts": 2, "requeues": 1, "steps_lost": 3, "seconds_restoring": 0.5}
        run.write_result({"steps": 10, "weights_sha256": digest, **counts})
    (cut.logs / "1_0_log.out").write_text("WARNING: All log messages before absl::InitializeLog() is called\nepoch 1\n")
    for start in (2, 3):
        (cut.logs / f"{start}_0_log.out").write_text("epoch 1\nWARNING: the callback Own is started anew\n")
    (cut.logs / "4_0_log.out").write_text("UYARI: kayıt noktası onu bilmiyor\n")
    report = compared(whole, cut)
    assert set(report["warnings"]) == {"WARNING: the callback Own is started anew", "UYARI: kayıt noktası onu bilmiyor"}
    assert (report["same_weights"], report["same_history"]) == (False, True)
    _print(report)
    printed = capsys.readouterr().out
    assert "NO" in printed and "  WARNING: the callback Own is started anew\n" in printed
