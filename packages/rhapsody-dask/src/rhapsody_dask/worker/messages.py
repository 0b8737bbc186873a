"""Puts a task's arguments together again from what came with it and what Dask holds.

Placeholders in the pickle call back into this module while it is loaded, so that
they are found at any depth without a search.
"""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rhapsody.sdk import OWN_FILES as SDK_FILES
from rhapsody.sdk import dumps, pack_error, trimmed

BIG = 1 << 20
"""Bytes from which a buffer travels beside the pickle instead of in it."""

DONE, FAILED, CANCELED, DEPENDENCY = range(4)
"""What a reply says: it returned, it failed, it was stopped, it never ran for a dependency."""

OWN_FILES: tuple[str, ...] = (
    *SDK_FILES,
    os.path.join(os.path.dirname(os.path.dirname(__file__)), ""),
)
"""Where the code is that runs tasks: its frames are left out of their tracebacks."""


class Order(NamedTuple):
    """What a worker has to know of a task besides the call itself.

    Attributes:
        session: The backend's session, which the worker's site is known by.
        uid: The attempt's uid.
        name: The task's name.
        attempt: Counted from 1.
        function: The packed function, or its place among the values where it is big;
            `None` for an executable.
        arguments: The packed arguments.
        more: What only some tasks have; empty for a plain function.
        modules: The versions of the program's own modules for the call, see
            `rhapsody.sdk.CallSpec`.
    """

    session: str
    uid: str
    name: str
    attempt: int
    function: bytes | int | None
    arguments: bytes
    more: Mapping[str, Any]
    modules: bytes | None = None


class Reply:
    """What came of a task.

    Attributes:
        kind: One of `DONE`, `FAILED`, `CANCELED`, `DEPENDENCY`.
        payload: The packed value or exception.
        buffers: Its big buffers.
        more: `stdout`, `stderr`, `exit_code`, `sandbox` and `files`, those that apply.
        worker: The worker that ran it.
        kept: On a worker, the value in a tuple, where it was unpacked and cannot be changed.
    """

    __slots__ = ("buffers", "kept", "kind", "more", "payload", "worker")

    def __init__(
        self,
        kind: int,
        payload: Any = b"",
        buffers: Sequence[Any] = (),
        more: Mapping[str, Any] | None = None,
        worker: str | None = None,
    ) -> None:
        self.kind: int = kind
        self.payload: Any = payload
        self.buffers: Sequence[Any] = buffers
        self.more: Mapping[str, Any] | None = more
        self.worker: str | None = worker
        self.kept: tuple[Any] | None = None

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        payload: Any = self.payload
        buffers: Sequence[Any] = self.buffers
        if protocol < 5:  # as on every connection with Dask's scheduler
            if buffers:
                buffers = [memoryview(buffer).tobytes() for buffer in buffers]
            if type(payload) is not bytes:
                payload = bytes(payload)
        elif len(payload) >= BIG:
            payload = pickle.PickleBuffer(payload)
        return type(self), (self.kind, payload, buffers, self.more, self.worker)

    def __sizeof__(self) -> int:
        """So that Dask's account of the worker's memory is right."""
        size = 200 + len(self.payload)
        for buffer in self.buffers:
            size += memoryview(buffer).nbytes
        return size


class Returned(Reply):
    """The reply of a function that returned. The client learns the type before the reply."""

    __slots__ = ()


class TaskRaised(Exception):  # noqa: N818 - carries a failure, is none
    """Raised instead of a reply where Dask itself is to try again."""

    def __init__(self, reply: Reply, uid: str, error: str) -> None:
        super().__init__(error)  # what Dask writes into its log
        self.reply = reply
        self.uid = uid

    def __reduce__(self) -> tuple[Any, ...]:
        return TaskRaised, (self.reply, self.uid, *self.args)


def failure(error: BaseException) -> Reply:
    """Return the reply for an exception, with the traceback from the user's code on."""
    return Reply(FAILED, packed_error(error))


def packed_error(error: BaseException) -> bytes:
    """Return an exception as bytes, with the traceback from the user's code on."""
    packed: bytes = pack_error(trimmed(error, OWN_FILES))
    return packed


def key_of(name: str, session: str, uid: str) -> str:
    """A task's key in Dask: no other backend on the cluster has the same, whatever its uids.

    Dask's dashboard shows what is before the first dash that no word follows.
    """
    return f"{name}-{session}-{uid}"


def pack(value: Any) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """A value as bytes, and its big buffers."""
    buffers: list[pickle.PickleBuffer] = []

    def small(buffer: pickle.PickleBuffer) -> bool:
        try:
            if buffer.raw().nbytes < BIG:
                return True
        except BufferError:  # not contiguous
            return True
        buffers.append(buffer)
        return False

    return dumps(value, protocol=5, buffer_callback=small), buffers


def unpack(payload: Any, buffers: Sequence[Any] = ()) -> Any:
    """The value again. It uses the buffers' own memory."""
    return pickle.loads(payload, buffers=buffers)  # noqa: S301 - made by `pack` on our side


def read_only(buffers: Sequence[Any]) -> list[memoryview]:
    """The buffers as nobody can change them: other tasks on the worker see the same memory."""
    return [memoryview(buffer).toreadonly() for buffer in buffers]


def writable(buffers: Sequence[Any]) -> list[Any]:
    """The buffers as their owner may change them; copied where they are read-only."""
    return [bytearray(b) if memoryview(b).readonly else b for b in buffers]


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
