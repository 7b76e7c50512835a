"""Translate messages with gettext: English, or Turkish by the locale or TRUBA_LANG=tr.

A message is written in English in the code, `_("{run} has ended", run=run.id)`. Its Turkish translation is in
`locale/tr.po`, compiled to `tr.mo` by `make language`; a test checks that none is missing.
"""

from __future__ import annotations

import gettext
import os
import pkgutil
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from importlib import resources

from truba_runner import ARCHIVE

LANGUAGES = ("en", "tr")


def chosen(environment: Mapping[str, str] = os.environ) -> str:
    """Return the language `tr` or `en`, from TRUBA_LANG, else the locale; `en` for any other language."""
    # The locale's variables in the order of the C library for messages.
    named = (environment.get(name) for name in ("TRUBA_LANG", "LC_ALL", "LC_MESSAGES", "LANG"))
    first = next((value for value in named if value), "")
    language = first.lower()[:2]
    return language if language in LANGUAGES else "en"


def _(message: str, /, **values: object) -> str:
    """Return a message in the user's language, with its `{placeholders}` filled in."""
    # For an empty message gettext returns the catalogue's header.
    text = message and as_started(_catalogue(chosen()).gettext(message))
    return text.format(**values) if values else text


def counted(one: str, many: str, count: int, /, **values: object) -> str:
    """Return the singular or plural message in the user's language, `{count}` and `{placeholders}` filled in."""
    return as_started(_catalogue(chosen()).ngettext(one, many, count)).format(count=count, **values)


def marked(message: str, /) -> str:
    """Return the message unchanged; marks it for the catalogue where it is defined, to be translated later with `_`."""
    return message


def as_started(text: str) -> str:
    """Replace `truba NAME` in a text by what the user has to type, if the program is one file (truba.pyz)."""
    program = _program() if ARCHIVE else ""
    return _commands().sub(lambda _found: program, text) if program else text


@lru_cache
def _program() -> str:
    """Return how the one file was started, unless it is `truba` on the PATH; empty in a job."""
    started = os.path.abspath(sys.argv[0])
    if started != ARCHIVE:
        return ""
    name = os.path.basename(started)
    if os.path.realpath(shutil.which(name) or "") == os.path.realpath(started):
        return name
    return f"{os.path.basename(sys.executable) or 'python3'} {shlex.quote(sys.argv[0])}"


@lru_cache
def _commands() -> re.Pattern[str]:
    folder = os.path.join(os.path.dirname(__file__), "commands")
    names = "|".join(module.name for module in pkgutil.iter_modules([folder]))
    return re.compile(rf"\b(?:python -m truba_runner(?= )|truba(?= (?:{names})\b))")


@lru_cache
def _catalogue(language: str) -> gettext.NullTranslations:
    if language == "en":
        return gettext.NullTranslations()
    # A terminal or log without Turkish letters shows question marks, instead of an error that ends a run.
    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(errors="replace")
    # Not by path: the package may be in a zip file. Without the catalogue, messages are in English.
    with suppress(OSError), (resources.files("truba_runner") / "locale" / f"{language}.mo").open("rb") as file:
        return gettext.GNUTranslations(file)
    return gettext.NullTranslations()
