"""Check the folders for runs, data and the program's state: present, writable, with free space, not purged soon."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from truba_runner.doctor import FAULT, NOTE, OK, WARNING, Finding, Patient
from truba_runner.keeping.purge import DAY_SECONDS, expiring
from truba_runner.language import _, counted
from truba_runner.runs import runs_folders
from truba_runner.storage import quota
from truba_runner.storage.user_state import state_folder

_NEARLY_FULL, _FULL = 0.90, 0.99
# Warn this many days before the site deletes a run's files.
_AHEAD_DAYS = 7
_LISTED = 3


def folders(patient: Patient) -> Iterator[Finding]:
    """Check scratch and the folders for runs and data."""
    cluster = patient.experiment.cluster
    if cluster.scratch:
        if not Path(cluster.scratch).is_dir():
            says = _("{path} does not exist", path=cluster.scratch)
            remedy = _(
                "Set the scratch root with TRUBA_SCRATCH, or with scratch in conf/cluster/{name}.yaml.",
                name=cluster.name,
            )
            yield Finding(FAULT, _("scratch"), says, remedy)
            return
        yield Finding(OK, _("scratch"), cluster.scratch)
    for subject, key, folder in (
        (_("runs folder"), "cluster.runs_folder", Path(cluster.runs_folder)),
        (_("data folder"), "data.folder", Path(patient.experiment.data.folder)),
    ):
        yield _writable(subject, key, folder)


def _writable(subject: str, key: str, folder: Path) -> Finding:
    there = existing(folder)
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        remedy = _("Set {key} to a folder that you may write to.", key=key)
        return Finding(FAULT, subject, f"{there}: {error.strerror}", remedy)
    made = "" if there == folder else _(" (created when needed)")
    return Finding(OK, subject, f"{folder}{made}")


def existing(folder: Path) -> Path:
    """Return the folder itself or its nearest parent that exists."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def room(patient: Patient) -> Iterator[Finding]:
    """Check the free space and number of files for runs, for data and in the home."""
    cluster = patient.experiment.cluster
    places = (
        (_("room for runs"), Path(cluster.runs_folder)),
        (_("room for data"), Path(patient.experiment.data.folder)),
        (_("room in home"), patient.home),
    )
    shown: set[tuple[str, int]] = set()
    for subject, folder in places:
        for one in quota.rooms(existing(folder.absolute())):
            if (key := (one.what, one.limit)) not in shown:
                shown.add(key)
                yield _room(subject, one)


def _room(subject: str, one: quota.Room) -> Finding:
    says = f"{one.said()} ({one.source})"
    if one.share < _NEARLY_FULL:
        return Finding(OK, subject, says)
    remedy = _("truba clean lists the files that finished runs no longer need; delete old runs and data.")
    return Finding(FAULT if one.share >= _FULL else WARNING, subject, says, remedy)


def purge(patient: Patient) -> Iterator[Finding]:
    """Check whether the site will soon delete old files of runs."""
    cluster = patient.experiment.cluster
    if not cluster.scratch_days:
        return
    until = time.time() + _AHEAD_DAYS * DAY_SECONDS
    going = expiring(runs_folders.runs(Path(cluster.runs_folder)), until)
    found = sorted(going.values(), key=lambda one: one.first)
    if not found:
        says = _("no run has a file that will be deleted from scratch within {days} days", days=_AHEAD_DAYS)
        yield Finding(OK, _("purge"), says)
        return
    names = [one.name for one in found]
    says = counted(
        "files of {count} run will be deleted from scratch within {days} days: {some}",
        "files of {count} runs will be deleted from scratch within {days} days: {some}",
        len(names), days=_AHEAD_DAYS, some=", ".join(names[:_LISTED]) + (", …" if len(names) > _LISTED else ""),
    )  # fmt: skip
    remedy = _("truba expiring lists them; truba keep {run} archives one to home.", run=names[0])
    yield Finding(WARNING, _("purge"), says, remedy)


def notes(patient: Patient) -> Iterator[Finding]:
    """Check that the folder of the list of runs folders is writable."""
    there = existing(state_folder().absolute())
    if not os.access(there, os.W_OK):
        says = _("{path} is not writable, so your runs folders are not remembered", path=there)
        yield Finding(NOTE, _("home"), says, _("Name the folder with --runs FOLDER."))
