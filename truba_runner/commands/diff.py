"""`truba diff RUN`: show what has changed in the project since the run was submitted."""

from __future__ import annotations

import difflib
import glob
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from truba_runner.code import archives, snapshot
from truba_runner.code.snapshot import File, shown
from truba_runner.commands import parser
from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.runs import damage, runs_folders
from truba_runner.runs.events import Event
from truba_runner.runs.run_directory import RunDir
from truba_runner.status.printing import print_json


def main(arguments: Sequence[str]) -> int:
    """Print the differences; return 0 whether or not there are any."""
    options = parser("diff", _("Shows what has changed in the project folder since a run was submitted."))
    options.add_argument("run", help=_("a run's id, or any unique beginning of it"))
    given = options.parse_args(arguments)
    run = runs_folders.find(given.run, given.runs)
    if why := damage.described(run):
        raise Failed(why)
    submitted = run.submitted()
    if (pulled := run.pulled()) and not Path(submitted.project or "/nowhere").is_dir():
        message = _("{run} is a copy; its project folder is at {place}. Run there: truba diff {run}")
        raise Failed(message.format(run=run.id, place=pulled.get("from", "?")))
    if not (submitted.code and submitted.project):
        message = _(
            "{run} has no copy of its code. A copy is made when a project's own job is submitted to Slurm, unless "
            "code.snapshot=false. Without one, the job reads {file} when it starts.",
            run=run.id,
            file=submitted.job_file or "?",
        )
        print(message, file=sys.stderr)
        if given.json:
            print_json({"run": run.id, "code": None})
        return 0
    then = snapshot.unpacked(archives.found(run, submitted.code))
    now = _now(run, submitted, then)
    changed = {
        name: _difference(name, then[name], now[name]) for name in then if then[name] != now.get(name, then[name])
    }
    added, removed = sorted(now.keys() - then.keys()), sorted(then.keys() - now.keys())
    if given.json:
        about = {"run": run.id, "project": submitted.project, "code": submitted.code}
        print_json({**about, "changed": changed, "added": added, "removed": removed})
        return 0
    lines = list(_lines(changed, added, removed))
    print("\n".join(lines or [_("nothing has changed since {run} was submitted", run=run.id)]))
    return 0


def _now(run: RunDir, submitted: Event, then: Mapping[str, File]) -> dict[str, File]:
    project, job_file = Path(submitted.project), Path(submitted.job_file)
    try:
        config = run.read_config()
        runs_folder, data_folder = config["cluster"]["runs_folder"], config["data"]["folder"]
    except (KeyError, TypeError, ValueError) as error:
        raise Failed("{file} is damaged ({error})", file=run.config_file, error=error) from error
    if not project.is_dir() or not job_file.is_relative_to(project):
        raise Failed("{project}, from which {run} was submitted, does not exist", project=project, run=run.id)
    without = snapshot.left_out((str(runs_folder), str(data_folder)))
    # Of files that look like secrets, include only those that are in the snapshot.
    return snapshot.read(snapshot.files(project, job_file, without, map(glob.escape, then)))


def _difference(name: str, then: File, now: File) -> str:
    """Return a unified diff; empty for binary files, and if only the executable bit differs."""
    try:
        before, after = (one.content.decode().splitlines() for one in (then, now))
    except UnicodeDecodeError:
        return ""
    name = shown(name)
    return "\n".join(difflib.unified_diff(before, after, f"submitted/{name}", f"now/{name}", lineterm=""))


def _lines(changed: Mapping[str, str], added: Sequence[str], removed: Sequence[str]) -> Iterator[str]:
    for name, difference in changed.items():
        yield difference or _("{file} has changed, but in no line of text", file=shown(name))
    for name in added:
        yield _("{file} is new", file=shown(name))
    for name in removed:
        yield _("{file} is gone", file=shown(name))
