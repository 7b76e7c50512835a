"""Folders that hold what a user runs: his own, and nobody else may write to them.

Who may write to a run directory, or put one there first, reads the logs, plants a result, and has his code run under
the account of whoever submits. From the runs folder down to the run each folder is looked at, with `.code` and
`.sweeps`, whose content is run too.
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
    """Whether a file or folder is this user's; the system's count as anybody's, what is not there as well."""
    try:
        return _trusted(path.lstat())
    except FileNotFoundError:
        return True


def owner(path: Path) -> str:
    """Whose it is, by name."""
    return _name(path.lstat().st_uid)


def require(runs_folder: Path, folders: Iterable[Path]) -> None:
    """Holds back whoever would use a folder that another has made, or can write to.

    Raises:
        Refused: there are such folders; all of them are named.
    """
    if found := list(problems(runs_folder, folders)):
        raise Refused(*found)


def require_own(folder: Path) -> None:
    """The same for a folder itself, wherever it lies.

    Raises:
        Refused: it is another's, others can write to it, or another has put something into it.
    """
    problem = _of(folder, shared=False)
    if found := [problem] if problem else list(_planted(folder)):
        raise Refused(*found)


def refused(folders: Iterable[Path]) -> bool:
    """Whether a job may not go on in these folders; then it is said."""
    try:
        for folder in folders:
            require_own(folder)
    except Refused as error:
        print(error, file=sys.stderr, flush=True)
        return True
    return False


def problems(runs_folder: Path, folders: Iterable[Path]) -> Iterator[Problem]:
    """What stands against a runs folder, and against these folders in it, with all that lies between."""
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
    """What another has put into a folder that is closed by now. Empty or not, it stands for something of the user's."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        about = entry.stat(follow_symlinks=False)
        if not _trusted(about):
            yield _anothers(Path(entry.path), about)


def _of(path: Path, shared: bool) -> Problem | None:
    """What stands against a folder. The runs folder itself may be a link, and with a sticky bit `shared` by all."""
    try:
        about = path.stat() if shared else path.lstat()
        # A link's maker decides on where it leads, were it nowhere yet.
        if _trusted(about):
            about = path.stat()
    except FileNotFoundError:
        return None
    if not _trusted(about):
        return _anothers(path, about)
    if not _others_may_write(path, about) or (shared and about.st_mode & stat.S_ISVTX):
        return None
    rule = _(
        "others may write to it (owner {owner}, mode {mode}), and so read the logs, plant a result, and have their "
        "code run as {user}.",
        owner=_name(about.st_uid),
        mode=_mode(about),
        user=_name(os.geteuid()),
    )
    remedy = _(
        "See that all in it is yours, and close it with chmod go-w {path}; or choose a folder of your own with "
        "cluster.runs_folder=FOLDER.",
        path=path,
    )
    return Problem(str(path), rule, remedy)


def _anothers(path: Path, about: os.stat_result) -> Problem:
    rule = _(
        "it is {owner}'s (mode {mode}), who could read the logs, plant a result, and have code of his own run as "
        "{user}.",
        owner=_name(about.st_uid),
        mode=_mode(about),
        user=_name(os.geteuid()),
    )
    return Problem(str(path), rule, _("Choose a folder of your own with cluster.runs_folder=FOLDER."))


def _trusted(about: os.stat_result) -> bool:
    # What root wants it does anyway.
    return about.st_uid in {0, os.geteuid()}


def _others_may_write(path: Path, about: os.stat_result) -> bool:
    if about.st_mode & stat.S_IWOTH:
        return True
    return bool(about.st_mode & stat.S_IWGRP) and not (_is_own_group(about.st_gid) and not _has_access_list(path))


def _is_own_group(gid: int) -> bool:
    """Whether a group is a user's alone, as many systems make one for each: what it may do he may do."""
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return group.gr_name == user.pw_name and user.pw_gid == gid and set(group.gr_mem) <= {user.pw_name}


def _has_access_list(path: Path) -> bool:
    """Whether more users may do something than its mode tells: the group's part of that is then all of theirs."""
    try:
        return bool(os.getxattr(path, _ACCESS_LIST))
    except (AttributeError, OSError):  # Elsewhere than on Linux there is no such call; here it has none.
        return False


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _mode(about: os.stat_result) -> str:
    return f"{stat.S_IMODE(about.st_mode):04o}"
