"""The table of Slurm versions and tests in the pages is what the tests themselves write."""

from __future__ import annotations

import slurm_table

PAGE = """Text.

| tests | 22.05 | 24.11 | 26.05 |
|---|---|---|---|
| `test_queue.py` | 3/3 | – | 2/3 |

More text.
"""


def test_cells_of_one_version_are_written_and_the_others_stay() -> None:
    counts = {"test_queue.py": "3/3", "test_a.py": "1/2"}
    assert slurm_table.updated(PAGE, "tests", "26.05", counts) == PAGE.replace(
        "| `test_queue.py` | 3/3 | – | 2/3 |", "| `test_a.py` | – | – | 1/2 |\n| `test_queue.py` | 3/3 | – | 3/3 |"
    )


def test_both_pages_have_the_table() -> None:
    for page, head in slurm_table.HEADS.items():
        text = (slurm_table.DOCS / page).read_text()
        assert slurm_table.updated(text, head, slurm_table.VERSIONS[0], {}) == text
