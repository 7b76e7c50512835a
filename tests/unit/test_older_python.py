"""What stands in for newer Python's own in Python 3.9 does the same."""

from __future__ import annotations

import pytest

from truba_runner.older_python import _standard_library_files, standard_library, zip_equal


def test_parts_of_the_same_length_are_put_together() -> None:
    assert [*zip_equal("ab", [1, 2])] == [("a", 1), ("b", 2)] and not [*zip_equal()]
    assert [*zip_equal("ab", [None, None], iter("cd"))] == [("a", None, "c"), ("b", None, "d")]
    for parts in (["ab", "a"], ["", "a"], [iter("a"), "bc", "de"]):
        with pytest.raises(ValueError):
            [*zip_equal(*parts)]


def test_the_standard_library_is_known() -> None:
    assert standard_library() >= {"os", "_thread", "json", "math"}
    found = _standard_library_files()
    assert found >= {"os", "_thread", "json", "math", "asyncio", "_ctypes"} and "numpy" not in found
    assert not [name for name in ("random", "collections", "uuid", "socket") if name not in found]
