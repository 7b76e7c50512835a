"""Read and validate the records of runs, without following a link out of a run's folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from truba_runner.language import _
from truba_runner.runs import events, record_shapes
from truba_runner.runs.events import Event, Kind
from truba_runner.runs.record_shapes import (
    Damaged,
    ProgressRecord,
    RateCurve,
    ResultRecord,
    curve_from,
    parsed,
    progress_from,
    result_from,
)
from truba_runner.storage import safe_files

# In a run directory copied from a login node: from where, and when.
PULLED = "pulled.json"
HISTORY = "history.csv"
# Describes what is wrong with a record; empty if nothing is.
Wrong = Callable[[Mapping[str, Any]], str]


class RunRecord:
    """What the files of a run say, each read at most once, when it is first asked for.

    It shows one moment: whoever waits for a change takes a new one.
    """

    def __init__(self, path: Path) -> None:
        """Read nothing yet; `path` is the run's directory."""
        self.path = path
        # As text: the records of a thousand runs are read a quarter faster than with a Path for each file.
        self._folder = str(path)
        self._objects: dict[str, dict[str, Any] | OSError | Damaged] = {}
        # The first problem in the records, empty if there is none; None until `damage.of_record` has looked.
        self.wrong: str | None = None

    @property
    def id(self) -> str:
        """The run's id."""
        return self.path.name

    def of(self, run_id: str) -> RunRecord:
        """Return the record of another run in the same runs folder."""
        return RunRecord(self.path.parent / run_id)

    def again(self) -> RunRecord:
        """Return a record of this moment: this one if the run has its result, which is final."""
        with suppress(OSError):
            if self.result:
                return self
        return RunRecord(self.path)

    @cached_property
    def names(self) -> frozenset[str]:
        """The names in the run's directory; none if it cannot be listed."""
        return frozenset(safe_files.names(self.path, self.path))

    def whole(self, name: str, wrong: Wrong) -> dict[str, Any]:
        """Return a record that is one JSON object; empty if there is no such file.

        Raises:
            Damaged: the file is cut short, or holds something else.
            OSError: the file cannot be read.
        """
        if name not in self._objects:
            # Known if `damage` has listed them; a file that is not there takes as long to open as one that is.
            listed = self.__dict__.get("names")
            try:
                there = not listed or name in listed
                self._objects[name] = read_object(self._folder, name, wrong) if there else {}
            except (OSError, Damaged) as error:
                self._objects[name] = error
        found = self._objects[name]
        if isinstance(found, Exception):
            raise found
        return found

    def _unless_damaged(self, name: str, wrong: Wrong) -> dict[str, Any]:
        try:
            return self.whole(name, wrong)
        except Damaged:  # Counts as missing; `damage` reports what is wrong with it.
            return {}

    # -- submissions -------------------------------------------------------------------------------------------

    @cached_property
    def own_events(self) -> tuple[list[Event], str]:
        """The events of the run's own file, and what is wrong with the first invalid one; empty if nothing is.

        Raises:
            OSError: the file cannot be read.
        """
        return events.examined(self.path / "submissions.jsonl")

    @cached_property
    def events(self) -> list[Event]:
        """All events, oldest first, completed by those of the run's job arrays."""
        return events.with_arrays(self.own_events[0], self.path.parent)

    @cached_property
    def intent(self) -> Event:
        """The intent of the last submission; without a kind if there was none."""
        return events.last_intent(self.events)

    @cached_property
    def job_id(self) -> str:
        """The id of the run's last job; empty if there was none."""
        duplicates = {event.job_id for event in self.events if event.kind == Kind.DUPLICATE}
        begins = {Kind.SUBMITTED, Kind.STARTED, Kind.LOCAL}
        given = (event.job_id for event in reversed(self.events) if event.kind in begins)
        return next((job_id for job_id in given if job_id not in duplicates), "")

    @property
    def submitted(self) -> Event:
        """The newest event that records the code; without a kind if there is none."""
        return next((event for event in reversed(self.events) if event.job_file), Event())

    @property
    def finder(self) -> str:
        """The finder run of the last submission; empty if the run needs no learning rate, or finds its own."""
        given = [event for event in self.events if event.kind in {Kind.INTENT, Kind.LOCAL} and event.time]
        return given[-1].finder if given else ""

    @property
    def found_rate(self) -> Event:
        """The event with the `learning_rate` that the run took from a finder; without one if it took none."""
        return next((event for event in self.events if event.kind == Kind.FOUND_RATE), Event())

    # -- progress, history, result -----------------------------------------------------------------------------

    @cached_property
    def any_progress(self) -> ProgressRecord:
        """The progress; without any value if no job has begun, or the record is damaged."""
        return progress_from(self._unless_damaged("progress.json", record_shapes.wrong_progress))

    @property
    def progress(self) -> ProgressRecord:
        """The progress of the last job; without any value if it has not begun, even if an earlier one had."""
        return self.any_progress if self.any_progress.job_id == self.job_id else ProgressRecord()

    @cached_property
    def history(self) -> list[dict[str, str]]:
        """The rows of `history.csv`, with values as strings; none if there is no such file.

        Raises:
            Damaged: a row is cut short, or holds something else than numbers.
            OSError: the file cannot be read.
        """
        return history(self._folder)

    @cached_property
    def result(self) -> ResultRecord:
        """The run's result; without any value until the run is finished, or if the record is damaged."""
        return result_from(self._unless_damaged("result.json", record_shapes.wrong_result))

    @property
    def pulled(self) -> dict[str, Any]:
        """From where and when the run was copied to this machine; empty if it was submitted here."""
        try:
            return self.whole(PULLED, record_shapes.wrong_pulled)
        except Damaged:  # The run is a copy all the same: its jobs are not this machine's.
            return {"from": "?"}

    def rate_curve(self, name: str) -> RateCurve | None:
        """Return the curve of a learning-rate finder; None if no finder of this name has ended."""
        record = self._unless_damaged(f"lr_find_{name}.json", record_shapes.wrong_curve)
        return curve_from(record) if record else None

    @property
    def has_finished_an_epoch(self) -> bool:
        """Whether the run has ever finished an epoch."""
        return (self.path / HISTORY).exists() or bool(self.result)


def read_object(folder: Path | str, name: str, wrong: Wrong) -> dict[str, Any]:
    """Read a record of a folder that is one JSON object; empty if there is no such file.

    Raises:
        Damaged: the file is cut short, or holds something else.
        OSError: the file cannot be read.
    """
    try:
        content = safe_files.read(f"{folder}/{name}", folder)
    except FileNotFoundError:
        return {}
    value = parsed(content, name)
    if not isinstance(value, dict):
        raise Damaged(_("{file} is not a record", file=name))
    if why := wrong(value):
        raise Damaged(_("{file} holds {what}", file=name, what=why))
    return value


def history(folder: str) -> list[dict[str, str]]:
    """Return the rows of a folder's `history.csv`, with values as strings; none if there is no such file.

    Raises:
        Damaged: a row is cut short, or holds something else than numbers.
        OSError: the file cannot be read.
    """
    try:
        text = safe_files.read(f"{folder}/{HISTORY}", folder).decode(errors="replace")
    except FileNotFoundError:
        return []
    try:
        rows: Sequence[Mapping[Any, Any]] = list(csv.DictReader(io.StringIO(text)))
    except csv.Error as error:
        raise Damaged(_("{file} is not a table ({error})", file=HISTORY, error=error)) from error
    if why := _wrong_history(rows):
        raise Damaged(_("{file} holds {what}", file=HISTORY, what=why))
    return [dict(row) for row in rows]


def _wrong_history(rows: Sequence[Mapping[Any, Any]]) -> str:
    """Describe what is wrong with a `history.csv`, whose values are strings: empty, a number, or a stage's name."""
    for row in rows:
        for name, value in row.items():
            if name is None or value is None or (value and name != "stage" and not _reads_as_number(value)):
                return f"{name}={str(value)[: record_shapes.SHOWN]}"
        if not _is_epoch(row.get("epoch", "")):
            return f"epoch={str(row.get('epoch', '?'))[: record_shapes.SHOWN]}"
    return ""


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_epoch(text: str) -> bool:
    return _reads_as_number(text) and record_shapes.is_finite(float(text)) and 0 <= float(text) < record_shapes.MOST
