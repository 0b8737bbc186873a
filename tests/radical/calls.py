"""Calls packed as the backend sends them, and values of calls."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from rhapsody_radical import functions
from rhapsody_radical.functions import completed

MIB = 1 << 20


class Block(bytearray):
    """Pickles like NumPy's arrays: with its bytes out of band if protocol 5 allows it."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _block, (pickle.PickleBuffer(self),)


class Frozen(Block):
    """Block with read-only data."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _frozen, (pickle.PickleBuffer(bytes(self)),)


def _block(data: Any) -> Block:
    assert not memoryview(data).readonly
    return Block(data)


def _frozen(data: Any) -> Frozen:
    assert memoryview(data).readonly
    return Frozen(data)


def same(value: Any) -> Any:
    return value


def packed(directory: Path | None, function: Any, *args: Any, **kwargs: Any) -> tuple[Any, str]:
    task = completed("task.1", {"function": function, "args": args, "kwargs": kwargs}, None)
    where = None if directory is None else str(directory)
    return task, functions.as_text(functions.pack(task, {}, capture=True, directory=where))
