"""Puts a task's arguments together again from what came with it and what Dask holds.

Placeholders in the pickle call back into this module while it is loaded, so that
they are found at any depth without a search.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Sequence
from typing import Any

from rhapsody_dask.worker.messages import read_only, unpack

UNCHANGEABLE = (bytes, str)
"""Types of which all tasks of a worker can have the same object."""

_now = threading.local()


class Value:
    """Stands for a value that Dask holds: a big argument, or what another task returned.

    Args:
        place: Where it is among the values that come with the task.
    """

    __slots__ = ("place",)

    def __init__(self, place: int) -> None:
        self.place: int = place

    def __reduce__(self) -> tuple[Any, ...]:
        return _value, (self.place,)


def unpacked(packed: bytes, values: Sequence[Any], sandbox: str | None = None) -> Any:
    """The packed arguments, with placeholders replaced.

    Args:
        packed: The bytes.
        values: What Dask holds for the task.
        sandbox: Where the task's files are on this worker.
    """
    _now.values, _now.made, _now.sandbox = values, {}, sandbox
    try:
        return pickle.loads(packed)  # noqa: S301 - from our own backend
    finally:
        _now.values = _now.made = _now.sandbox = None


def _value(place: int) -> Any:
    made = _now.made
    if place not in made:
        reply = _now.values[place]
        if reply.kept is None:
            value = unpack(reply.payload, read_only(reply.buffers))
            if type(value) in UNCHANGEABLE:
                reply.kept = (value,)
        else:
            (value,) = reply.kept
        made[place] = value
    return made[place]


def value_here(place: int) -> Any:
    """What `Value` and references are unpacked by."""
    return _value(place)


def file_here(kind: Any, state: dict[str, Any]) -> Any:
    """A declared file, bound to the sandbox that the task has on this worker."""
    file = object.__new__(kind)
    for name, value in state.items():
        object.__setattr__(file, name, value)
    sandbox = getattr(_now, "sandbox", None)
    return file if sandbox is None else file.bound_to(sandbox)
