"""Update and compile the message catalogues: messages are collected from the source and translated by hand.

`make language` updates `truba_runner/locale/tr.po` (new messages get an empty translation, unused ones are removed) and
compiles it to `tr.mo`.
"""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr
from functools import cache
from pathlib import Path

import yaml
from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "truba_runner"
LOCALE = PACKAGE / "locale"
# Which arguments of functions that translate are messages.
KEYWORDS = {
    "_": None, "counted": (1, 2), "marked": None, "Failed": None, "info": None, "print_error": None, "warn": None,
    "note": (2,),
}  # fmt: skip


@cache
def said() -> Catalog:
    """Collect every message in the source, in the table of reasons and in `conf/cluster/`, with its location."""
    catalog = Catalog(project="truba_runner")
    for file in sorted([*PACKAGE.rglob("*.py"), *(ROOT / "hydra_plugins").rglob("*.py")]):
        # Babel remarks on every f-string that stands in a call; tests/unit/test_language.py finds a message in one.
        with file.open("rb") as source, redirect_stderr(io.StringIO()):
            for line, message, *_ in extract("python", source, KEYWORDS):
                catalog.add(message, locations=[(str(file.relative_to(ROOT)), line)])
    from truba_runner.why.table import table, words

    place = [(str((PACKAGE / "why" / "reasons.yaml").relative_to(ROOT)), 1)]
    for message in (
        *words().values(),
        *(text for rows in table().values() for row in rows for text in (row.means, row.do)),
    ):
        catalog.add(message, locations=place)
    for file in sorted((ROOT / "conf" / "cluster").glob("*.yaml")):
        cluster = yaml.safe_load(file.read_text())
        said_of = [one.get("access") for one in (cluster.get("partitions") or {}).values()]
        said_of += [one[key] for one in cluster.get("refusals") or () for key in ("means", "do")]
        for message in filter(None, said_of):
            catalog.add(message, locations=[(str(file.relative_to(ROOT)), 1)])
    return catalog


def translated(language: str) -> Catalog:
    """Return the .po file of a language."""
    with (LOCALE / f"{language}.po").open("rb") as file:
        return read_po(file, locale=language)


def compiled(catalog: Catalog) -> bytes:
    """Return the content of the .mo file, which the program reads at run time."""
    out = io.BytesIO()
    write_mo(out, catalog)
    return out.getvalue()


def complete(message: Message) -> bool:
    """Return whether all forms of a message are translated."""
    return bool(message.string) if isinstance(message.string, str) else all(message.string or [""])


def update(language: str) -> int:
    """Rewrite both files of a language; return how many messages have no translation yet."""
    file = LOCALE / f"{language}.po"
    catalog = translated(language) if file.exists() else Catalog(locale=language, project="truba_runner")
    catalog.update(said(), no_fuzzy_matching=True, update_creation_date=False)
    catalog.obsolete.clear()
    catalog.msgid_bugs_address = catalog.last_translator = catalog.language_team = ""
    text = io.BytesIO()
    write_po(text, catalog, width=120, include_lineno=False, omit_header=False, sort_by_file=True)
    file.write_bytes(text.getvalue())
    # Compile from the file, as the test does, so that both have what is checked in.
    (LOCALE / f"{language}.mo").write_bytes(compiled(translated(language)))
    return sum(bool(message.id) and not complete(message) for message in catalog)


if __name__ == "__main__":
    missing = update("tr")
    print(f"{LOCALE / 'tr.po'}: messages without a translation: {missing}")
    sys.exit(1 if missing else 0)
