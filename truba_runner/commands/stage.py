"""`truba stage +experiment=NAME`: put the files that an experiment needs into its data folder, before any job runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from truba_runner.commands import parser
from truba_runner.errors import Failed, Problem, Refused
from truba_runner.language import _, marked
from truba_runner.status.printing import print_json

if TYPE_CHECKING:
    from truba_runner.config.schema import Source
    from truba_runner.data.hub_names import Asset

# State of a file in --json, and the text for it.
_STATES = {
    "there already": marked("{file}: already there, in {path}"),
    "staged": marked("{file}: staged, in {path}"),
}


def main(arguments: Sequence[str]) -> int:
    """Download the files that are needed, or copy those named with `--from`."""
    options = parser("stage", _("Downloads or copies the data that an experiment needs into its data folder."))
    options.add_argument("override", nargs="+", help=_("the experiment, as for a run: +experiment=mnist KEY=VALUE…"))
    options.add_argument(
        "--from", dest="origins", action="append", default=[], metavar=_("FILE"),
        help=_("stage only this file, from a path or URL instead of its own source; repeat the option for more files"),
    )  # fmt: skip
    given = options.parse_args(arguments)

    from truba_runner.config.composing.compose import composed
    from truba_runner.data import hub, hub_names, staging

    experiment = composed(given.override)
    needed = staging.needed(experiment)
    if wrong := list(hub_names.problems(experiment.data)):
        raise Refused(*wrong)
    if not needed and not experiment.data.hub:
        raise Refused(
            Problem(f"data.name={experiment.data.name}", _("it needs no file according to data.sources or data.hub."),
                    _("There is nothing to stage."))
        )  # fmt: skip
    origins = _assigned(given.origins, needed)
    folder, lacking = Path(experiment.data.folder), staging.missing(experiment)
    wanted = [source for source in needed if source.file in origins or not origins]
    done = [_staged(folder, source, origins.get(source.file), source in lacking) for source in wanted]
    if not origins:
        absent = hub.missing(experiment.data)
        done += [
            _fetched(folder / hub_names.FOLDER, asset, asset in absent) for asset in hub_names.assets(experiment.data)
        ]
    if given.json:
        print_json(done)
    else:
        for one in done:
            print(_(_STATES[one["state"]], **one))
    return 0


def _assigned(origins: Sequence[str], needed: Sequence[Source]) -> dict[str, str]:
    """Map each `--from` to a needed file: to the only one, or to the one of the same name."""
    if origins and not needed:
        rule = _("the experiment needs no file according to data.sources.")
        raise Refused(Problem(f"--from {origins[0]}", rule, _("Leave it out: data.hub is fetched from the hub.")))
    names = {PurePosixPath(source.file).name: source.file for source in needed}
    assigned = {}
    for origin in origins:
        if "://" not in origin and not Path(origin).is_file():
            raise Refused(Problem(f"--from {origin}", _("there is no such file."), _("Give its path, or a URL.")))
        name = PurePosixPath(urlsplit(origin).path).name if "://" in origin else Path(origin).name
        if len(needed) > 1 and name not in names:
            wanted = _(" and ").join(names)
            rule = _("the experiment needs {names}, and this file has another name.", names=wanted)
            raise Refused(Problem(f"--from {origin}", rule, _("Give the file its original name.")))
        assigned[names.get(name, needed[0].file)] = origin
    return assigned


def _staged(folder: Path, source: Source, origin: str | None, lacking: bool) -> dict[str, str]:
    """Stage one file if it is missing, and return its JSON record."""
    from truba_runner.data import staging

    path = folder / source.file
    record = {"file": path.name, "path": str(path)}
    if not lacking:
        return {**record, "state": "there already"}
    try:
        staging.stage(folder, source, origin or source.url)
    except OSError as error:
        raise Failed(
            "{file} could not be staged: {error}. Download {source} on a machine that can reach it, copy it here, "
            "and add --from {file}",
            file=path.name,
            error=error,
            source=source.url or source.page,
        ) from error
    return {**record, "state": "staged"}


def _fetched(folder: Path, asset: Asset, lacking: bool) -> dict[str, str]:
    """Fetch one repository of the hub if it is missing, and return its JSON record."""
    from truba_runner.data import hub

    record = {"file": str(asset), "path": str(asset.folder(folder))}
    if not lacking:
        return {**record, "state": "there already"}
    try:
        hub.fetch(asset, folder)
    except OSError as error:
        raise Failed("{asset} could not be fetched from the hub: {error}", asset=asset, error=error) from error
    return {**record, "state": "staged"}
