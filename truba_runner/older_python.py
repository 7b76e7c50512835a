"""What newer versions of Python have and 3.9, the login nodes' own, has not."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
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
    """Do what `zip(..., strict=True)` does from Python 3.10 on.

    Raises:
        ValueError: one of the parts ended before another.
    """
    for together in itertools.zip_longest(*parts, fillvalue=_ENDED):
        if any(one is _ENDED for one in together):
            raise ValueError("the parts put together differ in length")
        yield together
