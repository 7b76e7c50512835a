"""Options of `truba status` that apply only to a sweep. Apart from its view, which other runs' tables do not import."""

from __future__ import annotations

import argparse

from truba_runner.language import _


def add_options(options: argparse.ArgumentParser) -> None:
    """Add the options that apply only to a sweep."""
    own = options.add_argument_group(_("options for a sweep"))
    own.add_argument("--sort", metavar=_("COLUMN"), help=_("sort by a metric (the best first), a swept key, or state"))
    own.add_argument("--best", metavar=_("METRIC"), help=_("show only the run that is best by this metric"))
    own.add_argument(
        "--mode", choices=("min", "max"), help=_("whether a small (min) or a large (max) value of the metric is better")
    )
    own.add_argument("--csv", action="store_true", help=_("print comma-separated values"))
    own.add_argument("--plot", metavar=_("FILE"), nargs="?", const="", help=_("draw the metric over the swept values"))


def asked(given: argparse.Namespace) -> bool:
    """Whether one of these options was given."""
    return any((given.sort, given.best, given.mode, given.csv, given.plot is not None))
