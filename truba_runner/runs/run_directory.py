"""A run directory: where each record of a run lies, and how it is written so that a reader never sees half of one.

run.yaml           the resolved config
submissions.jsonl  what was asked of Slurm and what it answered, a line an event
progress.json      state, epoch, step and metrics, replaced atomically
history.csv        a row an epoch
plots/             the same as pictures
lr_find_NAME.json  what a learning-rate finder has found: its curve and its suggestions
result.json        written once, when the training has ended
logs/              what the job printed, a file a submission and task

What the runs of a sweep share is in RUNS/.sweeps/SWEEP (sweeps/record.py).
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

from truba_runner.runs import events, record_files, record_shapes
from truba_runner.storage import private, safe_files
from truba_runner.storage.files import _json_bytes, finite, write_atomically

# The folder of the sweeps' own records, in the runs folder.
SWEEPS = ".sweeps"
# The folder of archives of code (code_archives.py), in the runs folder, and the file that `lock` holds.
CODE = ".code"
# In a run directory that was copied from a login node: from where, and when.
PULLED = "pulled.json"


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
        """Makes the directory and its log folder, readable by their owner alone.

        Raises:
            truba_runner.errors.Refused: it is there, and another's, or others can write to it.
        """
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.mkdir(mode=0o700, exist_ok=True)
        private.require_own(self.path)
        self.logs.mkdir(mode=0o700, exist_ok=True)

    def exists(self) -> bool:
        """Whether something was ever submitted here."""
        return self.config_file.exists()

    # -- config ------------------------------------------------------------------------------------------------

    def write_config(self, values: Mapping[str, Any]) -> None:
        """Writes the resolved config."""
        self.write_config_text(config_text(values))

    def write_config_text(self, content: bytes, durable: bool = True) -> None:
        """Writes the resolved config: what `config_text` made of it."""
        write_atomically(self.config_file, content, durable)

    def read_config(self) -> dict[str, Any]:
        """Reads what `write_config` wrote.

        Raises:
            OSError: it is not there.
            ValueError: it is damaged.
        """
        import yaml

        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            config = yaml.load(safe_files.read(self.config_file, self.path), loader)  # noqa: S506  # Both are safe.
        except (yaml.YAMLError, RecursionError) as error:
            raise record_files.Damaged(f"{self.config_file} is damaged") from error
        if not isinstance(config, dict):
            raise record_files.Damaged(f"{self.config_file} is damaged")
        return config

    # -- submissions -------------------------------------------------------------------------------------------

    def append_submission(self, event: Mapping[str, Any], durable: bool = True) -> None:
        """Appends one event and syncs it: what is on record here has happened, or was about to."""
        events.append(self.submissions_file, event, durable)

    def submissions(self) -> list[dict[str, Any]]:
        """Every event, oldest first, with what the records of its sweeps tell of the run's job arrays."""
        own = events.read(self.submissions_file)
        told: list[dict[str, Any]] = []
        for event in own:
            if event["event"] == "intent" and "sweep" in event:
                told += _from_sweep(self.path.parent, event)
            else:
                told.append(event)
        return told

    def submitted(self) -> dict[str, Any]:
        """The latest submission's record of its code: with `job_file`, the training code, and its `job_sha256`."""
        return next((event for event in reversed(self.submissions()) if "job_file" in event), {})

    def is_last_given_to(self, token: str) -> bool:
        """Whether the run's last submission is the one of this token."""
        intents = [event for event in self.submissions() if event["event"] == "intent"]
        return bool(intents) and intents[-1]["token"] == token

    def log_of(self, job_id: str) -> Path:
        """What a job prints into where it is not Slurm that opens it; named as Slurm would. Its folder is made."""
        self.logs.mkdir(mode=0o700, exist_ok=True)
        return self.logs / f"{job_id}_0_log.out"

    # -- progress, history, result -----------------------------------------------------------------------------

    def write_progress(self, progress: Mapping[str, Any]) -> None:
        """Replaces the progress record; the training waits meanwhile, and what it tells is soon told again."""
        write_atomically(self.path / "progress.json", _json_bytes(progress), durable=False)

    def overwrite_progress(self, progress: Mapping[str, Any]) -> None:
        """Writes it into the place that it has already: a full disk has room for that. A reader may see half of it.

        Raises:
            OSError: there is none, or it is not writable.
        """
        handle = os.open(self.path / "progress.json", os.O_RDWR | os.O_NOFOLLOW)
        with os.fdopen(handle, "r+b") as file:
            file.write(_json_bytes(progress))
            file.truncate()

    def progress(self) -> dict[str, Any]:
        """The progress record; empty where the job has not begun."""
        return _read_json(self.path / "progress.json", record_shapes.wrong_progress)

    def pulled(self) -> dict[str, Any]:
        """From where and when it was copied to this machine; empty where it was made here."""
        try:
            return record_files.read_object(self.path / PULLED, record_shapes.wrong_pulled)
        except record_files.Damaged:  # A copy it is all the same: its jobs are none of this machine's.
            return {"from": "?"}

    def write_history(self, rows: list[dict[str, Any]], durable: bool = True) -> None:
        """Replaces the history: a row an epoch, the columns those of the widest row."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path / "history.csv", text.getvalue().encode(), durable)

    def has_lived(self) -> bool:
        """Whether the run has come through an epoch, at any time."""
        return (self.path / "history.csv").exists() or bool(self.result())

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Writes what the run came to. Its presence means that the run is finished."""
        write_atomically(self.path / "result.json", _json_bytes(result))

    def result(self) -> dict[str, Any]:
        """What the run came to; empty until it is finished."""
        return _read_json(self.path / "result.json", record_shapes.wrong_result)

    # -- learning rates ----------------------------------------------------------------------------------------

    def write_rate_curve(self, name: str, curve: Mapping[str, Any]) -> None:
        """Writes what the finder of this name has found: `suggestions` by name, `learning_rates` and their `losses`."""
        write_atomically(self.path / f"lr_find_{name}.json", json.dumps(finite(curve)).encode())

    def rate_curve(self, name: str) -> dict[str, Any]:
        """What `write_rate_curve` wrote; empty where no such finder has ended."""
        return _read_json(self.path / f"lr_find_{name}.json", record_shapes.wrong_curve)

    def finder(self) -> RunDir | None:
        """The run that looks for this one's rate, by its last submission; None: it needs none, or looks itself."""
        given = [event for event in self.submissions() if event["event"] in {"intent", "local"} and "time" in event]
        name = given[-1].get("finder") if given else None
        return RunDir(self.path.parent / name) if name else None

    def found_rate(self) -> dict[str, Any]:
        """The event that says which `learning_rate` this run has taken from a finder; empty where it has taken none."""
        return next((event for event in self.submissions() if event["event"] == "found rate"), {})


def config_text(values: Mapping[str, Any]) -> bytes:
    """A config, or a part of it at its top level, as YAML."""
    import yaml

    # libyaml's, ten times as fast, where PyYAML was built with it.
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text: bytes = yaml.dump(dict(values), Dumper=dumper, sort_keys=False, allow_unicode=True, encoding="utf-8")
    return text


def sweep_events_file(runs_folder: Path, sweep: str) -> Path:
    """Where the job arrays of a sweep are on record."""
    return runs_folder / SWEEPS / sweep / "submissions.jsonl"


def _from_sweep(runs_folder: Path, intent: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A run's own intent with what it shares with the other runs of its array, and what Slurm answered to it."""
    told: list[dict[str, Any]] = [dict(intent)]
    for event in events.read(sweep_events_file(runs_folder, str(intent["sweep"]))):
        if event.get("token") != intent.get("token"):
            continue
        if event["event"] == "intent":
            told[0] = {**{key: value for key, value in event.items() if key != "tasks"}, **intent}
        elif "job_id" in event:
            told.append({**event, "job_id": f"{event['job_id']}_{intent['array_index']}"})
        else:
            told.append(event)
    return told


def _read_json(path: Path, wrong: record_files.Wrong) -> dict[str, Any]:
    try:
        return record_files.read_object(path, wrong)
    except record_files.Damaged:  # It counts as none; `damage` says what is wrong with it.
        return {}
