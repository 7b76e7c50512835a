"""The language of what users read: English, or Turkish by the locale or TRUBA_LANG=tr; gettext catalogues in `locale/`.

A message is written in English where it is said, `_("{run} has ended", run=run.id)`. Its Turkish stands in
`locale/tr.po`, compiled to `tr.mo` by `make language`; a test holds that none is missing.
"""

from __future__ import annotations

import gettext
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from importlib import resources

LANGUAGES = ("en", "tr")


def chosen(environment: Mapping[str, str] = os.environ) -> str:
    """`tr` or `en`: what TRUBA_LANG says, else what the locale does; English where neither names one of them."""
    # In the order in which the C library looks at them, for messages.
    named = (environment.get(name) for name in ("TRUBA_LANG", "LC_ALL", "LC_MESSAGES", "LANG"))
    first = next((value for value in named if value), "")
    language = first.lower()[:2]
    return language if language in LANGUAGES else "en"


def _(message: str, /, **values: object) -> str:
    """A message in the user's language, its `{placeholders}` filled in."""
    told = _catalogue(chosen()).gettext(message)
    return told.format(**values) if values else told


def counted(one: str, many: str, count: int, /, **values: object) -> str:
    """The message for one or for several, in the user's language; `{count}` and `{placeholders}` filled in."""
    return _catalogue(chosen()).ngettext(one, many, count).format(count=count, **values)


def marked(message: str, /) -> str:
    """The message itself, for the catalogue: said where it is defined, translated with `_` where it is shown."""
    return message


@lru_cache
def _catalogue(language: str) -> gettext.NullTranslations:
    if language == "en":
        return gettext.NullTranslations()
    # A terminal or a log without Turkish letters has a question mark in their place, and no run ends for one.
    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(errors="replace")
    # Not by path: the package may lie in a zip file. English is better than no word at all.
    with suppress(OSError), (resources.files("truba_runner") / "locale" / f"{language}.mo").open("rb") as file:
        return gettext.GNUTranslations(file)
    return gettext.NullTranslations()
