"""Copy runs from a login node to this machine and keep the copies up to date, with the user's own ssh and rsync.

Only changes are transferred. A copy is an ordinary run directory with a file that records its origin.
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
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.runs import runs_folders
from truba_runner.runs.checkpoints import CheckpointStore
from truba_runner.runs.events import SWEEPS
from truba_runner.runs.record_files import PULLED
from truba_runner.runs.run_directory import CODE, RunDir
from truba_runner.search.directory import SearchDir
from truba_runner.storage import safe_files
from truba_runner.storage.files import write_atomically
from truba_runner.tensorboard.listing import Listed, understood
from truba_runner.tensorboard.ssh import NO_CONNECTION, NOT_FOUND, Connection, not_found, pause_seconds

_RECORDS = ("run.yaml", "submissions.jsonl", "progress.json", "history.csv", "result.json", "lr_find_*.json")
_OF_A_SEARCH = (
    "state.json", "workers/", "workers/*/", "workers/*/submissions.jsonl", "workers/*/progress.json",
    "best/", "best/experiment.yaml", "trials/",
)  # fmt: skip
# rsync's --timeout.
_SILENCE_SECONDS = 60
# How often the list of runs is refreshed.
_LIST_EVERY_SECONDS = 60.0
# Failures in a row before giving up: a login node or its disk may fail briefly, but deleted runs do not come back.
_MOST_NOT_LISTED = _MOST_INCOMPLETE = 3
# rsync's exit statuses.
_FILE_ERROR, _SIGNALLED, _PARTLY, _VANISHED = 11, 20, 23, 24
_CUT = {10, 12, _SIGNALLED, 30, 35, NO_CONNECTION}


class Cut(Exception):
    """The connection was lost, or Ctrl-C reached rsync."""


class Incomplete(Failed):
    """The login node could not read some of the files."""


class DiskFull(Exception):
    """This machine's disk is full."""


def destination(login: str, into: Path | None) -> Path:
    """Return the folder for copies from a login node: `into`, or by default one per login node in the home."""
    return (into or Path.home() / "truba_pulled" / login).absolute()


class Puller:
    """Copies the runs that `wanted` selects into a local folder."""

    def __init__(
        self,
        connection: Connection,
        wanted: Sequence[str],
        into: Path,
        far_command: str,
        far_runs: str,
        checkpoints: bool,
    ) -> None:
        """`far_command` starts truba on the login node; `far_runs` is a runs folder there, or empty for all known ones.

        Raises:
            truba_runner.errors.Failed: rsync is not installed on this machine.
        """
        if shutil.which("rsync") is None:
            raise Failed("there is no rsync on this machine; install it")
        self._connection, self._wanted, self._into = connection, list(wanted), into
        self._far_command, self._far_runs, self._checkpoints = far_command, far_runs, checkpoints
        self._listed: list[Listed] = []
        # How often in a row refreshing the list failed.
        self._not_listed = 0
        self._asked = -_LIST_EVERY_SECONDS

    def runs(self) -> list[RunDir]:
        """Return the local copies."""
        found = [RunDir(self._into / name) for one in self._listed for name in (*one.runs, *one.searches)]
        return [run for run in found if safe_files.is_file(run.submissions_file)]

    def once(self) -> None:
        """Copy what is new.

        Raises:
            truba_runner.tensorboard.pulling.Cut: the connection was lost; copied files stay, the next call continues.
            truba_runner.tensorboard.pulling.DiskFull: this machine's disk is full.
            truba_runner.errors.Failed: the login node has no such run, no truba or no rsync.
        """
        if not self._connection.alive():
            self._connection.close()
            self._connection.open()
            if not self._connection.wait_until_open():
                raise Cut
            self._asked = -_LIST_EVERY_SECONDS
        if time.monotonic() - self._asked >= _LIST_EVERY_SECONDS:
            self._listed = self._list(self._wanted) if not self._listed else self._list_again()
            self._asked = time.monotonic()
        try:
            self._into.mkdir(mode=0o700, parents=True, exist_ok=True)
            runs_folders.remember(self._into)
            for one in self._listed:
                try:
                    self._copy(one)
                except BaseException:
                    # Even a partial copy must not look like a run of this machine.
                    self._mark(one, whole=False)
                    raise
                self._mark(one)
                if self._checkpoints:
                    self._retire(one)
        except OSError as error:
            raise _as_full(error) from error

    def first(self) -> None:
        """Copy once, with every error reported as Failed.

        Raises:
            truba_runner.errors.Failed: copying failed; the files copied so far stay.
        """
        try:
            self.once()
        except (Cut, DiskFull) as error:
            raise Failed(interruption_message(error, self._connection.login, self._into)) from error

    def follow(self, every_seconds: float, ended: threading.Event, for_new_ones: bool = False) -> None:
        """Copy repeatedly until all runs are finished or `ended` is set; retry after a lost connection or a full disk.

        With `for_new_ones`, also continue when all are finished, but once a minute: `wanted` may select new runs.
        """
        attempt = incomplete = 0
        while not ended.is_set():
            pause = every_seconds
            try:
                self.once()
                if attempt:
                    say(_("copying again"))
                attempt = incomplete = 0
                if self.over():
                    if not for_new_ones:
                        return
                    pause = _LIST_EVERY_SECONDS
            except Incomplete as error:
                incomplete += 1
                if incomplete == _MOST_INCOMPLETE:
                    raise
                say(f"{error}\n" + _("Trying again (Ctrl-C ends it)."))
            except (Cut, DiskFull) as error:
                # Ctrl-C reaches rsync too, and before it sets `ended`.
                if ended.wait(1):
                    return
                if not attempt:
                    say(
                        interruption_message(error, self._connection.login, self._into)
                        + " "
                        + _("Trying again (Ctrl-C ends it).")
                    )
                pause = max(pause_seconds(attempt), every_seconds / 10)
                attempt += 1
            ended.wait(pause)

    def over(self) -> bool:
        """Return whether no run can still change: each has a result, or was not live when the runs were last listed."""
        live = {name for one in self._listed for name in one.live}
        return all(run.result() or run.id not in live for run in self.runs())

    @contextmanager
    def following(self, every_seconds: float) -> Iterator[None]:
        """Follow the runs in a background thread, and look for new ones when all are finished."""
        ended = threading.Event()

        def follow() -> None:
            try:
                self.follow(every_seconds, ended, for_new_ones=True)
            except (Failed, OSError) as error:
                say(_("The files are no longer updated: {error}", error=error))

        thread = threading.Thread(target=follow, name="pull", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            self._connection.close()
            thread.join(10)

    def _list(self, wanted: Sequence[str]) -> list[Listed]:
        options = ["pull", "--list", *([f"--runs={self._far_runs}"] if self._far_runs else []), "--", *wanted]
        done = self._connection.run(f"{self._far_command} {shlex.join(options)}")
        login, found = self._connection.login, understood(done.stdout)
        if done.returncode == NO_CONNECTION:
            if self._connection.is_gone():
                raise Cut
            message = _("{login} ends truba before it has listed the runs: perhaps it does not allow such processes.")
            raise Failed(message.format(login=login))
        if done.returncode == NOT_FOUND:
            raise Failed(not_found(login))
        if done.returncode or found is None:
            raise Failed("truba on {login} could not list the runs: its error message is printed above", login=login)
        names = Counter(name for one in found for name in (*one.runs, *one.searches))
        if twice := [name for name, count in names.items() if count > 1]:
            folders = _(" or ").join(
                f"--runs {one.runs_folder}" for one in found if twice[0] in (*one.runs, *one.searches)
            )
            message = _("{run}: {login} has several runs of this name. Choose a folder: {folders}.")
            raise Failed(message.format(run=twice[0], login=login, folders=folders))
        return found

    def _list_again(self) -> list[Listed]:
        """List the runs again; if a name has become ambiguous or selects none, list the runs selected so far."""
        meant_so_far = [name for one in self._listed for name in (*one.runs, *one.searches)]
        for wanted in (self._wanted, meant_so_far):
            try:
                found = self._list(wanted)
            except Failed as error:
                failure = error
            else:
                self._wanted, self._not_listed = wanted, 0
                return found
        self._not_listed += 1
        if self._not_listed == _MOST_NOT_LISTED:
            raise failure
        return self._listed

    def _copy(self, one: Listed) -> None:
        argv = [
            "rsync", "--recursive", "--no-links", "--times", "--compress", "--partial-dir=.rsync-partial",
            "--protect-args", f"--timeout={_SILENCE_SECONDS}", "--chmod=D0700,F0600", "--filter=merge -",
            f"--rsh={shlex.join(self._connection.transport())}",
            f"{self._connection.login}:{one.runs_folder}/", f"{self._into}/",
        ]  # fmt: skip
        rules = "\n".join(self._rules(one)) + "\n"
        done = subprocess.run(
            argv, input=rules, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
        )
        if done.returncode == _FILE_ERROR or "No space left" in done.stderr or "Disk quota exceeded" in done.stderr:
            raise DiskFull
        # Old versions of rsync report a lost connection if the login node has no rsync.
        if (done.returncode in _CUT or done.returncode < 0) and "not found" not in done.stderr:
            raise Cut
        if done.returncode not in {0, _VANISHED}:
            kind = Incomplete if done.returncode == _PARTLY else Failed
            raise kind(
                _("rsync could not copy from {login}: {error}", login=self._connection.login, error=done.stderr.strip())
            )

    def _rules(self, one: Listed) -> Iterator[str]:
        """Return rsync's filter rules, which select the wanted files of each run.

        rsync deletes no local file: one that is missing on the login node was purged there, and the copy is all that
        is left. A resumed run empties event files instead of deleting them (`summaries.event_files.cut`) for this.
        """
        for name in one.runs:
            yield from self._run_rules(f"/{_literal(name)}/")
        for name in one.searches:
            yield from self._run_rules(f"/{_literal(name)}/")
            yield from (f"+ /{_literal(name)}/{part}" for part in _OF_A_SEARCH)
            for part in ("trials", "best"):
                yield from self._run_rules(f"/{_literal(name)}/{part}/*/")
        for name in ("", *(f"{_literal(sweep)}/" for sweep in one.sweeps)):
            yield f"+ /{SWEEPS}/{name}"
        for name in one.sweeps:
            yield from (f"+ /{SWEEPS}/{_literal(name)}/{file}" for file in ("sweep.json", "submissions.jsonl"))
        yield from (f"+ /{CODE}/{_literal(name)}" for name in ("", *one.code))
        yield "- *"

    def _run_rules(self, folder: str) -> Iterator[str]:
        yield f"+ {folder}"
        yield from (f"+ {folder}{name}" for name in _RECORDS)
        for name in ("tensorboard", "plots", *(["checkpoints"] if self._checkpoints else [])):
            yield f"- {folder}{name}/**/.*"
            yield f"- {folder}{name}/.*"
            yield f"+ {folder}{name}/***"

    def _retire(self, one: Listed) -> None:
        """Delete old checkpoints as the run itself does: it may write hundreds while it is followed."""
        for name in (*one.runs, *one.searches):
            run = RunDir(self._into / name)
            with suppress(OSError, KeyError, TypeError, ValueError):
                keep = int(run.read_config()["checkpoint"]["keep"])
                for folder in [run.checkpoints, *run.path.glob("trials/*/checkpoints")]:
                    if safe_files.is_folder(folder):
                        CheckpointStore(folder, keep).retire()

    def _mark(self, one: Listed, whole: bool = True) -> None:
        """Record the origin and time of the copies; if they are not `whole`, only of copies that have no record yet."""
        runs = [RunDir(self._into / name) for name in (*one.runs, *one.searches)]
        workers = [worker for name in one.searches for worker in SearchDir(self._into / name).workers()]
        for run in (*runs, *workers):
            if run.path.is_dir() and (whole or not run.pulled()):
                about = {"from": self._connection.login, "runs_folder": one.runs_folder, "time": time.time()}
                write_atomically(run.path / PULLED, json.dumps(about).encode() + b"\n", durable=False)


def say(words: str) -> None:
    """Print a message to stderr."""
    print(words, file=sys.stderr, flush=True)


def interruption_message(error: Exception, login: str, into: Path) -> str:
    """Return the message for a lost connection or a full disk, with its remedy."""
    if isinstance(error, DiskFull):
        return _(
            "{into}: the disk is full. Free some space; copied files stay, and the same command continues.", into=into
        )
    return _("There is no connection to {login}. Copied files stay, and the same command continues.", login=login)


def _as_full(error: OSError) -> Exception:
    return DiskFull() if error.errno in {errno.ENOSPC, errno.EDQUOT} else error


def _literal(name: str) -> str:
    return re.sub(r"([*?\[\\])", r"\\\1", name)
