"""A run directory: where each record of a run lies, and how it is written so that a reader never sees half of one.

run.yaml           the resolved config
submissions.jsonl  what was asked of Slurm and what it answered, a line an event
progress.json      state, epoch, step and metrics, replaced atomically
history.csv        a row an epoch
plots/             the same as pictures
result.json        written once, when the training has ended
logs/              what the job printed, a file a submission and task
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: bytes) -> None:
    """Writes beside `path`, syncs and renames: `path` holds the old content or the new, never a part.

    Raises:
        OSError: the disk is full or not writable; `path` is unchanged.
    """
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def finite(value: Any) -> Any:
    """`value` with null for every number that JSON has no word for: a loss that became NaN or infinite."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class RunDir:
    """The records of one run. `path` is absolute; its last part is the run's id."""

    path: Path

    @property
    def id(self) -> str:
        """`NAME-HASH`, or `NAME-HASH.N` for the Nth fresh start of the same config."""
        return self.path.name

    @property
    def config_file(self) -> Path:
        """The resolved config, YAML."""
        return self.path / "run.yaml"

    @property
    def submissions_file(self) -> Path:
        """One JSON object a line."""
        return self.path / "submissions.jsonl"

    @property
    def logs(self) -> Path:
        """The folder of what the job printed."""
        return self.path / "logs"

    @property
    def tensorboard(self) -> Path:
        """The folder of event files."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def plots(self) -> Path:
        """The folder of learning curves."""
        return self.path / "plots"

    @property
    def models(self) -> Path:
        """The folder of the models that are kept on the way."""
        return self.checkpoints / "models"

    def create(self) -> None:
        """Makes the directory and its log folder, readable by their owner alone."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self.path, self.logs):
            folder.mkdir(mode=0o700, exist_ok=True)

    def exists(self) -> bool:
        """Whether something was ever submitted here."""
        return self.config_file.exists()

    # -- config ------------------------------------------------------------------------------------------------

    def write_config(self, values: Mapping[str, Any]) -> None:
        """Writes the resolved config."""
        import yaml

        dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        text = yaml.dump(dict(values), Dumper=dumper, sort_keys=False, allow_unicode=True)
        write_atomically(self.config_file, text.encode())

    def read_config(self) -> dict[str, Any]:
        """Reads what `write_config` wrote."""
        import yaml

        # libyaml's, where it is there, takes a tenth of the time.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        config: dict[str, Any] = yaml.load(self.config_file.read_text(), loader)
        return config

    # -- submissions -------------------------------------------------------------------------------------------

    def append_submission(self, event: Mapping[str, Any]) -> None:
        """Appends one event and syncs it: what is on record here has happened, or was about to."""
        line = (json.dumps(event, ensure_ascii=False) + "\n").encode()
        handle = os.open(self.submissions_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            if not self._ends_with_newline():
                line = b"\n" + line
            os.write(handle, line)
            os.fsync(handle)
        finally:
            os.close(handle)

    def _ends_with_newline(self) -> bool:
        with self.submissions_file.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return True
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def submissions(self) -> list[dict[str, Any]]:
        """Every event, oldest first. A line that a full disk or a kill cut short is passed over."""
        try:
            lines = self.submissions_file.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return []
        events = []
        for line in lines:
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(event, dict) and "event" in event:
                events.append(event)
        return events

    # -- progress, history, result -----------------------------------------------------------------------------

    def write_progress(self, progress: Mapping[str, Any]) -> None:
        """Replaces the progress record."""
        write_atomically(self.path / "progress.json", _json_bytes(progress))

    def progress(self) -> dict[str, Any]:
        """The progress record; empty where the job has not begun."""
        return _read_json(self.path / "progress.json")

    def write_history(self, rows: list[dict[str, Any]]) -> None:
        """Replaces the history: a row an epoch, the columns those of the widest row."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path / "history.csv", text.getvalue().encode())

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Writes what the run came to. Its presence means that the run is finished."""
        write_atomically(self.path / "result.json", _json_bytes(result))

    def result(self) -> dict[str, Any]:
        """What the run came to; empty until it is finished."""
        return _read_json(self.path / "result.json")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):  # A damaged record, undecodable ones included, counts as none.
        return {}
    return value if isinstance(value, dict) else {}


@contextmanager
def lock(runs_folder: Path) -> Iterator[int]:
    """Holds a runs folder against other commands of its owner; yields the lock's file descriptor.

    A child that inherits the descriptor holds the lock on for as long as it lives. Where the file system has no locks
    the caller goes on without one.
    """
    runs_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(runs_folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)
