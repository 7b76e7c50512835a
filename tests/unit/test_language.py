"""What users read exists in both languages, whole and with the same placeholders; and the locale decides which."""

from __future__ import annotations

import ast
import io
import re
import string
from collections.abc import Iterator
from pathlib import Path

import catalogues
import pytest
from babel.messages.mofile import read_mo

from truba_runner.language import _, chosen, counted

# Not for users: what is raised at the program's own faults, commands for a shell, words that are searched for.
NOT_WORDS = {
    "the table has no row for ",
    " is no plain value",
    "expected a mapping, got ",
    "WARNING: All log messages",
    # What Slurm and a container's runtime print.
    "Socket timed out",
    "Unable to contact slurm controller",
    "Unexpected message received",
    "Invalid job id specified",
    "Job is pending execution",
    "Zero Bytes were transmitted",
    "Connection timed out",
    "Resource temporarily unavailable",
    "Could not establish a configuration source",
    "Unable to process configuration",
    "executable file not found",
}
# A shell prints it, before any Python; or a browser runs it.
FOR_A_SHELL = ("scontrol ", "\nimport ", "\njob=", "type module ", "\n(() => {")
# What frameworks and rsync say, to be known by it.
THEIRS = {"Disk quota exceeded", "out of memory", "Expected more than 1 value per channel when training"}


def test_every_message_has_its_turkish() -> None:
    translated = {message.id: message for message in catalogues.translated("tr") if message.id}
    missing = [
        message.id
        for message in catalogues.said()
        if message.id and (message.id not in translated or not catalogues.complete(translated[message.id]))
    ]
    assert not missing, "make language lists them in truba_runner/locale/tr.po"


def test_nothing_is_translated_that_is_no_longer_said() -> None:
    said = {message.id for message in catalogues.said()}
    assert {message.id for message in catalogues.translated("tr")} <= said, "make language"


def test_the_compiled_catalogue_is_that_of_the_source() -> None:
    compiled = read_mo(io.BytesIO((catalogues.LOCALE / "tr.mo").read_bytes()))
    expected = read_mo(io.BytesIO(catalogues.compiled(catalogues.translated("tr"))))
    told = ({str(message.id): message.string for message in one if message.id} for one in (compiled, expected))
    assert next(told) == next(told), "make language"


def test_translations_have_the_placeholders_of_their_message() -> None:
    for message in catalogues.translated("tr"):
        forms = [message.id] if isinstance(message.id, str) else list(message.id)
        told = [message.string] if isinstance(message.string, str) else list(message.string)
        wanted = set.union(*(placeholders(form) for form in forms))
        for form in told:
            # "1 run" and "2 runs": the English for one may do without the number that the Turkish has.
            assert placeholders(form) <= wanted | {"count"} and wanted - {"count"} <= placeholders(form), message.id


def test_turkish_is_written_with_turkish_letters() -> None:
    told = " ".join(str(message.string) for message in catalogues.translated("tr") if message.id)
    assert all(letter in told for letter in "çğıöşüİ")
    ascii_spellings = r"\b(icin|degil|calis\w*|dugum\w*|cekirdek\w*|bellegi|suresi|gonder\w*|onceki|egitim\w*)\b"
    assert not re.findall(ascii_spellings, re.sub("çekirdek", "", told))


def test_every_message_is_found_where_it_is_said() -> None:
    # Inside an f-string it would not be.
    known = {form for one in catalogues.said() for form in ([one.id] if isinstance(one.id, str) else one.id)}
    for file in sorted(catalogues.PACKAGE.rglob("*.py")):
        for call in speaking(ast.parse(file.read_text())):
            texts = [one.value for one in call.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            assert set(texts) <= known, f"{file}:{call.lineno}"


def test_a_message_is_given_what_it_names() -> None:
    # Else it would end the program where it is said, which may be seldom.
    for file in sorted(catalogues.PACKAGE.rglob("*.py")):
        for call in speaking(ast.parse(file.read_text())):
            texts = [one.value for one in call.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            given = {one.arg for one in call.keywords}
            if texts and given and None not in given:
                assert set.union(*(placeholders(text) for text in texts)) - {"count"} == given - {"count"}, (
                    f"{file}:{call.lineno}"
                )


def test_no_function_that_speaks_takes_the_names_for_something_else() -> None:
    # `_` is a name for what nobody wants, too: Python then knows no other in the whole function.
    for file in sorted(catalogues.PACKAGE.rglob("*.py")):
        for function in ast.walk(ast.parse(file.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                own = (node for node in ast.walk(function) if isinstance(node, ast.Name))
                taken = {name.id for name in own if isinstance(name.ctx, ast.Store)}
                said = {call.func.id for call in speaking(function) if isinstance(call.func, ast.Name)}
                assert not taken & said, f"{file}:{function.lineno}"


def speaking(tree: ast.AST) -> Iterator[ast.Call]:
    """The calls of functions that translate."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in catalogues.KEYWORDS:
            yield node


# It has its own Turkish, as a Python that is too old cannot read the catalogue.
@pytest.mark.parametrize(
    "file",
    sorted({*catalogues.PACKAGE.rglob("*.py")} - {catalogues.PACKAGE / "python_check.py"}),
    ids=lambda file: str(file.relative_to(catalogues.PACKAGE)),
)
def test_no_sentence_is_said_past_the_catalogue(file: Path) -> None:
    assert not list(sentences_outside(ast.parse(file.read_text())))


def sentences_outside(tree: ast.Module):  # type: ignore[no-untyped-def]
    """Texts of three words or more that are neither docstrings nor arguments of functions that translate."""
    inside: set[ast.AST] = set()
    for node in ast.walk(tree):
        by_name = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id
        if by_name in {*catalogues.KEYWORDS, "compile", "LookupError"}:
            inside |= set(ast.walk(node))
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in {"compile", "search", "filterwarnings"}
        ):
            inside |= set(ast.walk(node))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inside.add(node.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inside:
            text = node.value
            if re.search(r"[a-z]{2,} [a-z]{2,} [a-z]{2,}", text) and not any(word in text for word in NOT_WORDS):
                if text not in THEIRS and not text.startswith(FOR_A_SHELL):
                    yield node.lineno, text


def placeholders(text: str) -> set[str]:
    return {name for _literal, name, _form, _how in string.Formatter().parse(text) if name}


@pytest.mark.parametrize(
    ("environment", "language"),
    [
        ({}, "en"),
        ({"LANG": "tr_TR.UTF-8"}, "tr"),
        ({"LANG": "tr_TR.UTF-8", "TRUBA_LANG": "en"}, "en"),
        ({"LANG": "en_US.UTF-8", "TRUBA_LANG": "tr"}, "tr"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "tr_TR.UTF-8"}, "tr"),
        ({"LC_MESSAGES": "tr_TR.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LANG": "tr_TR.UTF-8", "TRUBA_LANG": ""}, "tr"),
    ],
)
def test_the_locale_chooses_and_truba_lang_overrides(environment: dict[str, str], language: str) -> None:
    assert chosen(environment) == language


def test_a_message_is_said_in_the_language_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _("nothing was cancelled") == "nothing was cancelled"
    assert [counted("{count} run", "{count} runs", count) for count in (1, 2)] == ["1 run", "2 runs"]
    monkeypatch.setenv("TRUBA_LANG", "tr")
    assert _("nothing was cancelled") == "hiçbir şey iptal edilmedi"
    assert [counted("{count} run", "{count} runs", count) for count in (1, 2)] == ["1 eğitim", "2 eğitim"]
    assert _("cancelled {run}", run="{braces}") == "{braces} iptal edildi"
    assert _("not in the catalogue") == "not in the catalogue"
