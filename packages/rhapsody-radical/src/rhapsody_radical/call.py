"""Makes one call of a function task, where it runs: on a RAPTOR worker or in a program.

A call and its reply travel as text, because RAPTOR's channels take little else. What
a call raises, `SystemExit` and its like included, is its reply: nothing but text ever
leaves `run`. RAPTOR workers need nothing of ours installed: our own have this file, others are
sent `run` by value. It imports what it needs when it runs.
"""

from __future__ import annotations

import sys
from typing import Any


def run(text: str) -> str:
    """Makes a call.

    Args:
        text: The order, made by `rhapsody_radical.calls.pack`.

    Returns:
        The reply, read by `rhapsody_radical.calls.unpack`.
    """
    import base64
    import os
    import pickle
    import socket

    order = pickle.loads(base64.b64decode(text))  # noqa: S301 - from the program that we serve
    reply: dict[str, Any] = {"pid": os.getpid(), "host": socket.gethostname()}
    former = dict(os.environ)
    directory = os.getcwd()
    restore = _capture(order, reply)
    try:
        os.environ.update(order["environment"])
        if order["sandbox"]:
            os.makedirs(order["sandbox"], mode=0o700, exist_ok=True)
            os.chdir(order["sandbox"])
        _prepare(order)
        sys.path += [path for path in order["path"] if path not in sys.path]
        function, args, kwargs = pickle.loads(order["call"])  # noqa: S301 - as above
        value = _called(order, function, args, kwargs)
        reply["done"], reply["payload"] = True, _packed(order, value)
    except BaseException as error:  # whatever a task raises is its result
        reply["done"], reply["payload"] = False, _packed_error(error)
    finally:
        restore()
        os.environ.clear()
        os.environ.update(former)
        os.chdir(directory)
    return base64.b64encode(pickle.dumps(reply)).decode("ascii")


def _prepare(order: dict[str, Any]) -> None:
    """Runs the task's `pre_exec` commands in its sandbox, and takes over what they export."""
    import os
    import shutil
    import subprocess
    import tempfile

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
    import contextlib
    import time

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
    import contextvars
    import threading

    async def wait() -> Any:
        return await value

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait())
    # RAPTOR's own worker calls us from within a loop.
    outcome: list[Any] = [None, None]

    def body() -> None:
        try:
            outcome[0] = asyncio.run(wait())
        except BaseException as error:  # raised below, where the task is
            outcome[1] = error

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(body,))
    thread.start()
    thread.join()
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def _packed(order: dict[str, Any], value: Any) -> bytes:
    import cloudpickle  # type: ignore[import-untyped,unused-ignore]

    try:
        packed: bytes = cloudpickle.dumps(value)
    except Exception as error:  # pickling runs the objects' own code
        raise TypeError(
            f"task {order['name']!r}: its result ({type(value).__qualname__}) cannot be pickled "
            f"back from its worker: {type(error).__name__}: {error}; return data that can be"
        ) from None
    return packed


def _packed_error(error: BaseException) -> bytes:
    """An exception of its own type wherever that can be had, with its traceback as text."""
    import pickle
    import traceback

    import cloudpickle  # type: ignore[import-untyped,unused-ignore]

    text = "".join(traceback.format_exception(error))
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    plain = {}
    for key, value in vars(error).items():
        try:
            cloudpickle.dumps(value)
        except Exception:  # noqa: S112 - what cannot travel stays behind
            continue
        plain[key] = value
    for candidate in (error, (type(error), error.args, plain), (type(error), (str(error),), plain)):
        try:
            packed: bytes = cloudpickle.dumps({"error": candidate, "text": text, "kind": kind})
            again = pickle.loads(packed)["error"]  # noqa: S301 - made above
            if isinstance(again, tuple) or type(again) is type(error):
                return packed
        except Exception:  # noqa: S112 - an exception class may do anything; try the next way
            continue
    return pickle.dumps({"error": None, "text": text, "kind": f"{kind}: {error}"})


def _capture(order: dict[str, Any], reply: dict[str, Any]) -> Any:
    """Sends what the process prints to files; returns what brings it back into the reply."""
    import io
    import os
    import tempfile

    capture = order["capture"]
    if capture is False:
        return lambda: None
    streams: list[tuple[str, int, int, Any, Any]] = []
    for number, name in ((1, "stdout"), (2, "stderr")):
        former = getattr(sys, name)
        if former is not None:
            former.flush()
        if capture == "files":
            os.makedirs(order["sandbox"], mode=0o700, exist_ok=True)
            path = os.path.join(order["sandbox"], f"{order['uid']}.{name[3:]}")
            file: Any = open(path, "w+b")  # noqa: SIM115 - closed by `restore`
        else:
            file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `restore`
        kept = os.dup(number)
        os.dup2(file.fileno(), number)
        wrapper = io.TextIOWrapper(
            os.fdopen(os.dup(number), "wb", 0), "utf-8", "replace", write_through=True
        )
        setattr(sys, name, wrapper)
        streams.append((name, number, kept, former, file))

    def restore() -> None:
        for name, number, kept, former, file in streams:
            stream = getattr(sys, name)
            stream.flush()
            if isinstance(stream, io.TextIOWrapper) and stream is not former:
                stream.close()
            setattr(sys, name, former)
            os.dup2(kept, number)
            os.close(kept)
            if capture == "files":
                reply[name] = file.name
            else:
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                text = file.read(1 << 20).decode("utf-8", "replace")
                reply[name] = (
                    text if size <= 1 << 20 else f"{text}\n[cut: {size} bytes were printed]\n"
                )
            file.close()

    return restore


def main(order: str, reply: str) -> int:
    """Makes a call whose order is in one file and puts the reply into another.

    Returns:
        0; the reply says whether the call succeeded.
    """
    import os

    with open(order) as file:
        text = file.read()
    answer = run(text)
    with open(f"{reply}.part", "w") as file:
        file.write(answer)
    os.replace(f"{reply}.part", reply)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
