"""Futures of Dask's own among a task's arguments: their values go to the task, as with Dask alone.

The user has them from a client of the same scheduler, this backend's or another. They
are found while arguments are packed, and replaced in lists, tuples, dicts and sets at
any depth; what other objects hold stays a future.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


@functools.cache
def future_type() -> Any:
    """The class of Dask's futures; Dask is imported only when a backend starts."""
    from distributed import Future

    return Future


def swapped(value: Any, swap: Callable[[Any], Any]) -> Any:
    """The value with others in the place of Dask's futures; the same object where there are none.

    Args:
        value: What to look through.
        swap: Gives what takes the place of a future.
    """
    kind = type(value)
    if kind is future_type():
        return swap(value)
    if kind is dict:
        pairs = {swapped(key, swap): swapped(one, swap) for key, one in value.items()}
        same = all(key in value and value[key] is one for key, one in pairs.items())
        return value if same else pairs
    if kind in (list, tuple, set, frozenset):
        before = list(value)
        after = [swapped(one, swap) for one in before]
        same = all(a is b for a, b in zip(before, after, strict=True))
        return value if same else kind(after)
    return value
