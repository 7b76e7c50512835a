"""Write the shell lines that set up a job's environment; a line that fails ends the job with a reason. Pure.

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

# Bash. In a file that a line sources, commands may fail: only the exit status of the whole line counts.
_WATCH = """\
truba_failed() { echo "$truba_key: $truba_words $1: $truba_line" >&2; exit STATUS; }
truba_files=${#BASH_SOURCE[@]}
trap 'truba_failed $?' EXIT
trap 'truba_status=$?; [ ${#BASH_SOURCE[@]} -gt $truba_files ] || exit $truba_status' ERR""".replace(
    "STATUS", str(SETUP_FAILED)
)
# The second command (:) lets a line end with `[ -f FILE ] && source FILE`: bash's ERR trap ignores a failure before &&.
_RUN = "eval \"$truba_line\"$'\\n:'"
# Keep a trap that a user's line has set.
_WATCH_NO_MORE = "case $(trap -p EXIT) in *truba_failed*) trap - EXIT ;; esac; trap - ERR"
# A job's shell is not a login shell, and under cron there is no `module` to inherit: read the site's profile then.
_FIND_MODULE = """\
for truba_file in /etc/profile /etc/profile.d/{modules,lmod,z00_lmod}.sh "${MODULESHOME:-}/init/bash"; do
  type module >/dev/null 2>&1 && break
  [ ! -r "$truba_file" ] || . "$truba_file"
done"""
# Usage: truba_cache VARIABLE FOLDER. A value that the user has set is kept, even if that folder is read-only; but
# TMPDIR=/tmp is replaced, because Slurm sets it in each job whose user has not.
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
    """Return the user's lines of `environment.KEY`; a line that fails ends the job."""
    if not lines:
        return []
    words = _("exit status")
    about = f"truba_key={REASON}{key} truba_words={shlex.quote(words)}"
    watched = [text for line in lines for text in (f"truba_line={shlex.quote(line)}", _RUN)]
    return [about, *_WATCH.splitlines(), *watched, _WATCH_NO_MORE]


def exported(environment: Environment) -> list[str]:
    """Return the variables that the user's lines export for the training, without paths, which are this machine's."""
    names = _EXPORT.findall("\n".join(environment.setup_before + environment.setup))
    return [name for name in dict.fromkeys(names) if name != "HOME" and not name.endswith("PATH")]


def module_command(environment: Environment) -> list[str]:
    """Return the lines that define the command `module` if it is missing; none if no line uses it."""
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

    Not by `conda run`, which does not forward signals, nor by `.bashrc`, which is for interactive shells.
    """
    command, chosen = environment.conda_command, environment.conda
    name = PurePosixPath(command).name
    hook = "shell hook --shell posix" if name.endswith("mamba") else "shell.posix hook"
    candidates = ['"${MAMBA_EXE:-}"' if name.endswith("mamba") else '"${CONDA_EXE:-}"']
    if chosen.startswith("/"):  # Try the environment's own installation: it is the base, or in the base's envs/.
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
    """Return lines that set each variable to its folder, unless the user has set it, and create the folders."""
    if not folders:
        return []
    not_set = _("the folder cannot be created, so the library uses its own default.")
    kept = _("the folder cannot be created.")
    words = f"truba_not_set={shlex.quote(not_set)} truba_kept={shlex.quote(kept)}"
    lines = [f"truba_cache {name} {shlex.quote(folder)}" for name, folder in folders.items()]
    return [words, *_CACHE.splitlines(), *lines, *_settings(folders)]


def _settings(values: Mapping[str, str]) -> list[str]:
    """Return lines that copy a library's settings file to the new folder, if it stands in the cache's old one."""
    return [
        f'[ ! -f ~/{file} ] || [ ! -d "${{{name}:-}}" ] || [ ~/{file} -ef "${name}/{PurePosixPath(file).name}" ] || '
        f'cp -u ~/{file} "${name}"'
        for name, file in _SETTINGS.items()
        if name in values
    ]


def _end(message: str, status: int) -> str:
    return f"{{ echo {shlex.quote(message)} >&2; exit {status}; }}"
