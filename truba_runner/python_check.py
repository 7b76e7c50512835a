# -*- coding: utf-8 -*-  # noqa: UP009  # Python 2 reads it.
"""Refuse a Python that is too old, and suggest one that this machine has. Every Python must be able to run this file.

`truba bundle` puts it at the start of the file's `__main__.py`.
"""

import os
import re
import subprocess
import sys

LEAST = (3, 9)
# Environment Modules and Lmod print their answer on either stream. The marker separates it from what a profile prints.
_MARKER = "-- modules --"
# A login shell reads the user's profile, which may define `module`. `timeout`: a profile may wait for a terminal.
_ASK = "type module >/dev/null 2>&1 || . /etc/profile; type module >/dev/null 2>&1 || exit 1; "
_ASK += "echo '%s'; module -t avail 2>&1" % _MARKER  # noqa: UP031  # Python 2 knows no f-strings.
_SECONDS = "20"
# In English and Turkish: an older Python cannot read the catalogue.
_MESSAGES = {
    "old": (
        "Python {python}: truba_runner needs Python {least} or newer.",
        "Python {python}: truba_runner için Python {least} ya da daha yenisi gerekir.",
    ),
    "command": ("Use {name}, which is installed here.", "Bu makinede {name} kurulu; onu kullanın."),
    "module": ("Load one first: module load {name}", "Önce birini yükleyin: module load {name}"),
    "perhaps": ("One of these modules may have it: {name}.", "Şu modüllerden birinde olabilir: {name}."),
    "none": (
        "There is none on the PATH, and no module has python in its name; ask the site's support.",
        "PATH'te yok, adında python geçen bir modül de yok; merkezin destek birimine sorun.",
    ),
}


def available_modules():
    # type: () -> list[str] | None
    """Return the names that `module -t avail` lists in a login shell; None if it could not be asked."""
    try:
        with open(os.devnull) as nothing, open(os.devnull, "w") as dropped:
            argv = ["timeout", "-k", "1", _SECONDS, "bash", "-l", "-c", _ASK]
            shell = subprocess.Popen(argv, stdin=nothing, stdout=subprocess.PIPE, stderr=dropped)
            output = shell.communicate()[0].decode("utf-8", "replace")
    except OSError:
        return None
    found = output.rpartition(_MARKER + "\n")
    return names_in(found[2]) if found[1] and not shell.returncode else None


def names_in(listing):
    # type: (str) -> list[str]
    """Return the modules of a listing by `module -t avail`, without its folders and marks such as (default)."""
    names = (re.sub(r"\s*(\(.*\)|<.*>)$", "", line.strip()) for line in listing.splitlines())
    return sorted({name for name in names if name and " " not in name and not name.endswith((":", "/"))})


def pythons_among(names):
    # type: (list[str]) -> list[str]
    """Return the modules with the version of a new enough Python in their name, the newest first."""
    found = []
    for name in names:
        version = re.search(r"python3?\D*?(\d+)\.(\d+)", name, re.IGNORECASE)
        if version and LEAST <= (int(version.group(1)), int(version.group(2))) < (4,):
            found.append((int(version.group(2)), name))
    return [name for _minor, name in sorted(found, reverse=True)]


def python_on_path():
    # type: () -> str
    """Return the newest command python3.N on the PATH that is new enough and starts; empty if there is none."""
    for minor in range(13, LEAST[1] - 1, -1):
        command = "python3.%d" % minor  # noqa: UP031
        try:
            with open(os.devnull, "w") as dropped:
                if subprocess.call([command, "-S", "-c", ""], stdout=dropped, stderr=dropped) == 0:
                    return command
        except OSError:
            continue
    return ""


def refuse_older_python():
    # type: () -> None
    """End the program with exit status 2 if this Python is too old."""
    if sys.version_info >= LEAST:
        return
    remedy, name = _remedy()
    spoken = (_MESSAGES[key][_language()] for key in ("old", remedy))
    message = " ".join(spoken).format(
        python="%d.%d" % sys.version_info[:2],  # noqa: UP031
        least="%d.%d" % LEAST,  # noqa: UP031
        name=name,
    )
    sys.stderr.write(message + "\n")
    sys.exit(2)


def _remedy():
    # type: () -> tuple[str, str]
    """Find a new enough Python; return the key of the message and the name to fill in."""
    command = python_on_path()
    if command:
        return "command", command
    names = available_modules() or []
    pythons = pythons_among(names)
    if pythons:
        return "module", pythons[0]
    perhaps = [name for name in names if re.search("python|conda", name, re.IGNORECASE)]
    return ("perhaps", ", ".join(perhaps[:6])) if perhaps else ("none", "")


def _language():
    # type: () -> int
    """Return 1 for Turkish, else 0, by the rules of language.py, which an older Python cannot import."""
    given = [os.environ.get(name) for name in ("TRUBA_LANG", "LC_ALL", "LC_MESSAGES", "LANG")]
    return int(next((value for value in given if value), "").lower().startswith("tr"))
