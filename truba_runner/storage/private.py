"""Check that folders with what a user runs belong to that user, and that nobody else can write to them.

Whoever can write to a run directory, or creates it first, can read the logs, plant a result, and run code as the
submitting user. So all folders from the runs folder to the run are checked, and `.code` and `.sweeps`, also executed.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from truba_runner.errors import Problem, Refused
from truba_runner.language import _

_ACCESS_LIST = "system.posix_acl_access"


def is_mine(path: Path) -> bool:
    """Whether a file or folder is this user's; True for root's, and for a missing one."""
    try:
        return _trusted(path.lstat())
    except FileNotFoundError:
        return True


def owner(path: Path) -> str:
    """Return the name of a file's owner."""
    return _name(path.lstat().st_uid)


def require(runs_folder: Path, folders: Iterable[Path]) -> None:
    """Check the runs folder, these folders in it and all between: nobody else may own them or write to them.

    Raises:
        truba_runner.errors.Refused: some folders are unsafe; all of them are named.
    """
    if found := list(problems(runs_folder, folders)):
        raise Refused(*found)


def require_own(folder: Path) -> None:
    """Check a single file or folder, wherever it is.

    Raises:
        truba_runner.errors.Refused: it is another user's, others can write to it, or another user's entry is in it.
    """
    problem = _of(folder, shared=False)
    if found := [problem] if problem else list(_planted(folder)):
        raise Refused(*found)


def refused(folders: Iterable[Path]) -> bool:
    """Print why these folders are unsafe for a job; return whether they are."""
    try:
        for folder in folders:
            require_own(folder)
    except Refused as error:
        print(error, file=sys.stderr, flush=True)
        return True
    return False


def problems(runs_folder: Path, folders: Iterable[Path]) -> Iterator[Problem]:
    """Yield the problems of a runs folder, of these folders in it, and of all folders between."""
    between = (part for folder in folders for part in _down_to(runs_folder, folder))
    for path in dict.fromkeys((runs_folder, *between)):
        problem = _of(path, shared=path == runs_folder)
        if problem is not None:
            yield problem
        elif path != runs_folder:
            yield from _planted(path)


def _down_to(runs_folder: Path, folder: Path) -> list[Path]:
    return [runs_folder.joinpath(*parts[: count + 1]) for parts in [folder.relative_to(runs_folder).parts]
            for count in range(len(parts))]  # fmt: skip


def _planted(folder: Path) -> Iterator[Problem]:
    """Yield a folder's entries that are another user's, put there before it was closed; each may pose as a record."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        about = entry.stat(follow_symlinks=False)
        if not _trusted(about):
            yield _anothers(Path(entry.path), about)


def _of(path: Path, shared: bool) -> Problem | None:
    """Return a path's problem, or None. A `shared` one, the runs folder, may be a link, or open with a sticky bit."""
    try:
        about = path.stat() if shared else path.lstat()
        # A link's owner decides where it leads, even if its target does not exist yet.
        if _trusted(about):
            about = path.stat()
    except FileNotFoundError:
        return None
    if not _trusted(about):
        return _anothers(path, about)
    if not _others_may_write(path, about) or (shared and about.st_mode & stat.S_ISVTX):
        return None
    rule = _(
        "others may write to it (owner {owner}, mode {mode}); they could read the logs, plant a result, and run their "
        "code as {user}.",
        owner=_name(about.st_uid),
        mode=_mode(about),
        user=_name(os.geteuid()),
    )
    remedy = _(
        "Check that you own everything in it, and remove others' write permission with chmod go-w {path}; or choose a "
        "folder of your own with cluster.runs_folder=FOLDER.",
        path=path,
    )
    return Problem(str(path), rule, remedy)


def _anothers(path: Path, about: os.stat_result) -> Problem:
    rule = _(
        "it belongs to {owner} (mode {mode}), who could read the logs, plant a result, and run their own code as "
        "{user}.",
        owner=_name(about.st_uid),
        mode=_mode(about),
        user=_name(os.geteuid()),
    )
    return Problem(str(path), rule, _("Choose a folder of your own with cluster.runs_folder=FOLDER."))


def _trusted(about: os.stat_result) -> bool:
    # Root can do anything anyway.
    return about.st_uid in {0, os.geteuid()}


def _others_may_write(path: Path, about: os.stat_result) -> bool:
    if about.st_mode & stat.S_IWOTH:
        return True
    return bool(about.st_mode & stat.S_IWGRP) and not (_is_own_group(about.st_gid) and not _has_access_list(path))


def _is_own_group(gid: int) -> bool:
    """Whether a group is the user's private group, which many systems create for each user."""
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return group.gr_name == user.pw_name and user.pw_gid == gid and set(group.gr_mem) <= {user.pw_name}


def _has_access_list(path: Path) -> bool:
    """Whether a path has a POSIX ACL: the mode's group bits then hold for other users and groups too."""
    try:
        return bool(os.getxattr(path, _ACCESS_LIST))
    except (AttributeError, OSError):  # Not on Linux, or the path has no ACL.
        return False


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _mode(about: os.stat_result) -> str:
    return f"{stat.S_IMODE(about.st_mode):04o}"
