"""Copies runs from a login node to this machine and follows them, with the user's own ssh and rsync.

Only what is new crosses the line. What was copied is a run directory as any other, marked with where it came from.
"""

from __future__ import annotations

import errno
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truba_runner import code_archives, places
from truba_runner.errors import Failed
from truba_runner.rundir import CODE, PULLED, SWEEPS, RunDir, write_atomically
from truba_runner.search.directory import search_of
from truba_runner.tensorboard.chosen import meant
from truba_runner.tensorboard.feed import event_folders
from truba_runner.tensorboard.ssh import NO_CONNECTION, NOT_FOUND, Connection, not_found

MARK = "truba-pull "
_RECORDS = ("run.yaml", "submissions.jsonl", "progress.json", "history.csv", "result.json")
_OF_A_SEARCH = ("state.json", "workers/", "workers/*/", "workers/*/submissions.jsonl", "workers/*/progress.json")
# rsync gives a silent connection up after so long.
_SILENCE_SECONDS = 60
# Which runs there are is asked again after so long.
_LIST_EVERY_SECONDS = 60.0
_PAUSES_SECONDS = (1, 2, 4, 8, 15, 30)
# rsync's exit statuses.
_FILE_ERROR, _VANISHED = 11, 24
_CUT = {10, 12, 30, 35, NO_CONNECTION}


class Cut(Exception):
    """The connection is lost."""


class DiskFull(Exception):
    """This machine's disk has no room."""


@dataclass(frozen=True)
class Listed:
    """What of one runs folder at the far end is meant."""

    runs_folder: str
    # For each run's id, whether it has event files there.
    runs: Mapping[str, bool]
    searches: Sequence[str]
    sweeps: Sequence[str]
    # The archives of the code that was submitted with them.
    code: Sequence[str] = ()


def destination(login: str, into: Path | None) -> Path:
    """The folder for what comes from a login: `into`, or one of its own under the home."""
    return (into or Path.home() / "truba_pulled" / login).absolute()


class Puller:
    """Copies the runs that are meant by `wanted` into a folder here."""

    def __init__(
        self,
        connection: Connection,
        wanted: Sequence[str],
        into: Path,
        far_command: str,
        far_runs: str,
        checkpoints: bool,
    ) -> None:
        """`far_command` starts truba at the other end; `far_runs` is a runs folder there, empty: all that are known.

        Raises:
            Failed: there is no rsync here.
        """
        if shutil.which("rsync") is None:
            raise Failed("there is no rsync on this machine; install it")
        self._connection, self._wanted, self._into = connection, list(wanted), into
        self._far_command, self._far_runs, self._checkpoints = far_command, far_runs, checkpoints
        self._listed: list[Listed] = []
        self._asked = -_LIST_EVERY_SECONDS
        self._ended = threading.Event()

    def runs(self) -> list[RunDir]:
        """What was copied, as it lies here."""
        found = [RunDir(self._into / name) for one in self._listed for name in (*one.runs, *one.searches)]
        return [run for run in found if run.submissions_file.exists()]

    def once(self) -> None:
        """Copies what is new.

        Raises:
            Cut: the connection is lost; what has come stays, and the next time goes on.
            DiskFull: there is no room here.
            Failed: the far end has no such run, no truba or no rsync.
        """
        if not self._connection.alive():
            self._connection.close()
            self._connection.open()
            if not self._connection.wait_until_open():
                raise Cut
            self._asked = -_LIST_EVERY_SECONDS
        if time.monotonic() - self._asked >= _LIST_EVERY_SECONDS:
            self._listed = self._list()
            self._asked = time.monotonic()
        try:
            self._into.mkdir(mode=0o700, parents=True, exist_ok=True)
            for one in self._listed:
                self._copy(one)
                self._mark(one)
        except OSError as error:
            raise _as_full(error) from error
        places.remember(self._into)

    def first(self) -> None:
        """Copies for the first time, or once.

        Raises:
            Failed: it could not; what came stays.
        """
        try:
            self.once()
        except (Cut, DiskFull) as error:
            raise Failed(told(error, self._connection.login, self._into)) from error

    def follow(self, every_seconds: float, ended: threading.Event) -> None:
        """Copies again and again, until all runs are over or `ended` is set; a cut or a full disk is waited out."""
        attempt = 0
        while not ended.is_set():
            pause = every_seconds
            try:
                self.once()
                if attempt:
                    say("it goes on")
                attempt = 0
                if self.over():
                    return
            except (Cut, DiskFull) as error:
                if not attempt:
                    say(told(error, self._connection.login, self._into) + " It is tried again (Ctrl-C ends it).")
                pause = max(_PAUSES_SECONDS[min(attempt, len(_PAUSES_SECONDS) - 1)], every_seconds / 10)
                attempt += 1
            ended.wait(pause)

    def over(self) -> bool:
        """Whether no run will change any more: each has its result, or has failed."""
        runs = self.runs()
        return bool(runs) and all(run.result() or run.progress().get("state") == "failed" for run in runs)

    @contextmanager
    def following(self, every_seconds: float) -> Iterator[None]:
        """Follows in the background."""
        ended = threading.Event()

        def follow() -> None:
            try:
                self.follow(every_seconds, ended)
            except (Failed, OSError) as error:
                say(f"The files are not followed any more: {error}")

        thread = threading.Thread(target=follow, name="pull", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            self._connection.close()
            thread.join(10)

    def _list(self) -> list[Listed]:
        options = ["pull", "--list", *([f"--runs={self._far_runs}"] if self._far_runs else []), "--", *self._wanted]
        done = self._connection.run(f"{self._far_command} {shlex.join(options)}")
        lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
        if done.returncode == NO_CONNECTION:
            raise Cut
        if done.returncode == NOT_FOUND:
            raise Failed(not_found(self._connection.login))
        if done.returncode or not lines:
            raise Failed(f"{self._connection.login} cannot say which runs are meant: its own words stand above")
        return [Listed(**one) for one in json.loads(lines[-1].removeprefix(MARK))]

    def _copy(self, one: Listed) -> None:
        argv = [
            "rsync", "--recursive", "--links", "--times", "--compress", "--partial-dir=.rsync-partial", "--delete",
            f"--timeout={_SILENCE_SECONDS}", "--chmod=D0700,F0600", "--filter=merge -",
            f"--rsh={shlex.join(self._connection.transport())}",
            f"{self._connection.login}:{_quoted(one.runs_folder)}/", f"{self._into}/",
        ]  # fmt: skip
        rules = "\n".join(self._rules(one)) + "\n"
        done = subprocess.run(
            argv, input=rules, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
        )
        if done.returncode == _FILE_ERROR or "No space left" in done.stderr or "Disk quota exceeded" in done.stderr:
            raise DiskFull
        if done.returncode in _CUT and "command not found" not in done.stderr:
            raise Cut
        if done.returncode not in {0, _VANISHED}:
            raise Failed(f"rsync could not copy from {self._connection.login}: {done.stderr.strip()}")

    def _rules(self, one: Listed) -> Iterator[str]:
        """rsync's filter: of each run what is wanted. Nothing is deleted here but event files that a run took back.

        A resumed run takes back what it had written after its checkpoint. Of a run that is over all is final; where the
        far end has no event files any more they were purged, and the copies are all there is.
        """
        for name, has_events in one.runs.items():
            if has_events and not RunDir(self._into / name).result():
                yield f"risk /{_literal(name)}/tensorboard/***"
        yield "protect *"
        for name in one.runs:
            yield from self._run_rules(f"/{_literal(name)}/")
        for name in one.searches:
            yield from self._run_rules(f"/{_literal(name)}/")
            yield from (f"+ /{_literal(name)}/{part}" for part in (*_OF_A_SEARCH, "trials/"))
            yield from self._run_rules(f"/{_literal(name)}/trials/*/")
        for name in ("", *(f"{_literal(sweep)}/" for sweep in one.sweeps)):
            yield f"+ /{SWEEPS}/{name}"
        for name in one.sweeps:
            yield from (f"+ /{SWEEPS}/{_literal(name)}/{file}" for file in ("sweep.json", "submissions.jsonl"))
        yield from (f"+ /{CODE}/{name}" for name in ("", *one.code))
        yield "- *"

    def _run_rules(self, folder: str) -> Iterator[str]:
        yield f"+ {folder}"
        yield from (f"+ {folder}{name}" for name in _RECORDS)
        for name in ("tensorboard", "plots", *(["checkpoints"] if self._checkpoints else [])):
            yield f"- {folder}{name}/**/.*"
            yield f"- {folder}{name}/.*"
            yield f"+ {folder}{name}/***"

    def _mark(self, one: Listed) -> None:
        for name in (*one.runs, *one.searches):
            run = RunDir(self._into / name)
            if run.path.is_dir():
                about = {"from": self._connection.login, "runs_folder": one.runs_folder, "time": time.time()}
                write_atomically(run.path / PULLED, json.dumps(about).encode() + b"\n", durable=False)


def say(words: str) -> None:
    """Tells the user of something beside the work."""
    print(words, file=sys.stderr, flush=True)


def told(error: Exception, login: str, into: Path) -> str:
    """What a cut or a full disk means, and what helps."""
    if isinstance(error, DiskFull):
        return f"{into}: the disk is full. Make room; what has come stays, and the same command goes on."
    return f"There is no connection to {login}. What has come stays, and the same command goes on."


def _as_full(error: OSError) -> Exception:
    return DiskFull() if error.errno in {errno.ENOSPC, errno.EDQUOT} else error


def _literal(name: str) -> str:
    return re.sub(r"([*?\[\\])", r"\\\1", name)


def _quoted(path: str) -> str:
    return path if re.fullmatch(r"[\w./-]+", path, re.ASCII) else shlex.quote(path)


def listing(wanted: Sequence[str], runs_folder: Path | None) -> list[dict[str, Any]]:
    """For the near end: what of each runs folder here is meant by ids, sweeps, searches or experiments.

    Raises:
        Refused: there is no such run.
    """
    folders: dict[Path, dict[str, Any]] = {}
    for run in meant(wanted, runs_folder):
        empty: dict[str, Any] = {"runs_folder": str(run.path.parent), "runs": {}, "searches": [], "sweeps": []}
        one = folders.setdefault(run.path.parent, empty)
        if search_of(run):
            one["searches"].append(run.id)
        else:
            one["runs"][run.id] = bool(event_folders(run.tensorboard))
    for folder, one in folders.items():
        # They hold the values that runs are named by.
        one["sweeps"] = [
            sweep.id
            for sweep in places.sweeps(folder)
            if any(member.run in one["runs"] or member.run in one["searches"] for member in sweep.members())
        ]
        every = [RunDir(folder / name) for name in (*one["runs"], *one["searches"])]
        one["code"] = [path.name for path in code_archives.code_of(every)]
    return list(folders.values())


def announce(listed: Sequence[Mapping[str, Any]]) -> None:
    """Says at the far end what the near end has to know."""
    print(MARK + json.dumps(listed), flush=True)
