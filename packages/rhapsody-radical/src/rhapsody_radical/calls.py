"""Function calls: packed for a worker, and their outcomes unpacked.

A call is pickled once, here. RADICAL-Pilot's messages are JSON or msgpack: what goes through them
is encoded as text, by the client (`as_text`).
"""

from __future__ import annotations

import base64
import os
import pickle
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, cached_property
from types import FunctionType
from typing import Any

import cloudpickle  # type: ignore[import-untyped]

from rhapsody import BackendError, TaskDescription
from rhapsody.sdk import (
    REFERENCE,
    ProtocolVersionError,
    Runner,
    call_spec,
    cannot_pack,
    dumps,
    finish,
    own_modules,
)
from rhapsody.sdk import unpack as unpack_result
from rhapsody_radical import call
from rhapsody_radical.descriptions import as_list
from rhapsody_radical.translate import plain, thread_variables


def pack(
    task: TaskDescription,
    settings: Mapping[str, Any],
    *,
    capture: Any,
    directory: str | None = None,
    batch: Batch | None = None,
) -> tuple[Any, ...]:
    """Pack a call for `rhapsody_radical.call`, as a tuple of plain values.

    Args:
        task: The task.
        settings: Its settings in RADICAL-Pilot's own words.
        capture: What to keep of its output.
        directory: Where large values of the call and its reply go, which both sides see;
            `None` where there is no such place. `forget` removes them.
        batch: What the calls that are packed with this one share.

    Raises:
        TypeError: Something of the call cannot be pickled; it says what.
    """
    environment = thread_variables(task, settings)
    environment.update({name: plain(value) for name, value in task.get("environment", {}).items()})
    environment.update(settings.get("environment") or {})
    environment["RP_TASK_ID"] = task["uid"]
    modules = own_modules()
    more = {
        "path": own_path() if batch is None else batch.path,
        "pre_exec": as_list(settings.get("pre_exec")),
        "values": directory,
        "modules": None,
    }
    if modules is not None and directory is not None and batch is not None:
        more["modules"] = _kept(modules, directory)
        modules = modules[:REFERENCE]
    order = call_spec(task, environment=environment, more=more, modules=modules)
    order = order._replace(capture=capture)
    return (*order, _packed_call(task, directory, batch))


def as_text(order: tuple[Any, ...]) -> str:
    """Return a packed call as text, for `rhapsody_radical.call.run`."""
    return base64.b64encode(pickle.dumps(order, 5)).decode("ascii")


def own_path() -> list[str]:
    """Return the program's own directories of `sys.path`, without those of its environment.

    Modules there travel by name: a worker on the same file system imports them from there.
    """
    installed = tuple({os.path.join(prefix, "") for prefix in (sys.prefix, sys.base_prefix)})
    here, paths = os.getcwd(), [entry for entry in sys.path if isinstance(entry, str)]
    found = [os.path.normpath(os.path.join(here, path)) for path in paths]
    return [path for path in found if not path.startswith(installed)]


def _kept(modules: bytes, directory: str) -> str:
    """Return the file with the program's own modules, which the first call creates."""
    path = os.path.join(directory, f"modules.{modules[:REFERENCE].hex()}")
    if not os.path.exists(path):
        with tempfile.TemporaryDirectory(dir=directory) as private:
            part = os.path.join(private, "modules")
            with open(part, "wb") as file:
                file.write(modules)
            os.replace(part, path)
    return path


def forget(directory: str, uid: str) -> None:
    """Remove the remaining files of a call, whatever its result."""
    for kind in ("call", "arguments", "reply", "result"):
        with suppress(OSError):
            os.unlink(os.path.join(directory, f"{uid}.{kind}"))


class Batch:
    """Calls that are submitted together: each of their functions is pickled, and sent, once.

    A function is as it was at each of the calls, or newer: all were made before the first is
    packed.
    """

    def __init__(self) -> None:
        # With the function, which keeps its id in use.
        self._found: dict[int, tuple[Any, bytes | None]] = {}

    @cached_property
    def path(self) -> list[str]:
        """The program's own path, see `own_path`."""
        return own_path()

    def pickled(self, function: Any) -> bytes | None:
        """Return a function's pickle; `None` if it is large, or may share data with arguments.

        Raises:
            Exception: Pickling runs the code of the function's data.
        """
        if type(function) is not FunctionType:
            return None
        found = self._found.get(id(function))
        if found is None:
            data = dumps(function)
            kept = None if len(data) > call.LARGE else data
            found = self._found[id(function)] = (function, kept)
        return found[1]


def _packed_call(
    task: TaskDescription, directory: str | None, batch: Batch | None
) -> tuple[bytes | None, bytes | str]:
    """Pickle a call, for `rhapsody_radical.call.RaptorRunner.load`."""
    function = task["function"]
    try:
        pickled = None if batch is None else batch.pickled(function)
        shared = () if pickled is not None else (function,)
        data, buffers = call.dump((*shared, task["args"], task["kwargs"]), directory)
    except Exception as error:  # pickling runs the objects' own code
        raise cannot_pack(task, error) from error
    return pickled, call.store(data, buffers, directory, f"{task['uid']}.arguments")


def _runner() -> bytes:
    """Return `call.run` pickled by value, because workers need not have this package."""
    with _packing:  # the registration is the process's, and other backends may be at it
        return _packed_runner()


@cache
def _packed_runner() -> bytes:
    shipped = (call, sys.modules[Runner.__module__])
    for module in shipped:
        cloudpickle.register_pickle_by_value(module)
    try:
        packed: bytes = cloudpickle.dumps(call.run)
    finally:
        for module in shipped:
            cloudpickle.unregister_pickle_by_value(module)
    return packed


_packing = threading.Lock()


def python_task(order: tuple[Any, ...]) -> str:
    """Return a packed call as a function task of RADICAL-Pilot (`PythonTask`)."""
    encoded = {"func": _runner(), "args": (as_text(order),), "kwargs": {}}
    return base64.b64encode(pickle.dumps(encoded)).decode("ascii")


def unpack(reply: str | bytes, task: TaskDescription) -> BaseException | None:
    """Write an outcome, or what came of its text on the way, into a task's description.

    Returns:
        The exception of a call that raised, with its traceback there as the cause.
    """
    try:
        packed = base64.b64decode(reply) if isinstance(reply, str) else reply
        outcome = unpack_result(packed)
    except (ProtocolVersionError, BackendError) as error:
        return error
    except ValueError as error:
        return BackendError(f"what came back from a worker cannot be read: {error}")
    return finish(task, outcome, call.load)
