"""Render a report's sections as one HTML file with everything embedded: it loads nothing and has no scripts."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Union

from truba_runner.language import chosen

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733; margin: 2rem auto; max-width: 68rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.under { color: #5c6b7a; margin-top: 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #e3e8ee; vertical-align: top; }
th { color: #5c6b7a; font-weight: 600; }
td { overflow-wrap: anywhere; }
pre { background: #f5f7fa; padding: .8rem; overflow-x: auto; font-size: 13px; }
figure { margin: 1rem 0; } figure img { max-width: 100%; } figcaption { color: #5c6b7a; }
summary { cursor: pointer; color: #5c6b7a; } .wide { overflow-x: auto; } .wide td { overflow-wrap: normal; }
@media print { body { margin: 0; max-width: none; } details { break-inside: avoid; } }
"""


# Without this, phones render the page at desktop width.
_AS_WIDE_AS_THE_SCREEN = '<meta name="viewport" content="width=device-width, initial-scale=1">'


@dataclass(frozen=True)
class Facts:
    """Names with values; names with an empty value are left out."""

    facts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Rows:
    """A table. With `folded`, it is collapsed and that is its summary."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: str = ""


@dataclass(frozen=True)
class Picture:
    """The content of a PNG file, with a caption."""

    caption: str
    png: bytes


@dataclass(frozen=True)
class Text:
    """Preformatted text. With `folded`, it is collapsed and that is its summary."""

    text: str
    folded: str = ""


@dataclass(frozen=True)
class Sentence:
    """A paragraph."""

    text: str


Block = Union[Facts, Rows, Picture, Text, Sentence]


@dataclass(frozen=True)
class Section:
    """A heading with its blocks; left out if all of them are empty."""

    title: str
    blocks: Sequence[Block]


def html(title: str, under: str, sections: Sequence[Section]) -> str:
    """Return the HTML text; `under` is the line below the title."""
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="under">{escape(under)}</p>']
    for section in sections:
        if blocks := [text for block in section.blocks if (text := _block(block))]:
            parts += [f"<h2>{escape(section.title)}</h2>", *blocks]
    head = f'<meta charset="utf-8">{_AS_WIDE_AS_THE_SCREEN}<title>{escape(title)}</title><style>{_STYLE}</style>'
    return (
        f'<!doctype html>\n<html lang="{chosen()}"><head>{head}</head><body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _block(block: Block) -> str:
    """Return the block's HTML; empty if it has nothing to show."""
    render: Callable[..., str] = _RENDER[type(block)]
    return render(block)


def _facts(block: Facts) -> str:
    rows = (f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in block.facts if value)
    message = "".join(rows)
    return f"<table>{message}</table>" if message else ""


def _rows(block: Rows) -> str:
    if not block.rows:
        return ""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in block.headings)
    body = ("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in block.rows)
    return _folded(f'<div class="wide"><table><tr>{head}</tr>{"".join(body)}</table></div>', block.folded)


def _picture(block: Picture) -> str:
    source, caption = base64.b64encode(block.png).decode(), escape(block.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{source}"><figcaption>{caption}</figcaption></figure>'
    )


def _text(block: Text) -> str:
    return _folded(f"<pre>{escape(block.text)}</pre>", block.folded) if block.text else ""


def _sentence(block: Sentence) -> str:
    return f"<p>{escape(block.text)}</p>" if block.text else ""


def _folded(inside: str, summary: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>" if summary else inside


_RENDER: dict[type, Callable[..., str]] = {
    Facts: _facts, Rows: _rows, Picture: _picture, Text: _text, Sentence: _sentence,
}  # fmt: skip
