"""`truba report RUN|SWEEP`: write the results as one HTML file that can be sent to anyone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from truba_runner.commands import parser
from truba_runner.errors import Failed
from truba_runner.language import _
from truba_runner.report import content
from truba_runner.report.page import Section, html
from truba_runner.runs import damage, runs_folders
from truba_runner.search.directory import search_of
from truba_runner.status.printing import print_json
from truba_runner.status.slurm_jobs import known_jobs_or_records
from truba_runner.storage.files import write_atomically


def main(arguments: Sequence[str]) -> int:
    """Write the file and print its path."""
    options = parser(
        "report", _("Writes one HTML file about a run, a search or a sweep: curves, tables, config, starts and cost.")
    )
    options.add_argument("run", help=_("a run's, a search's or a sweep's id, or any unique beginning of it"))
    options.add_argument(
        "--out",
        type=Path,
        metavar=_("PLACE"),
        help=_("a file or folder to write it to (default: report.html in the folder of the records)"),
    )
    given = options.parse_args(arguments)
    sweep = runs_folders.find_sweep(given.run, given.runs)
    if sweep is not None:
        known = known_jobs_or_records([sweep.run(member.run).record() for member in sweep.members()])
        folder, name, sections = sweep.path, sweep.id, content.of_sweep(sweep, known)
    else:
        run = runs_folders.find(given.run, given.runs)
        known, search = known_jobs_or_records([run.record()]), search_of(run)
        if why := damage.of_records(run):
            sections = content.of_damaged(why)
        else:
            sections = content.of_search(search, known) if search else content.of_run(run, known)
        folder, name = run.path, run.id
    file = (given.out or folder / "report.html").expanduser().resolve()
    if file.is_dir():
        file /= f"{name}.html"
    try:
        # The name of a file may not be UTF-8.
        write_atomically(file, _page(name, sections).encode(errors="backslashreplace"))
    except OSError as error:
        raise Failed("{file} could not be written ({why})", file=file, why=error.strerror or error) from error
    if given.json:
        print_json({"report": str(file)})
    else:
        print(file)
    return 0


def _page(name: str, sections: Sequence[Section]) -> str:
    return html(name, time.strftime("truba_runner, %Y-%m-%d %H:%M"), sections)
