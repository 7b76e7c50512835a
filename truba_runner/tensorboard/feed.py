"""Load changed event files of the shown runs into TensorBoard, only while somebody looks at the page.

TensorFlow is not imported even if installed: that would take ten seconds and half a gigabyte.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from truba_runner.environment import modules
from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.storage import safe_files
from truba_runner.tensorboard.chosen import Shown

# How many points, images and so on TensorBoard keeps per tag; it thins out the others but keeps the latest.
SAMPLES = {"scalars": 1000, "images": 8, "histograms": 50, "text": 8, "audio": 4, "pr_curves": 20, "hparams": 0}
# How often the list of runs is refreshed, and how often a finished run's files are checked.
_LIST_EVERY_SECONDS = 60.0
# Longest time that a request for news waits.
_PATIENCE_SECONDS = 1.0
# A file is recognized by its last bytes: they contain the checksum of a record that has a timestamp.
_TAIL_BYTES = 24


def without_tensorflow() -> None:
    """Keep TensorBoard from importing TensorFlow in this process.

    Raises:
        truba_runner.errors.Failed: TensorBoard is not installed.
    """
    sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
    try:
        import tensorboard.version  # noqa: F401
    except ImportError as error:
        raise Failed(
            "{python} has no TensorBoard ({error}). Install it with pip install 'truba_runner[tensorboard]'; on a "
            "login node, where you should install nothing, load a module that has it first. {modules}",
            python=sys.executable,
            error=error,
            modules=modules.like("tensorboard", "tensorflow", "-ai/"),
        ) from error


@dataclass(frozen=True)
class _Seen:
    """An event file as last read: `size` bytes long, the last of which are `tail`."""

    inode: int
    size: int
    tail: bytes

    def same(self, about: os.stat_result) -> bool:
        """Return whether inode and size are unchanged."""
        return (self.inode, self.size) == (about.st_ino, about.st_size)


@dataclass
class _Folder:
    """A folder of event files, which TensorBoard calls a run."""

    # The run that the folder belongs to.
    of: Shown
    place: int
    files: dict[str, _Seen] = field(default_factory=dict)


class Feed:
    """The data that TensorBoard shows; `version` increases with every change."""

    def __init__(self, list_runs: Callable[[], Sequence[Shown]]) -> None:
        """Start the loading thread; `list_runs`, called repeatedly, returns the runs to show, newest first."""
        from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

        self._list_runs = list_runs
        self._shown: Sequence[Shown] = ()
        self._listed = -_LIST_EVERY_SECONDS
        self._looked: dict[str, float] = {}
        self._folders: dict[str, _Folder] = {}
        self._printed: set[str] = set()
        self._wanted, self._done = threading.Event(), threading.Condition()
        self._rounds, self._looking = 0, False
        self.version = 0
        self.multiplexer = EventMultiplexer(size_guidance={"tensors": 10}, tensor_size_guidance=SAMPLES)
        threading.Thread(target=self._serve, name="feed", daemon=True).start()
        self._wanted.set()

    def news(self) -> int:
        """Check the files and return the version; if that takes more than a second, the version so far."""
        with self._done:
            # A check in progress may already have passed the file that has just changed.
            awaited = self._rounds + (2 if self._looking else 1)
            self._wanted.set()
            self._done.wait_for(lambda: self._rounds >= awaited, _PATIENCE_SECONDS)
        return self.version

    def rank(self, name: str) -> float:
        """Return the position at which TensorBoard lists one of its runs."""
        folder = self._folders.get(name)
        return folder.place if folder else float("inf")

    def _serve(self) -> None:
        while True:
            self._wanted.wait()
            with self._done:
                self._wanted.clear()
                self._looking = True
            self._look()
            with self._done:
                self._rounds, self._looking = self._rounds + 1, False
                self._done.notify_all()

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._listed >= _LIST_EVERY_SECONDS:
            self._listed = now
            self._list()
        for place, shown in enumerate(self._shown):
            if now - self._looked.get(shown.name, -_LIST_EVERY_SECONDS) < _LIST_EVERY_SECONDS:
                continue
            try:
                changed = self._look_at(shown, place)
            except Exception as error:  # One damaged file must not hide the other runs.
                self._tell(
                    _("TensorBoard cannot read all of {folder}: {error!r}", folder=shown.run.tensorboard, error=error)
                )
                continue
            if not changed and (shown.run.path / "result.json").exists():
                self._looked[shown.name] = now

    def _list(self) -> None:
        try:
            self._shown = self._list_runs()
        except Exception as error:
            # A name may have become ambiguous, or its run was deleted: keep the runs shown so far.
            self._tell(_("{error} The page continues to show the runs that it has.", error=error))
            return
        for name in [name for name, folder in self._folders.items() if folder.of not in self._shown]:
            self._forget(name)

    def _tell(self, words: str) -> None:
        if words not in self._printed:
            self._printed.add(words)
            print(words, file=sys.stderr, flush=True)

    def _look_at(self, shown: Shown, place: int) -> bool:
        changed = False
        for path, files in event_folders(shown.run.tensorboard).items():
            below = path.relative_to(shown.run.tensorboard).as_posix()
            name = shown.name if below == "." else f"{shown.name}/{below}"
            self._folders.setdefault(name, _Folder(shown, place)).place = place
            changed |= self._load(name, path, files)
        return changed

    def _load(self, name: str, path: Path, files: Mapping[str, os.stat_result]) -> bool:
        known = self._folders[name].files
        if known.keys() == files.keys() and all(known[file].same(about) for file, about in files.items()):
            return False
        if any(_went_back(path / file, seen, files.get(file)) for file, seen in known.items()):
            # A resumed run has truncated the file to its checkpoint, or overwrites a record cut short by SIGKILL:
            # reload its curves from the start.
            self._drop(name)
        found = {
            file: _Seen(about.st_ino, about.st_size, _tail(path / file, about.st_size)) for file, about in files.items()
        }
        self._folders[name].files = found
        self.multiplexer.AddRun(str(path), name)
        self.multiplexer.GetAccumulator(name).Reload()
        self.version += 1
        return True

    def _forget(self, name: str) -> None:
        self._drop(name)
        self._looked.pop(self._folders.pop(name).of.name, None)
        self.version += 1

    def _drop(self, name: str) -> None:
        with self.multiplexer._accumulators_mutex:
            self.multiplexer._accumulators.pop(name, None)


def _went_back(path: Path, seen: _Seen, about: os.stat_result | None) -> bool:
    """Return whether a file was deleted, truncated or rewritten, and not merely replaced by a longer copy of itself."""
    if about is None or about.st_size < seen.size:
        return True
    return not seen.same(about) and _tail(path, seen.size) != seen.tail


def _tail(path: Path, end: int) -> bytes:
    """Return the last bytes before `end`."""
    with path.open("rb") as file:
        file.seek(max(0, end - _TAIL_BYTES))
        return file.read(min(_TAIL_BYTES, end))


def event_folders(root: Path) -> dict[Path, dict[str, os.stat_result]]:
    """Return the folders at and below `root` with their event files; hidden names (interrupted copies) are skipped."""
    files_by_folder: dict[Path, dict[str, os.stat_result]] = {}
    if not safe_files.is_folder(root):
        return {}
    try:
        entries = list(os.scandir(root))
    except OSError:
        return {}
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            if entry.name != "plugins":
                files_by_folder |= event_folders(Path(entry.path))
        elif "tfevents" in entry.name and entry.is_file(follow_symlinks=False):
            files_by_folder.setdefault(root, {})[entry.name] = entry.stat(follow_symlinks=False)
    return files_by_folder


def provider(feed: Feed) -> Any:
    """Return the data provider through which TensorBoard's plugins read the feed."""
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_SCALAR
    from tensorboard.data.provider import Run, ScalarDatum
    from tensorboard.util.tensor_util import make_ndarray

    def point(event: Any) -> Any:
        tensor = event.tensor_proto
        # TensorBoard itself makes an array of each point at each reload: two thirds of the time of a page.
        value = tensor.float_val[0] if len(tensor.float_val) == 1 else make_ndarray(tensor).item()
        return ScalarDatum(step=event.step, wall_time=event.wall_time, value=value)

    class Provider(MultiplexerDataProvider):  # type: ignore[misc]
        """TensorBoard's provider with our order of runs and faster reading of curves."""

        def list_runs(self, ctx: Any = None, *, experiment_id: str) -> list[Any]:
            """Return every run with its position as start time, by which TensorBoard sorts, oldest first."""
            names = self._multiplexer.Runs()
            return [Run(run_id=name, run_name=name, start_time=feed.rank(name)) for name in names]

        def read_scalars(
            self,
            ctx: Any = None,
            *,
            experiment_id: str,
            plugin_name: str,
            downsample: int | None = None,
            run_tag_filter: Any = None,
        ) -> dict[str, dict[str, list[Any]]]:
            """Return the points of curves, by run and tag."""
            return dict(self._read(point, self._index(plugin_name, run_tag_filter, DATA_CLASS_SCALAR), downsample))

    return Provider(feed.multiplexer, _("runs of truba_runner"))
