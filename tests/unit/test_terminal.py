"""Control characters in what others have written are shown and not obeyed, and a long log takes no memory."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.table import Table

from truba_runner import terminal
from truba_runner.cli.main import commands, main
from truba_runner.nodes.fault import Fault
from truba_runner.nodes.ledger import record_bad
from truba_runner.runs import log as watch
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.record_shapes import progress_from
from truba_runner.runs.run_directory import RunDir
from truba_runner.runs.sweep_directory import Member, SweepDir
from truba_runner.terminal import shown

ROOT = Path(__file__).resolve().parents[2]
# A window's title, a cleared screen, hidden text, a bell, a backspace; C1's CSI; letters in another direction; DEL.
CODES = "\x1b]0;title\x07\x1b[2J\x1b[8m\b\x9b31m\u202e\x7f\x00"
NONE_OBEYED = re.compile(r"[^\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]*")


def test_what_a_terminal_would_obey_is_spelt() -> None:
    assert shown("a\tb\nğ é — 日本 ✓\n") == "a\tb\nğ é — 日本 ✓\n"
    assert shown("\x1b[31mred\x07") == r"\x1b[31mred\x07"
    assert shown("one\r\ntwo\rthree") == "one\ntwo\\rthree"
    assert shown("\x9b\u202e\u2066\udc9b") == r"\x9b\u202e\u2066\udc9b"
    for number in (*range(0x300), *range(0x2000, 0x2100), *range(0xD7F0, 0xE010)):
        assert NONE_OBEYED.fullmatch(shown(chr(number))), hex(number)
        assert shown(shown(chr(number))) == shown(chr(number))


def test_what_rich_prints_is_shown_and_taken_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.guarded():
        console = terminal.console()
        console.print(f"{CODES} [red]red[/] :smile:")
        console.print(Table(f"[/x]{CODES}", title=f"[b]{CODES}", box=None))
    out = capsys.readouterr().out
    assert NONE_OBEYED.fullmatch(out) and "[red]red[/] :smile:" in out and "[/x]" in out and "[b]" in out
    assert r"\x1b]0;title" in out


def test_a_table_stands_in_columns_and_wraps_the_widest(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        ("one", "日本", "short"),
        ("two", "é", "a sentence of words that is wider than the table may be"),
        ("", "", ""),
    ]
    monkeypatch.setattr(terminal, "_WIDTH", 40)
    with terminal.guarded():
        terminal.print_table(("run", f"{CODES}"[-1], "why"), rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [r" run  \x00  why", " one  日本  short"]
    assert (
        lines[2] == " two  é     a sentence of words that is" and lines[3] == " " * 12 + "wider than the table may be"
    )
    monkeypatch.setattr(terminal, "_WIDTH", 12)
    terminal.print_table(("run", "why"), [("a" * 20, "b" * 20)])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 12
    terminal.print_table(("run", "why"), [])
    assert capsys.readouterr().out == " run  why\n"


def test_on_a_terminal_the_heading_is_bold_and_the_table_as_wide_as_it(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "12")
    monkeypatch.setenv("TERM", "xterm")
    terminal.print_table(("run", "why"), [("one", "a sentence")])
    assert screen.getvalue().splitlines() == [" \x1b[1mrun  why\x1b[0m", " one  a sent", "      ence"]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two failed runs of a sweep, a finished and a waiting one, hostile wherever text is; and a Slurm like that."""
    folder = tmp_path / "runs"
    for number in range(4):
        run = RunDir(folder / f"mnist-{number}")
        run.create()
        run.write_config({"name": CODES, "train": {CODES: CODES}})
        in_events = CODES.rstrip("\0")  # With a NUL an event counts as damaged: no process could be given it.
        about = {"partition": in_events, "account": in_events}
        code = {"job_file": f"/p/{in_events}.py", "job_sha256": in_events}
        run.append_submission(Event(Kind.INTENT, 1.0, token="t", job_name="x.t", request=about, **code))
        run.append_submission(Event(Kind.SUBMITTED, token="t", job_id=str(number + 1)))
        run.log_of(str(number + 1)).write_text(
            f"epoch 1 {CODES}\nOSError: [Errno 28] No space left on device {CODES}\n"
        )
        error = {"type": f"Error{CODES}", "message": CODES, "file": CODES, "line": 1, "code": CODES}
        told = {"state": "failed", "error": error, "metrics": {CODES: 1.0}, "warning": CODES, "host": CODES, "pid": 1}
        run.write_progress(progress_from({"job_id": str(number + 1), "started": 1, "updated": 2, **told}))
        run.write_history([{"epoch": 1, CODES: 0.5}])
    RunDir(folder / "mnist-3").write_result({"metrics": {CODES: 1.0}, "notes": [CODES], "data": {"name": CODES}})
    record_bad(folder, "", Fault("akya1", CODES, CODES, time.time()))
    sweep = SweepDir(folder / ".sweeps" / "mnist-sweep-1")
    sweep.path.mkdir(parents=True)
    sweep.describe(
        [Member("mnist-0", {CODES: CODES}), Member("mnist-3", {CODES: CODES})], name="mnist", command=[CODES]
    )
    own = tmp_path / "bin"
    own.mkdir()
    queued = r"3\037PENDING\037Reason\033]0;x\007" + r"\037\033[31m" * 14 + r"\n"
    separated = r"3\037PENDING\037p\033[31m\037Reason\033]0;x\007\0371:00\0371:00:00\037\n"
    details = r"JobId=3 JobState=PENDING Reason=x\033[2J Comment=\033]0;title\007 AdminComment=\033[8m\n"
    # State, exit code, reason, partition, account, QOS, limit, elapsed, start, end, nodes, and what was asked for.
    fields = r"1|FAILED|1:0|\033[31m|\033[31m|\033[31m|\033[31m|1:00|1:00|x|x|\033[31m|1G||1\n"
    short, used = r"1|FAILED|p\033[31m|1:00|1:00|n\033[31m|1:0\n", r"1|60|4|gres/gpu=1\033[31m\n"
    for name, text in {
        "scontrol": details,
        "sinfo": r"\033[31m" + r"\037\033[31m" * 4 + r"\n",
        "sacctmgr": r"\033[31m|\033[31m\n",
    }.items():
        (own / name).write_text(f"#!/bin/sh\nprintf '{text}'\nprintf 'error \\033[31m' >&2\n")
        (own / name).chmod(0o755)
    cases = f"*ElapsedRaw*) printf '{used}';; *NodeList,ExitCode*) printf '{short}';; *) printf '{fields}';;"
    (own / "sacct").write_text(f'#!/bin/sh\ncase "$*" in {cases} esac\n')
    cases = f"*%v*) printf '{queued}';; *) printf '{separated}';;"
    (own / "squeue").write_text(f'#!/bin/sh\ncase "$*" in {cases} esac\n')
    for name in ("sacct", "squeue"):
        (own / name).chmod(0o755)
    (own / "scancel").write_text("#!/bin/sh\nprintf 'error \\033[31m\\r' >&2\nexit 1\n")
    (own / "scancel").chmod(0o755)
    monkeypatch.setenv("PATH", f"{own}:/usr/bin:/bin")
    # As the app leaves it in a process.
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    monkeypatch.chdir(tmp_path)
    return folder


# The commands of which a run, a sweep or a folder is asked about; what others there are asks for more.
ASKED: list[list[str]] = [
    ["status"], ["status", "mnist-0"], ["status", "mnist-sweep-1"], ["status", "mnist-sweep-1", "--csv"],
    ["logs", "mnist-0"], ["logs", "mnist-0", "-f"], ["logs", "mnist-2"], ["why", "mnist-0", "mnist-1", "mnist-2"],
    ["why", "mnist-sweep-1"], ["cancel", "mnist-2"], ["cancel", f"mnist{CODES}"], ["diff", "mnist-0"],
    ["keep", "mnist-0"], ["keep", "mnist-2"], ["report", "mnist-sweep-1"], ["report", "mnist-3"], ["usage"],
    ["expiring"], ["best", "mnist-0"], ["clean"], ["clean", "mnist-0"], ["pull", CODES], ["tensorboard", CODES],
    ["stage", CODES], ["doctor", CODES], ["nodes"], ["where", CODES], ["drill", CODES], [CODES],
    [f"+experiment={CODES}"],
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Glyph")  # Of a picture's labels.
@pytest.mark.parametrize("arguments", ASKED, ids=[" ".join(one).encode("unicode_escape").decode() for one in ASKED])
def test_no_command_lets_a_code_through(
    runs: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_LOOK_EVERY_SECONDS", 0.01)
    takes_runs = not arguments[0].startswith(("+", "mnist", CODES)) and arguments[0] not in {"doctor", "where", "drill"}
    with contextlib.suppress(SystemExit):
        main([*arguments, *(["--runs", str(runs)] if takes_runs and arguments[0] != "stage" else [])])
    out, err = capfd.readouterr()
    for text in (out, err):
        assert NONE_OBEYED.fullmatch(text), [line for line in text.splitlines() if not NONE_OBEYED.fullmatch(line)]
    assert out or err


def test_json_of_hostile_runs_is_json(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--json", "--runs", str(runs)]) == 0
    rows = {row["run"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["mnist-3"]["metrics"] == {CODES: 1.0}


def test_every_command_is_asked() -> None:
    assert {arguments[0] for arguments in ASKED} >= set(commands()) - {"bundle"}


def test_on_a_terminal_the_bar_is_drawn_and_what_the_log_says_is_not(runs: Path) -> None:
    controller, screen = pty.openpty()
    argv = [sys.executable, "-m", "truba_runner", "logs", "mnist-0", "-f", "--runs", str(runs)]
    run = RunDir(runs / "mnist-0")
    run.write_progress(replace(run.progress(), epoch=1, epochs=2, step=3, steps_per_epoch=9))
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(argv, stdin=screen, stdout=screen, stderr=screen, env=environment)
    os.close(screen)
    said = b""
    with contextlib.suppress(OSError):  # The last one at the terminal has gone.
        while content := os.read(controller, 65_536):
            said += content
    assert process.wait() == 0
    os.close(controller)
    codes = {code[-1:] for code in re.findall(rb"\x1b\[?[0-9;?]*.", said)}
    # Colours, the cursor's place and whether it is seen, a line that is cleared.
    assert b"\x1b[?25l" in said and codes <= {b"m", b"A", b"K", b"l", b"h"}
    assert rb"\x1b]0;title\x07\x1b[2J" in said and b"\x07" not in said and b"\x1b[8m" not in said


def test_the_word_for_an_exception_is_shown_too(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.guarded():
        sys.excepthook(ValueError, ValueError(CODES), None)
    assert capsys.readouterr().err == shown(f"ValueError: {CODES}\n")


def test_output_is_put_back_and_may_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        with terminal.guarded(), terminal.guarded():
            print("\x1b")
        assert sys.stdout is out and out.getvalue() == "\\x1b\n"
    monkeypatch.setattr(sys, "stdout", None)
    with terminal.guarded():
        print("\x1b")


def test_there_is_one_place_where_text_leaves_for_the_terminal() -> None:
    ways = re.compile(r"\bConsole\(|import .*\bConsole\b|__std(out|err)__|\.unguarded\b|rich\.print")
    found = {file.name for file in (ROOT / "truba_runner").rglob("*.py") if ways.search(file.read_text())}
    assert found == {"terminal.py"}


# -- long logs -------------------------------------------------------------------------------------------------

MEASURED = """
import re, sys
from truba_runner.__main__ import main
status = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1], file=sys.stderr)
sys.exit(status)
"""


@pytest.mark.parametrize("line", [b"epoch 3/10  loss 0.2111\n", b"step 1\r", b"no end of it "])
@pytest.mark.parametrize("more", [[], ["-f"]])
def test_a_long_log_is_not_held_in_memory(tmp_path: Path, line: bytes, more: list[str]) -> None:
    run = RunDir(tmp_path / "mnist-1")
    run.create()
    run.append_submission(Event(Kind.LOCAL, 1.0, "local-1", pid=1, host="x"))
    run.write_progress(
        progress_from({"job_id": "local-1", "state": "interrupted", "host": "x", "pid": 1, "started": 0, "updated": 1})
    )
    size = 80_000_000
    block = line * (1_000_000 // len(line))
    with run.log_of("local-1").open("wb") as log:
        while log.tell() < size:
            log.write(block)
        size = log.tell()
    argv = [sys.executable, "-c", MEASURED, "logs", "mnist-1", *more, "--runs", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout and process.stderr
        printed = sum(len(part) for part in iter(lambda: process.stdout.read(65_536), b""))  # type: ignore[union-attr]
        peak_kilobytes = int(process.stderr.read().split()[-1])
    assert process.returncode == 0 and printed == size
    assert peak_kilobytes < 60_000


def test_letters_and_line_ends_between_two_parts_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch, "_PART_BYTES", 1)
    log = tmp_path / "log"
    log.write_bytes("ğ\r\ne\rn — \xff".encode() + b"\xff\r")
    watch.show(log)
    assert capsys.readouterr().out == "ğ\ne\nn — ÿ\ufffd\n"


def test_a_log_that_is_begun_anew_or_gives_way_to_another_is_read_from_its_beginning(tmp_path: Path) -> None:
    growing = watch.Growing()
    read: Callable[[Path], str] = lambda path: "".join(growing.parts(path))  # noqa: E731
    first, second = tmp_path / "1", tmp_path / "2"
    first.write_text("one\n")
    assert (read(first), read(first)) == ("one\n", "")
    with first.open("a") as file:
        file.write("two\n")
    assert read(first) == "two\n"
    first.write_text("3\n")
    second.write_text("four and more\n")
    assert (read(first), read(second)) == ("3\n", "four and more\n")


def test_what_is_followed_is_seen_as_it_comes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, log = RunDir(tmp_path / "mnist-1"), tmp_path / "log"
    log.write_text("one\n")
    looks = iter([False, False, True])

    def ended() -> bool:
        with log.open("a") as file:
            file.write("more\n")
        return next(looks)

    watch.follow(run, lambda: log, ended)
    assert capsys.readouterr().out == "one\nmore\nmore\nmore\n"
