"""The pages that users read: the Turkish ones have what the English ones have, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Of what was measured; a table of numbers.
ENGLISH_ONLY = {"benchmarks.md"}
ENGLISH = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").glob("*.md")) if ".tr." not in page.name)]
PAGES = [*ENGLISH, *sorted((ROOT / "docs").glob("*.tr.md")), ROOT / "README.tr.md", ROOT / "CONTRIBUTING.md"]


def name(page: Path) -> str:
    return page.name


def without_blocks(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def code(text: str) -> set[str]:
    """The code in a page's sentences and tables; not what has words in place of something, which are translated."""
    spans = re.findall(r"`([^`\n]+)`", without_blocks(text))
    return {span for span in spans if not re.search(r"[A-ZÇĞİÖŞÜ]{2}|[(%:{ ]", span)}


def shape(text: str) -> list[str]:
    """Its headings' depths, rows of tables and blocks of code, in their order."""
    found = (re.match(r"#+ |\||```", line) for line in text.splitlines())
    return [one[0] for one in found if one]


@pytest.mark.parametrize("english", [page for page in ENGLISH if page.name not in ENGLISH_ONLY], ids=name)
def test_a_turkish_page_has_what_the_english_one_has(english: Path) -> None:
    turkish = english.with_suffix(".tr.md")
    one, other = english.read_text(), turkish.read_text()
    assert shape(one) == shape(other)
    # How often is a matter of how a sentence is built.
    assert code(one) == code(other)
    assert turkish.name in one and english.name in other


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_link_leads_to_a_page_and_a_heading(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page.read_text())):
        path, _, heading = link.partition("#")
        if path.startswith("http"):
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not heading or heading in headings(target), link
        # A Turkish page leads to Turkish ones; it names its English one alone.
        assert ".tr." not in page.name or target.with_suffix(".tr.md") == page or not has_turkish(target), link


def has_turkish(page: Path) -> bool:
    return page.with_suffix(".tr.md").exists()


def headings(page: Path) -> set[str]:
    """The anchors that a web page of it has."""
    titles = re.findall(r"(?m)^#+ (.*)$", without_blocks(page.read_text()))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
