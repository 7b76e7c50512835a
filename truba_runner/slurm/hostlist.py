"""Expand Slurm's compressed node lists: `akya[1-3,7],barbun121` (man scontrol, show hostnames)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from truba_runner.language import _

# Text between two commas; those inside brackets do not separate.
_ITEM = re.compile(r"(?:[^,\[\]]|\[[^\[\]]*\])+")
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_TASKS = re.compile(r"(\d+)(?:\(x(\d+)\))?")


def expand(text: str) -> list[str]:
    """Return the names of the nodes in Slurm's order, which is that of the ranks.

    Raises:
        ValueError: the text is no node list.
    """
    if ",".join(_ITEM.findall(text)) != text or not text:
        raise ValueError(_("{text!r} is not a list of nodes", text=text))
    return [name for item in _ITEM.findall(text) for name in _names(item)]


def _names(item: str) -> Iterator[str]:
    bracket = _BRACKETS.search(item)
    if bracket is None:
        yield item
        return
    for part in bracket[1].split(","):
        matched = _RANGE.fullmatch(part)
        if matched is None:
            raise ValueError(_("{text!r} is not a list of nodes: {part!r} is not a range", text=item, part=part))
        first, last = matched[1], matched[2] or matched[1]
        for number in range(int(first), int(last) + 1):
            # Numbers are padded to the width of the first: node[08-10] are node08, node09 and node10.
            yield from _names(f"{item[: bracket.start()]}{number:0{len(first)}d}{item[bracket.end() :]}")


def tasks_per_node(text: str) -> list[int]:
    """Return the number of tasks on each node: `2(x3),1` are 2, 2, 2 and 1 (man sbatch, SLURM_TASKS_PER_NODE).

    Raises:
        ValueError: the text has another form.
    """
    counts: list[int] = []
    for part in text.split(","):
        matched = _TASKS.fullmatch(part)
        if matched is None:
            raise ValueError(_("{text!r} does not say how many tasks each node has", text=text))
        counts += [int(matched[1])] * int(matched[2] or 1)
    return counts
