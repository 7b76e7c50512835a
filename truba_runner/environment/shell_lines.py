"""Write the shell lines by which a job enters its environment; one that fails ends the job with its reason. Pure.

The reason is a line `environment.KEY: …` in the job's log, which `truba status` and `truba why` show
(`why_not_entered` of runs/state.py).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from truba_runner.config.schema import Environment
from truba_runner.language import _
from truba_runner.slurm.states import NO_CONDA, NO_MODULES, NOT_ACTIVATED, NOT_LOADED, REASON, SETUP_FAILED

# Bash. A failure inside of a file that a line sources is that file's own affair: only the whole line's status counts.
_WATCH = """\
truba_failed() { echo "$truba_key: $truba_words $1: $truba_line" >&2; exit STATUS; }
truba_files=${#BASH_SOURCE[@]}
trap 'truba_failed $?' EXIT
trap 'truba_status=$?; [ ${#BASH_SOURCE[@]} -gt $truba_files ] || exit $truba_status' ERR""".replace(
    "STATUS", str(SETUP_FAILED)
)
# The second command, so that a line may end with `[ -f FILE ] && source FILE`: bash's own rule for such a list.
_RUN = "eval \"$truba_line\"$'\\n:'"
# A line may have set a trap of its own.
_WATCH_NO_MORE = "case $(trap -p EXIT) in *truba_failed*) trap - EXIT ;; esac; trap - ERR"
# A job's shell is no login shell, and one submitted by cron inherits no `module`: then the site's profile defines it.
_FIND_MODULE = """\
for truba_file in /etc/profile /etc/profile.d/{modules,lmod,z00_lmod}.sh "${MODULESHOME:-}/init/bash"; do
  type module >/dev/null 2>&1 && break
  [ ! -r "$truba_file" ] || . "$truba_file"
done"""
# Usage: truba_cache VARIABLE FOLDER. Slurm sets TMPDIR to /tmp in each job whose user has not set it. A folder of the
# user's may be one that can only be read.
_CACHE = """\
truba_cache() {
  [ -n "${!1:-}" ] && [ "$1=${!1}" != TMPDIR=/tmp ] && export "$1" || export "$1=$2"
  if [ "${!1}" != "$2" ]; then
    mkdir -p -m 700 "${!1}" || echo "$1=${!1}: $truba_kept" >&2
  elif ! mkdir -p -m 700 "$2" || [ ! -w "$2" ]; then
    echo "$1=$2: $truba_not_set" >&2
    unset "$1"
  fi
}"""

_SETTINGS = {"KERAS_HOME": ".keras/keras.json", "MPLCONFIGDIR": ".config/matplotlib/matplotlibrc"}
_EXPORT = re.compile(r"\bexport\s+([A-Za-z_]\w*)=")
_USES_MODULE = re.compile(r"\b(module|ml)\b")


def user_lines(key: str, lines: Sequence[str]) -> list[str]:
    """Return the user's lines of `environment.KEY`, each of which ends the job if a command in it fails."""
    if not lines:
        return []
    words = _("exit status")
    about = f"truba_key={REASON}{key} truba_words={shlex.quote(words)}"
    watched = [text for line in lines for text in (f"truba_line={shlex.quote(line)}", _RUN)]
    return [about, *_WATCH.splitlines(), *watched, _WATCH_NO_MORE]


def exported(environment: Environment) -> list[str]:
    """Return the variables that the user's lines export for the training; PATH and its like are this machine's."""
    found = _EXPORT.findall("\n".join(environment.setup_before + environment.setup))
    return [name for name in dict.fromkeys(found) if name != "HOME" and not name.endswith("PATH")]


def module_command(environment: Environment) -> list[str]:
    """Return the lines that define the command `module` where it is missing; none if nothing uses it."""
    used = environment.modules or any(
        _USES_MODULE.search(line) for line in environment.setup_before + environment.setup
    )
    return _FIND_MODULE.splitlines() if used else []


def modules(names: Sequence[str]) -> list[str]:
    """Return the lines that load modules, after `module purge`; none if there are no modules."""
    if not names:
        return []
    quoted = shlex.join(names)
    missing = f"{REASON}modules: " + _("the command module does not exist here")
    return [
        f"type module >/dev/null 2>&1 || {_end(missing, NO_MODULES)}",
        "module purge",
        f"module load {quoted} || {_end(f'{REASON}modules: module load {quoted} failed', NOT_LOADED)}",
    ]


def virtual_environment(folder: str) -> list[str]:
    """Return the lines that activate a virtual environment."""
    return [f"export VIRTUAL_ENV={shlex.quote(folder)}", 'export PATH="$VIRTUAL_ENV/bin:$PATH"']


def conda(environment: Environment) -> list[str]:
    """Return the lines that activate a conda environment by the hook of its conda, mamba (2) or micromamba.

    `conda run` would keep signals from the training, and `.bashrc` is the interactive shell's.
    """
    command, chosen = environment.conda_command, environment.conda
    name = PurePosixPath(command).name
    hook = "shell hook --shell posix" if name.endswith("mamba") else "shell.posix hook"
    candidates = ['"${MAMBA_EXE:-}"' if name.endswith("mamba") else '"${CONDA_EXE:-}"']
    if chosen.startswith("/"):  # Its own installation: the environment is the base, or in envs/ of it.
        folders = (PurePosixPath(chosen), PurePosixPath(chosen).parent.parent)
        candidates += [shlex.quote(str(folder / "bin" / name)) for folder in folders]
    missing = _("there is no command {command} here", command=command)
    failed = f"{REASON}conda: {name} activate {chosen} failed"
    return [
        f"for truba_conda in {' '.join([shlex.quote(command), *candidates])}; do",
        '  type "$truba_conda" >/dev/null 2>&1 && break',
        "done",
        f'type "$truba_conda" >/dev/null 2>&1 || {_end(f"{REASON}conda: {missing}", NO_CONDA)}',
        f'eval "$("$truba_conda" {hook})"',
        f'{name} activate {shlex.quote(chosen)} || {{ "$truba_conda" env list; {_end(failed, NOT_ACTIVATED)}; }} >&2',
    ]


def caches(folders: Mapping[str, str]) -> list[str]:
    """Return lines that set variables, each to its folder unless the user has set it, and create the folders."""
    if not folders:
        return []
    not_set = _("the folder cannot be created, so the library uses its own default.")
    kept = _("the folder cannot be created.")
    words = f"truba_not_set={shlex.quote(not_set)} truba_kept={shlex.quote(kept)}"
    lines = [f"truba_cache {name} {shlex.quote(folder)}" for name, folder in folders.items()]
    return [words, *_CACHE.splitlines(), *lines, *_settings(folders)]


def _settings(values: Mapping[str, str]) -> list[str]:
    """Return lines that copy the settings which a library has in the same folder as its cache."""
    return [
        f'[ ! -f ~/{file} ] || [ ! -d "${{{name}:-}}" ] || [ ~/{file} -ef "${name}/{PurePosixPath(file).name}" ] || '
        f'cp -u ~/{file} "${name}"'
        for name, file in _SETTINGS.items()
        if name in values
    ]


def _end(message: str, status: int) -> str:
    return f"{{ echo {shlex.quote(message)} >&2; exit {status}; }}"
