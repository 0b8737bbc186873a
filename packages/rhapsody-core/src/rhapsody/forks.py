"""Objects that a forked child does not share with its parent."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """Holder of one object per process: a forked child creates its own when it first needs it.

    The object of the parent may contain locks that other threads held during the fork.

    Args:
        make: Function that creates the object. Called now, and again in forked children.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._owned = os.getpid(), make()

    def get(self) -> T:
        """Return the object of this process."""
        process, value = self._owned
        if process != os.getpid():
            value = self._make()
            self._owned = os.getpid(), value
        return value
