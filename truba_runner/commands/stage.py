"""`truba stage +experiment=NAME`: puts an experiment's data into the data folder, before any job needs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from truba_runner.commands import parser, print_json
from truba_runner.errors import Failed, Problem, Refused


def main(arguments: Sequence[str]) -> int:
    """Downloads the data, or copies it from a file."""
    options = parser("stage", "Puts the data that an experiment needs into its data folder: downloaded, or copied.")
    options.add_argument("override", nargs="+", help="the experiment, as for a run: +experiment=mnist KEY=VALUE…")
    options.add_argument("--from", dest="origin", metavar="FILE", help="a path or URL, in place of the data's own URL")
    given = options.parse_args(arguments)

    from truba_runner import data
    from truba_runner.app import composed

    experiment = composed(given.override)
    wanted = experiment.data.sources.get(experiment.data.name)
    if wanted is None or not wanted.file:
        raise Refused(
            Problem(f"data.name={experiment.data.name}", "it needs no file, as far as data.sources tells.",
                    "There is nothing to stage.")
        )  # fmt: skip
    if given.origin and "://" not in given.origin and not Path(given.origin).is_file():
        raise Refused(Problem(f"--from {given.origin}", "there is no such file.", "Give its path, or a URL."))
    source = data.missing(experiment.data)
    if source is None:
        path, done = str(Path(experiment.data.folder) / wanted.file), "there already"
    else:
        try:
            path, done = str(data.stage(experiment.data, given.origin or source.url)), "staged"
        except OSError as error:
            raise Failed(
                f"{source.file} could not be staged: {error}. Fetch {source.url or source.page} on a machine that can, "
                f"copy it here, and add --from {source.file}"
            ) from error
    if given.json:
        print_json({"data": experiment.data.name, "path": str(Path(path)), "state": done})
    else:
        print(f"{experiment.data.name}: {done}, in {path}")
    return 0
