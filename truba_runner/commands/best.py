"""`truba best SEARCH`: print a search's best trials, and the experiment that trains the best one anew."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from truba_runner.commands import parser
from truba_runner.errors import Failed, Problem, Refused
from truba_runner.language import _
from truba_runner.runs import damage, runs_folders
from truba_runner.runs.progress import format_metrics
from truba_runner.search.directory import SearchDir, search_of
from truba_runner.search.state import State, read_state
from truba_runner.search.trial_records import own_values, ranked
from truba_runner.status.printing import print_json


def main(arguments: Sequence[str]) -> int:
    """Print the best trials; with --out, write the experiment of the best one."""
    given = _options(arguments)
    found = runs_folders.find(given.search, given.runs)
    if why := damage.described(found):
        raise Failed(why)
    search = search_of(found)
    if search is None:
        raise Refused(Problem(given.search, _("this is a run, not a search."), _("truba status shows its result.")))
    if given.number < 1:
        raise Refused(
            Problem(f"-n {given.number}", _("this is the number of best trials to show."), _("Give 1 or more."))
        )
    state = read_state(search)
    trials = ranked(state)[: given.number] if state else []
    if not trials:
        raise Failed(
            "no trial of {search} has a score yet; truba status {search} shows its progress",
            search=search.id,
        )
    from truba_runner.search import best

    if given.evaluate:
        best.evaluate(search, state, trials)
    rows = [_row(search, place, trial) for place, trial in enumerate(trials, start=1)]
    text = _experiment_text(search, state, trials[0])
    if given.out is not None:
        _write(given.out, text)
    if given.json:
        print_json({"search": search.id, "best": rows, "experiment": text})
        return 0
    if not search.result():
        print(_("{search} has not finished; these are the best trials so far", search=search.id), file=sys.stderr)
    _print(rows, state["objective"]["name"])
    print("\n" + (_("written: {file}", file=given.out) if given.out else text))
    return 0


def _experiment_text(search: SearchDir, state: State, trial: Mapping[str, Any]) -> str:
    """Return the experiment of a trial as YAML.

    Raises:
        Failed: the records of the search are damaged.
    """
    from truba_runner.search import best

    try:
        return best.experiment_text(search, state, trial)
    except Failed:
        raise
    except Exception as error:  # Includes OmegaConf's exceptions, without importing it.
        message = _("{search}: its records are damaged: {error}", search=search.id, error=repr(error))
        raise Failed(message) from error


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    options = parser(
        "best",
        _("Shows the best trials of a search, their metrics on held-out data, and the experiment of the best one."),
    )
    options.add_argument("search", help=_("a search's id, or any unique beginning of it"))
    options.add_argument(
        "-n", "--number", type=int, default=1, metavar="N", help=_("number of best trials to show (default: 1)")
    )
    options.add_argument(
        "--out",
        type=Path,
        metavar=_("FILE"),
        help=_("write the experiment of the best trial to this file, for example conf/experiment/NAME.yaml"),
    )
    options.add_argument(
        "--evaluate",
        action="store_true",
        help=_("rebuild and evaluate, on this machine, the models that are not evaluated yet"),
    )
    return options.parse_args(arguments)


def _row(search: SearchDir, place: int, trial: Mapping[str, Any]) -> dict[str, Any]:
    run = search.best(trial["trial_id"])
    result = {} if damage.of_run(run) else run.result()
    return {
        "place": place,
        "trial": trial["trial_id"],
        "values": own_values(trial),
        "score": trial["score"],
        "metrics": result.get("metrics", {}),
        "model": str(run.path / result["model"]) if "model" in result else "",
    }


def _write(file: Path, text: str) -> None:
    if file.exists():
        raise Refused(Problem(f"--out {file}", _("this file exists already."), _("Choose another name.")))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def _print(rows: Sequence[Mapping[str, Any]], objective: str) -> None:
    for row in rows:
        message = _("{place}. trial {trial}: {objective} {score:.6g}", place=row["place"], trial=row["trial"],
                 objective=objective, score=row["score"])  # fmt: skip
        print(f"{message}  {json.dumps(row['values'])}")
        if row["metrics"]:
            print(f"   {format_metrics(row['metrics'])}\n   {row['model']}")
        else:
            print("   " + _("not evaluated; --evaluate evaluates it on this machine, in the foreground"))
