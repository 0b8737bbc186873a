"""Makes one call of a function task, where it runs: on a RAPTOR worker or in a program.

A call and its reply travel as text, because RAPTOR's channels take little else. Large
values are in files beside it, where both sides see the same file system. What
a call raises, `SystemExit` and its like included, is its reply: nothing but text ever
leaves `run`. RAPTOR workers need nothing of ours installed: our own have this file, others are
sent `run` by value. It needs the standard library, and cloudpickle once it runs.
"""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import contextvars
import io
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

LARGE = 1 << 16
"""Bytes from which on a value travels in a file, where there is a directory for it."""

MOST = 32 << 20
"""Bytes of a value that travel as text at most, where there is none."""

KEPT = 1 << 20
"""Bytes of output, and characters of a traceback, that a reply holds at most."""


def run(text: str) -> str:
    """Makes a call.

    Args:
        text: The order, made by `rhapsody_radical.calls.pack`.

    Returns:
        The reply, read by `rhapsody_radical.calls.unpack`.
    """
    order = pickle.loads(base64.b64decode(text))  # noqa: S301 - from the program that we serve
    reply: dict[str, Any] = {"pid": os.getpid(), "host": socket.gethostname()}
    former, directory = dict(os.environ), os.getcwd()
    with contextlib.ExitStack() as restore:
        restore.callback(os.chdir, directory)
        restore.callback(os.environ.update, former)
        restore.callback(os.environ.clear)
        try:
            os.environ.update(order["environment"], RP_TASK_ID=order["uid"])
            if order["sandbox"]:
                os.makedirs(order["sandbox"], mode=0o700, exist_ok=True)
                os.chdir(order["sandbox"])
            if order["capture"] is not False:
                restore.callback(_capture(order, reply, 1, "stdout"))
                restore.callback(_capture(order, reply, 2, "stderr"))
            _prepare(order)
            sys.path += [path for path in order["path"] if path not in sys.path]
            value = _called(order, *load(order["call"]))
            reply["done"], reply["payload"] = True, _packed(order, value)
        except BaseException as error:  # whatever a task raises is its result
            reply["done"], reply["payload"] = False, _packed_error(order, error)
    return base64.b64encode(pickle.dumps(reply)).decode("ascii")


# Values.


def dump(value: Any, directory: str | None) -> tuple[bytes, list[memoryview]]:
    """Pickles a value.

    Args:
        value: The value.
        directory: The directory for a file of it, `None` where there is none.

    Returns:
        The pickle, and its large buffers, which are not copied where there is a directory.
    """
    import cloudpickle  # type: ignore[import-untyped,unused-ignore]

    buffers: list[memoryview] = []

    def stays(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < LARGE:
            return True
        buffers.append(view)
        return False

    callback = None if directory is None else stays
    data: bytes = cloudpickle.dumps(value, protocol=5, buffer_callback=callback)
    return data, buffers


def too_large(data: bytes, directory: str | None) -> bool:
    """Whether a pickle can travel neither as text nor in a file."""
    return directory is None and len(data) > MOST


def refusal(what: str, size: int) -> str:
    """Words the error for a value that is too large."""
    return (
        f"{what} takes {size / (1 << 20):.1f} MiB, and RADICAL-Pilot carries {MOST >> 20} MiB at "
        "most to or from a pilot on another file system: write the data to a file, and pass its "
        "path or stage it; or use a pilot that shares this machine's file system"
    )


def store(data: bytes, buffers: list[memoryview], directory: str | None, name: str) -> bytes | str:
    """Puts what `dump` made into a private file, where it is large.

    Returns:
        The file's path, or the pickle itself; `load` takes either.
    """
    if directory is None or (not buffers and len(data) <= LARGE):
        return data
    path = os.path.join(directory, name)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # of a former session with the same directory
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            pickle.dump([buffer.nbytes for buffer in buffers], file)
            file.writelines(buffers)
            file.write(data)
    except OSError as error:
        os.unlink(path)
        raise OSError(error.errno, error.strerror, path) from None
    return path


def load(stored: bytes | str) -> Any:
    """Unpickles what `store` returned, and removes its file."""
    if isinstance(stored, bytes):
        return pickle.loads(stored)  # noqa: S301 - from the other side of the call
    with open(stored, "rb") as file:
        os.unlink(stored)
        buffers = [bytearray(size) for size in pickle.load(file)]  # noqa: S301 - as above
        for buffer in buffers:
            file.readinto(buffer)
        return pickle.load(file, buffers=buffers)  # noqa: S301 - as above


# The call.


def _prepare(order: dict[str, Any]) -> None:
    """Runs the task's `pre_exec` commands in its sandbox, and takes over what they export."""
    if order["pre_exec"]:
        shell = shutil.which("bash") or "/bin/sh"  # RADICAL-Pilot's scripts are bash's, too
        with tempfile.NamedTemporaryFile() as file:
            script = "\n".join(["set -e", *order["pre_exec"], f"env -0 > '{file.name}'"])
            subprocess.run([shell, "-c", script], check=True)  # noqa: S603 - the user's own
            pairs = file.read().decode(errors="surrogateescape").split("\0")
        for name, found, value in (pair.partition("=") for pair in pairs):
            if found:
                os.environ[name] = value


def _called(order: dict[str, Any], function: Any, args: Any, kwargs: Any) -> Any:
    """Calls the function, a coroutine function on a loop of its own, with its context set."""
    scope: Any = contextlib.nullcontext()
    try:
        from rhapsody.context import TaskContext, task_context
    except ImportError:  # only `current_task()` needs it
        pass
    else:
        timeout = order["timeout"]
        scope = task_context(
            TaskContext(
                uid=order["uid"],
                name=order["name"],
                attempt=order["attempt"],
                sandbox=order["sandbox"],
                deadline=None if timeout is None else time.time() + timeout,
            )
        )
    with scope:
        value = function(*args, **kwargs)
        return _awaited(value) if hasattr(value, "__await__") else value


def _awaited(value: Any) -> Any:
    import asyncio

    async def wait() -> Any:
        return await value

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait())
    # RAPTOR's own worker calls us from within a loop.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(contextvars.copy_context().run, asyncio.run, wait()).result()


def _packed(order: dict[str, Any], value: Any) -> bytes | str:
    what = f"task {order['name']!r}: its result ({type(value).__qualname__})"
    directory = order["directory"]
    try:
        data, buffers = dump(value, directory)
    except Exception as error:  # pickling runs the objects' own code
        raise TypeError(
            f"{what} cannot be pickled back from its worker: {type(error).__name__}: {error}; "
            "return data that can be"
        ) from None
    if too_large(data, directory):
        raise ValueError(refusal(what, len(data)))
    return store(data, buffers, directory, f"{order['uid']}.result")


def _packed_error(order: dict[str, Any], error: BaseException) -> bytes | str:
    """An exception of its own type wherever that can be had, with its traceback as text."""
    directory = order["directory"]
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    reply = {"kind": kind, "text": "".join(traceback.format_exception(error))[-KEPT:]}
    try:
        said = str(error)[:KEPT]
    except Exception as mistake:  # a class's own code must not hide the exception
        said = f"(its text cannot be made: {type(mistake).__name__})"
    plain = {}
    for key, value in vars(error).items():
        with contextlib.suppress(Exception):  # what cannot travel stays behind
            if not too_large(dump(value, directory)[0], directory):
                plain[key] = value
    for form in (error, (type(error), error.args, plain), (type(error), (said,), plain)):
        try:
            data, buffers = dump({**reply, "error": form}, directory)
            again = pickle.loads(data, buffers=buffers)["error"]  # noqa: S301 - made above
            same = isinstance(again, tuple) or type(again) is type(error)
            if same and not too_large(data, directory):
                return store(data, buffers, directory, f"{order['uid']}.result")
        except Exception:  # noqa: S112 - an exception class may do anything; try the next way
            continue
    return pickle.dumps({**reply, "error": None, "kind": f"{kind}: {said}"})


def _capture(
    order: dict[str, Any], reply: dict[str, Any], number: int, name: str
) -> Callable[[], None]:
    """Sends an output of the process to a file; returns what brings it back into the reply."""
    former = getattr(sys, name)
    if former is not None:
        former.flush()
    path = os.path.join(order["sandbox"] or "", f"{order['uid']}.{name[3:]}")
    kept_there = order["capture"] == "files"
    file: Any = open(path, "w+b") if kept_there else tempfile.TemporaryFile()  # noqa: SIM115
    kept = os.dup(number)
    os.dup2(file.fileno(), number)
    raw = os.fdopen(os.dup(number), "wb", 0)
    stream = io.TextIOWrapper(raw, "utf-8", "replace", write_through=True)
    setattr(sys, name, stream)

    def restore() -> None:
        with contextlib.suppress(Exception):  # the call may have closed it, or put another there
            getattr(sys, name).flush()
        stream.close()
        setattr(sys, name, former)
        os.dup2(kept, number)
        os.close(kept)
        with file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            reply[name] = path if kept_there else file.read(KEPT).decode("utf-8", "replace")
        if size > KEPT and not kept_there:
            reply[name] += f"\n[cut: {size} bytes were printed]\n"

    return restore


def main(order: str, reply: str) -> int:
    """Makes a call whose order is in one file and puts the reply into another.

    Returns:
        0; the reply says whether the call succeeded.
    """
    part = Path(f"{reply}.part")
    part.write_text(run(Path(order).read_text()))
    part.replace(reply)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
