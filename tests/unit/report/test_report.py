"""The report of a run and of a sweep: what it says, and that it needs no other file."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from truba_runner.cli.main import main
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.sweep_directory import Member, SweepDir
from truba_runner.slurm import jobs
from truba_runner.slurm.jobs import Use

THANKS = "The numerical calculations were performed at TRUBA."
PNG = b"\x89PNG\r\n\x1a\n of a matrix"


class Parts(HTMLParser):
    """Tags with their attributes, the table cells in rows, and the text of what is preformatted."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self._into: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        self._into = self.rows[-1] if tag in {"td", "th"} else self._into

    def handle_endtag(self, tag: str) -> None:
        self._into = None if tag in {"td", "th"} else self._into

    def handle_data(self, data: str) -> None:
        if self._into is not None:
            self._into.append(data)


def trained(run: RunDir, loss: float, *, job_id: str = "7") -> None:
    run.create()
    run.write_config({"name": "mnist", "cluster": {"acknowledgement": THANKS}, "train": {"note": "<b>&"}})
    git = {"commit": "abc123", "dirty": True}
    run.append_submission(Event(Kind.INTENT, time=1e9, token="t", job_name="j", job_file="/jobs/mnist.py", git=git))
    run.append_submission(Event(Kind.SUBMITTED, token="t", job_id=job_id))
    for start in ([0, 0], [1, 4]):
        run.append_submission(Event(Kind.STARTED, time=1e9, job_id=job_id, position=start, host="akya1", steps_lost=3))
    run.write_history([{"epoch": epoch, "val_loss": loss + epoch} for epoch in (1, 2)])
    run.write_result({"metrics": {"val_loss": loss}, "versions": {"keras": "3.15.1"}})


@pytest.fixture(autouse=True)
def accounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm's accounting as it answers; it is asked itself in tests/slurm."""
    monkeypatch.setattr(jobs, "queue", dict)
    monkeypatch.setattr(jobs, "accounting", lambda ids: {})
    known = {"7": Use(2, 36_000, 3_600), "8_0": Use(1, 7_200, 720), "9": Use(1, 3_600, 0)}
    monkeypatch.setattr(jobs, "used", lambda ids: {one: known[one] for one in ids if one in known})


def test_a_runs_report_tells_all_and_fetches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(tmp_path / "runs" / "mnist-00000000")
    trained(run, 0.25)
    run.plots.mkdir()
    (run.plots / "confusion_matrix.png").write_bytes(PNG)
    assert main(["report", "mnist", "--runs", str(run.path.parent)]) == 0
    file = Path(capsys.readouterr().out.strip())
    assert file == run.path / "report.html" and file.stat().st_mode & 0o777 == 0o600
    text = file.read_text()
    parts = Parts(text)
    facts = {row[0]: row[1:] for row in parts.rows if row}
    assert facts["state"] == ["COMPLETED"] and facts["val_loss"] == ["0.25"] and facts["keras"] == ["3.15.1"]
    assert facts["core-hours"] == ["10.00"] and facts["GPU-hours"] == ["1.00"]
    assert facts["restarts"] == ["1"] and facts["steps trained again"] == ["6"]
    assert facts["git commit"] == ["abc123, with uncommitted changes"]
    assert ["7", "akya1", "epoch 2, step 4"] in [row[1:] for row in parts.rows]
    assert THANKS in text and "&lt;b&gt;&amp;" in text and "<b>" not in text
    sources = [str(attributes["src"]) for tag, attributes in parts.tags if tag == "img"]
    # The matrix that the job drew, and the curves, which it had not.
    pictures = [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources]
    assert len(pictures) == 2 and PNG in pictures and all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in parts.tags} and not re.search(r"https?://", text)


def test_a_sweeps_report_has_its_runs_best_first_with_what_each_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = SweepDir.of(tmp_path / "runs", "mnist-sweep-00000000")
    members = [Member(f"mnist-{number}", {"train.rate": rate}) for number, rate in enumerate((0.1, 0.01))]
    sweep.describe(members, name="mnist", monitor="val_loss", mode="min")
    trained(sweep.run("mnist-0"), 0.5, job_id="8_0")
    trained(sweep.run("mnist-1"), 0.25, job_id="7")
    out = tmp_path / "sent.html"
    assert main(["report", sweep.id, "--runs", str(sweep.runs_folder), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    parts, text = Parts(out.read_text()), out.read_text()
    runs = [row for row in parts.rows if row and row[0].startswith("mnist-")]
    assert [row[:2] for row in runs] == [["mnist-1", "0.01"], ["mnist-0", "0.1"]]
    assert [row[-1] for row in runs] == ["10.00", "2.00"]
    assert "The best run, mnist-1" in text and THANKS in text
    assert {row[0]: row[1:] for row in parts.rows if row}["core-hours"] == ["12.00"]


def test_a_sweeps_cost_is_that_of_its_finders_and_sweeper_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = SweepDir.of(tmp_path / "runs", "mnist-sweep-00000000")
    sweep.describe([Member("mnist-0", {"train.seed": 0}, "mnist-lr_find-0", "valley")], monitor="val_loss", mode="min")
    trained(sweep.run("mnist-0"), 0.5, job_id="8_0")
    sweep.run("mnist-0").append_submission(Event(Kind.FOUND_RATE, learning_rate=0.25, finder="mnist-lr_find-0"))
    trained(sweep.run("mnist-lr_find-0"), 0.5, job_id="7")
    sweep.sweeper.create()
    sweep.sweeper.append_submission(Event(Kind.SUBMITTED, token="t", job_id="9"))
    assert main(["report", sweep.id, "--runs", str(sweep.runs_folder)]) == 0
    rows = Parts(Path(capsys.readouterr().out.strip()).read_text()).rows
    facts = {row[0]: row[1:] for row in rows if row}
    assert facts["core-hours"] == ["13.00"] and facts["starts on the cluster"] == ["4"]
    assert facts["mnist-0"][:2] == ["0", "0.25 (valley)"] and facts["mnist-0"][-1] == "2.00"


@pytest.mark.parametrize("config", [None, b"[1", b"- a list"])
def test_of_what_a_purge_has_left_there_is_a_report(
    config: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path / "runs" / "mnist-00000000")
    trained(run, 0.25)
    run.config_file.unlink() if config is None else run.config_file.write_bytes(config)
    assert main(["report", "mnist", "--runs", str(run.path.parent)]) == 0
    text = Path(capsys.readouterr().out.strip()).read_text()
    assert "0.25" in text and "Acknowledgement" not in text and ("<h2>Config" in text) == (config is not None)


def test_a_report_speaks_the_users_language(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path / "runs" / "mnist-00000000")
    trained(run, 0.25)
    run.plots.mkdir()
    (run.plots / "confusion_matrix.png").write_bytes(PNG)
    monkeypatch.setenv("TRUBA_LANG", "tr")
    assert main(["report", "mnist", "--runs", str(run.path.parent)]) == 0
    text = Path(capsys.readouterr().out.strip()).read_text()
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles == [
        "Durum", "Metrikler", "Maliyet", "Resimler", "Epoch&#x27;lar", "Başlangıçlar", "Ortam", "Yapılandırma",
        "Teşekkür",
    ]  # fmt: skip
    assert '<html lang="tr">' in text and "karışıklık matrisi" in text and "epoch 2, adım 4" in text


def test_a_report_goes_where_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(tmp_path / "runs" / "mnist-00000000")
    trained(run, 0.25)
    place = ["report", "mnist", "--runs", str(run.path.parent), "--out"]
    assert main([*place, str(tmp_path)]) == 0 and (tmp_path / "mnist-00000000.html").is_file()
    assert main([*place, str(tmp_path / "none" / "x.html")]) == 1
    assert f"{tmp_path}/none/x.html could not be written (No such file" in capsys.readouterr().err


def test_a_run_without_anything_yet_has_a_report_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(tmp_path / "runs" / "mnist-00000000")
    run.create()
    run.write_config({"name": "mnist"})
    run.append_submission(Event(Kind.LOCAL, job_id="local-1", pid=1, host="elsewhere"))
    assert main(["report", "mnist", "--runs", str(run.path.parent)]) == 0
    text = Path(capsys.readouterr().out.strip()).read_text()
    assert "UNKNOWN" in text and "Metrics" not in text and "Acknowledgement" not in text
