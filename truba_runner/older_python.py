"""Functions of newer Python versions that Python 3.9, which login nodes have, lacks."""

from __future__ import annotations

import itertools
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, overload

_A = TypeVar("_A")
_B = TypeVar("_B")
_C = TypeVar("_C")
_ENDED = object()


@overload
def zip_equal(first: Iterable[_A], second: Iterable[_B], /) -> Iterator[tuple[_A, _B]]: ...
@overload
def zip_equal(first: Iterable[_A], second: Iterable[_B], third: Iterable[_C], /) -> Iterator[tuple[_A, _B, _C]]: ...
@overload
def zip_equal(*parts: Iterable[_A]) -> Iterator[tuple[_A, ...]]: ...


def zip_equal(*parts: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """Do the same as `zip(..., strict=True)`, which Python 3.9 lacks.

    Raises:
        ValueError: one of the parts ended before another.
    """
    for together in itertools.zip_longest(*parts, fillvalue=_ENDED):
        if any(one is _ENDED for one in together):
            raise ValueError("lengths differ")
        yield together


@cache
def standard_library() -> frozenset[str]:
    """Return the top-level names of Python's own modules; from Python 3.10 on, `sys.stdlib_module_names`."""
    known: frozenset[str] | None = getattr(sys, "stdlib_module_names", None)
    return known if known is not None else _standard_library_files()


def _standard_library_files() -> frozenset[str]:
    """Return these names in Python 3.9, from the files of its library."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = [*folder.glob("*.py"), *(folder / "lib-dynload").glob("*.so"), *folder.glob("*/__init__.py")]
    names = {(file.parent if file.name == "__init__.py" else file).name.partition(".")[0] for file in files}
    return frozenset(names | set(sys.builtin_module_names)) - {"test"}
