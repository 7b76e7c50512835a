"""Paths and records of a run directory, written so that no reader sees half a record.

run.yaml           the resolved config
submissions.jsonl  requests to Slurm and its answers, one event per line
progress.json      state, epoch, step and metrics, replaced atomically
history.csv        one row per epoch
plots/             the history as pictures
lr_find_NAME.json  curve and suggestions of a learning-rate finder
result.json        written once, when the training has ended
logs/              output of the jobs, one file per submission and task

Records that the runs of a sweep share are in RUNS/.sweeps/SWEEP (sweep_directory.py).
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truba_runner.runs import events
from truba_runner.runs.events import Event
from truba_runner.runs.record_files import RunRecord
from truba_runner.runs.record_shapes import Damaged, ProgressRecord, RateCurve, as_record
from truba_runner.storage import private, safe_files
from truba_runner.storage.files import finite, json_bytes, write_atomically

# Folder of archives of the user's code and copies of this package (code/), in the runs folder.
CODE = ".code"


@dataclass(frozen=True)
class RunDir:
    """The records of one run. `path` is absolute; its last part is the run's id."""

    path: Path

    @property
    def id(self) -> str:
        """The run's id: `NAME-HASH`, or `NAME-HASH.N` for the Nth fresh start of the same config."""
        return self.path.name

    @property
    def config_file(self) -> Path:
        """The resolved config, YAML."""
        return self.path / "run.yaml"

    @property
    def submissions_file(self) -> Path:
        """The event log of submissions: one JSON object per line."""
        return self.path / "submissions.jsonl"

    @property
    def logs(self) -> Path:
        """The folder of the jobs' output."""
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
        """The folder of models saved during training."""
        return self.checkpoints / "models"

    def create(self) -> None:
        """Create the directory and its log folder, accessible to their owner alone.

        Raises:
            truba_runner.errors.Refused: the directory exists and is another user's, or others can write to it.
        """
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.mkdir(mode=0o700, exist_ok=True)
        private.require_own(self.path)
        self.logs.mkdir(mode=0o700, exist_ok=True)

    def exists(self) -> bool:
        """Whether the run was ever submitted: its config exists."""
        return self.config_file.exists()

    # -- config ------------------------------------------------------------------------------------------------

    def write_config(self, values: Mapping[str, Any]) -> None:
        """Write the resolved config."""
        self.write_config_text(config_text(values))

    def write_config_text(self, content: bytes, durable: bool = True) -> None:
        """Write the resolved config, given as the text that `config_text` returns."""
        write_atomically(self.config_file, content, durable)

    def read_config(self) -> dict[str, Any]:
        """Return the config that `write_config` wrote.

        Raises:
            OSError: there is no config, or it cannot be read.
            ValueError: the config is damaged.
        """
        import yaml

        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            config = yaml.load(safe_files.read(self.config_file, self.path), loader)  # noqa: S506  # Both are safe.
        except (yaml.YAMLError, RecursionError) as error:
            raise Damaged(f"{self.config_file} is damaged") from error
        if not isinstance(config, dict):
            raise Damaged(f"{self.config_file} is damaged")
        return config

    # -- submissions -------------------------------------------------------------------------------------------

    def append_submission(self, event: Event, durable: bool = True) -> None:
        """Append one event, fsynced if `durable`: it has happened, or is about to."""
        events.append(self.submissions_file, event, durable)

    def record(self) -> RunRecord:
        """Return what the run's files say now."""
        return RunRecord(self.path)

    def submissions(self) -> list[Event]:
        """Return all events, oldest first, completed by the events of the run's job arrays in its sweeps' records."""
        return self.record().events

    def submitted(self) -> Event:
        """Return the newest event that records the code; without a kind if there is none."""
        return self.record().submitted

    def is_last_given_to(self, token: str) -> bool:
        """Whether the run's last submission has this token."""
        return self.record().intent.token == token

    def log_of(self, job_id: str) -> Path:
        """Return the path, named as in Slurm, of a job's log that Slurm does not open; create its folder."""
        self.logs.mkdir(mode=0o700, exist_ok=True)
        return self.logs / f"{job_id}_0_log.out"

    # -- progress, history, result -----------------------------------------------------------------------------

    def write_progress(self, progress: ProgressRecord) -> None:
        """Replace the progress record, without fsync: training waits for this write, and the next follows soon."""
        write_atomically(self.path / "progress.json", json_bytes(as_record(progress)), durable=False)

    def overwrite_progress(self, progress: ProgressRecord) -> None:
        """Overwrite the progress record in place: a full disk has room for that. A reader may see half of it.

        Raises:
            OSError: there is no progress record, or it is not writable.
        """
        handle = os.open(self.path / "progress.json", os.O_RDWR | os.O_NOFOLLOW)
        with os.fdopen(handle, "r+b") as file:
            file.write(json_bytes(as_record(progress)))
            file.truncate()

    def progress(self) -> ProgressRecord:
        """Return the progress record; without any value if no job has begun, or the record is damaged."""
        return self.record().any_progress

    def pulled(self) -> dict[str, Any]:
        """Return from where and when the run was copied to this machine; empty if it was submitted here."""
        return self.record().pulled

    def write_history(self, rows: list[dict[str, Any]], durable: bool = True) -> None:
        """Replace the history: one row per epoch, with the columns of all rows."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path / "history.csv", text.getvalue().encode(), durable)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write the run's result, whose presence means that the run is finished."""
        write_atomically(self.path / "result.json", json_bytes(result))

    def result(self) -> dict[str, Any]:
        """Return all entries of the run's result; none until the run is finished, or if the record is damaged."""
        return dict(self.record().result.entries)

    # -- learning rates ----------------------------------------------------------------------------------------

    def write_rate_curve(self, name: str, curve: RateCurve) -> None:
        """Write a learning-rate finder's curve."""
        write_atomically(self.path / f"lr_find_{name}.json", json.dumps(finite(vars(curve))).encode())

    def rate_curve(self, name: str) -> RateCurve | None:
        """Return what `write_rate_curve` wrote; None if no finder of this name has ended."""
        return self.record().rate_curve(name)

    def finder(self) -> RunDir | None:
        """Return the finder run of this run's last submission; None if it needs no learning rate, or finds its own."""
        name = self.record().finder
        return RunDir(self.path.parent / name) if name else None

    def found_rate(self) -> Event:
        """Return the event with the `learning_rate` that this run took from a finder; without one if it took none."""
        return self.record().found_rate


def config_text(values: Mapping[str, Any]) -> bytes:
    """Return a config, or some of its top-level keys, as YAML."""
    import yaml

    # libyaml's dumper is ten times as fast, if PyYAML was built with it.
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text: bytes = yaml.dump(dict(values), Dumper=dumper, sort_keys=False, allow_unicode=True, encoding="utf-8")
    return text
