"""Messages between the backend and its workers.

Placeholders in a pickle call functions of this module during unpickling, so they are replaced at
any depth without a search.
"""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rhapsody.sdk import OWN_FILES as SDK_FILES
from rhapsody.sdk import dumps, pack_error, trimmed

MIN_BUFFER_SIZE = 1 << 20
"""Size in bytes from which a buffer is sent separately instead of inside the pickle."""

DONE, FAILED, CANCELED, DEPENDENCY = range(4)
"""Kinds of reply: returned, failed, canceled, not run because a dependency has no value."""

OWN_FILES: tuple[str, ...] = (
    *SDK_FILES,
    os.path.join(os.path.dirname(os.path.dirname(__file__)), ""),
)
"""Directories whose frames are removed from the tracebacks of tasks."""


class Order(NamedTuple):
    """Description of a task for the worker.

    Attributes:
        session: The backend's session, which identifies the backend on the worker.
        uid: The attempt's uid.
        name: The task's name.
        attempt: Number of the attempt, from 1.
        function: The packed function, or its index among the values if it is large; `None` for an
            executable.
        arguments: The packed arguments.
        more: Settings that only some tasks need; empty for a plain function.
        modules: The versions of the main program's own modules for the call; see
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


@dataclass(slots=True, eq=False, repr=False)
class Reply:
    """Outcome of a task.

    Attributes:
        kind: One of `DONE`, `FAILED`, `CANCELED`, `DEPENDENCY`.
        payload: The packed value or exception.
        buffers: The large buffers of the value.
        more: `stdout`, `stderr`, `exit_code`, `sandbox`, `usage`, `interval`, `directory`,
            `opened`, `files` and `left_out`, where they apply.
        worker: The address of the worker that ran the task.
        kept: A tuple with the unpacked value, for later tasks on the same worker. `None` until a
            task has used the value, and for types that are not in `UNCHANGEABLE`.
    """

    kind: int
    payload: Any = b""
    buffers: Sequence[Any] = ()
    more: Mapping[str, Any] | None = None
    worker: str | None = None
    kept: tuple[Any] | None = field(default=None, init=False)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        payload: Any = self.payload
        buffers: Sequence[Any] = self.buffers
        if protocol < 5:  # used on connections with Dask's scheduler
            if buffers:
                buffers = [memoryview(buffer).tobytes() for buffer in buffers]
            if type(payload) is not bytes:
                payload = bytes(payload)
        elif len(payload) >= MIN_BUFFER_SIZE:
            payload = pickle.PickleBuffer(payload)
        return type(self), (self.kind, payload, buffers, self.more, self.worker)

    def __sizeof__(self) -> int:
        """Return the size that Dask should count toward the worker's memory."""
        return 200 + len(self.payload) + sum(memoryview(each).nbytes for each in self.buffers)


ATTACHED = "rhapsody"
"""Key of the packed reply in the metadata of a Dask task that has ended."""

GroupReplies = dict[str, tuple[Reply, float]]
"""The reply of each call in a group, and the time in seconds that the call took, by uid."""


class Returned(Reply):
    """Reply of a function that returned; the scheduler plugin recognizes it by its type."""

    __slots__ = ()


class TaskRaised(Exception):  # noqa: N818 - carries a failure to Dask
    """Exception for a failed attempt that Dask itself should retry.

    Raised instead of returning the reply.
    """

    def __init__(self, reply: Reply, uid: str, error: str) -> None:
        super().__init__(error)  # Dask logs this text
        self.reply = reply
        self.uid = uid

    def __reduce__(self) -> tuple[Any, ...]:
        return TaskRaised, (self.reply, self.uid, *self.args)


def failure(error: BaseException) -> Reply:
    """Return the reply for an exception, without Rhapsody's frames in its traceback."""
    return Reply(FAILED, packed_error(error))


def packed_error(error: BaseException) -> bytes:
    """Return an exception as bytes, without Rhapsody's frames in its traceback."""
    packed: bytes = pack_error(trimmed(error, OWN_FILES))
    return packed


def key_of(name: str, session: str, uid: str) -> str:
    """Return a task's key in Dask, which is unique among all backends on the cluster.

    Dask's dashboard shows the key up to the first dash that is not followed by a word.
    """
    return f"{name}-{session}-{uid}"


def uid_in(key: str, session: str) -> str:
    """Return the uid in a key that `key_of` returned. For a group, it is the first call's."""
    return key.rpartition(f"-{session}-")[2].partition("+")[0]


def pack(
    value: Any, dump: Callable[..., bytes] = dumps, size: float = MIN_BUFFER_SIZE
) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """Pickle a value, and return its buffers of at least `size` bytes separately."""
    buffers: list[pickle.PickleBuffer] = []

    def inside(buffer: pickle.PickleBuffer) -> bool:
        with suppress(BufferError):  # not contiguous
            if buffer.raw().nbytes >= size:
                buffers.append(buffer)
                return False
        return True

    return dump(value, protocol=5, buffer_callback=inside), buffers


def unpack(payload: Any, buffers: Sequence[Any] = ()) -> Any:
    """Unpickle a value. The value shares the memory of the buffers."""
    return pickle.loads(payload, buffers=buffers)  # noqa: S301 - made by `pack` on our side


def read_only(buffers: Sequence[Any]) -> list[memoryview]:
    """Return read-only views of buffers, because other tasks on the worker share the memory."""
    return [memoryview(buffer).toreadonly() for buffer in buffers]


def writable(buffers: Sequence[Any]) -> list[Any]:
    """Return the buffers, with writable copies of those that are read-only."""
    return [bytearray(b) if memoryview(b).readonly else b for b in buffers]


UNCHANGEABLE = (bytes, str)
"""Immutable types: all tasks on a worker can share one object of such a type."""

_now = threading.local()


class ClusterValue:
    """Placeholder for a value that Dask holds: a large argument, or another task's result.

    Args:
        place: The value's index among the values that are sent with the task.
    """

    __slots__ = ("place",)

    def __init__(self, place: int) -> None:
        self.place: int = place

    def __reduce__(self) -> tuple[Any, ...]:
        return value_here, (self.place,)


def unpacked(packed: bytes, values: Sequence[Any], sandbox: str | None = None) -> Any:
    """Unpickle arguments, and replace placeholders with their values.

    Args:
        packed: The pickle.
        values: The values that Dask holds for the task.
        sandbox: The directory of the task's files on this worker.

    Returns:
        The arguments.
    """
    _now.values, _now.made, _now.sandbox = values, {}, sandbox
    try:
        return pickle.loads(packed)  # noqa: S301 - from our own backend
    finally:
        _now.values = _now.made = _now.sandbox = None


def value_here(place: int) -> Any:
    """Return the value for a `ClusterValue` or a reference; called during unpickling."""
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


def file_here(kind: Any, state: dict[str, Any]) -> Any:
    """Return a declared file bound to the sandbox on this worker; called during unpickling."""
    file = object.__new__(kind)
    for name, value in state.items():
        object.__setattr__(file, name, value)
    return file if _now.sandbox is None else file.bound_to(_now.sandbox)


# Files.


def pack_files(files: Iterable[tuple[str, str]]) -> tuple[bytes, list[str]]:
    """Pack files and directories, given as pairs of a name and a path.

    A link to another packed file of the same directory stays a link. For other links, the files to
    which they lead are packed.

    Returns:
        The archive, and the names of entries that were left out: dangling links, links that lead
        out of a directory, pipes and devices. Sockets are left out as well, but not named.
    """
    target = io.BytesIO()
    left_out: list[str] = []

    def fits(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        try:
            tarfile.data_filter(entry, "/sandbox")  # as during unpacking
        except tarfile.FilterError:
            left_out.append(entry.name)
            return None
        return entry

    paths = dict(files)
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, path in paths.items():
            try:
                real = path if _stays_link(path, paths) else os.path.realpath(path)
                archive.add(real, name, filter=fits)
            except FileNotFoundError:
                left_out.append(name)
    return target.getvalue(), sorted(left_out)


def _stays_link(path: str, paths: Mapping[str, str]) -> bool:
    if not os.path.islink(path):
        return False
    directory, target = os.path.dirname(path), os.path.normpath(os.readlink(path))
    first = target.partition("/")[0]
    return paths.get(first) == os.path.join(directory, first) and os.path.exists(path)


def unpack_files(packed: Any, directory: str) -> None:
    """Extract packed files to a directory.

    Existing files are kept, and nothing is written outside the directory.
    """
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r") as archive:
        for member in archive.getmembers():
            if not os.path.lexists(os.path.join(directory, member.name)):
                archive.extract(member, directory, filter="data")
