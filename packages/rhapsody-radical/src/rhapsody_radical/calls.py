"""A function task's call as text, and its reply back, on the side of the engine."""

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
from rhapsody_radical.translate import thread_variables


def pack(
    task: TaskDescription,
    settings: Mapping[str, Any],
    *,
    capture: Any,
    directory: str | None = None,
    batch: Batch | None = None,
) -> str:
    """Makes an order for `rhapsody_radical.call.run`, as text.

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
    environment.update(task.get("environment", {}))
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
    packed = pickle.dumps((*order, _packed_call(task, directory, batch)), 5)
    return base64.b64encode(packed).decode("ascii")


def own_path() -> list[str]:
    """The program's own directories of `sys.path`, without those of its environment.

    Modules there travel by name: a worker on the same file system imports them from there.
    """
    installed = tuple({os.path.join(prefix, "") for prefix in (sys.prefix, sys.base_prefix)})
    here, paths = os.getcwd(), [entry for entry in sys.path if isinstance(entry, str)]
    found = [os.path.normpath(os.path.join(here, path)) for path in paths]
    return [path for path in found if not path.startswith(installed)]


def _kept(modules: bytes, directory: str) -> str:
    """The file with the program's own modules, which the first call creates."""
    path = os.path.join(directory, f"modules.{modules[:REFERENCE].hex()}")
    if not os.path.exists(path):
        with tempfile.TemporaryDirectory(dir=directory) as private:
            part = os.path.join(private, "modules")
            with open(part, "wb") as file:
                file.write(modules)
            os.replace(part, path)
    return path


def forget(directory: str, uid: str) -> None:
    """Removes what is left of a call's files, whatever became of it."""
    for kind in ("call", "arguments", "reply", "result"):
        with suppress(OSError):
            os.unlink(os.path.join(directory, f"{uid}.{kind}"))


class _Once:
    """A function that was pickled already: what is unpickled is the function."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self._data,)


class Batch:
    """What calls that are packed together share: each of their functions is pickled once.

    A function is as it was at each of the calls, or newer: all were made before the first is
    packed.
    """

    def __init__(self) -> None:
        self._found: dict[int, tuple[Any, Any]] = {}  # with the function, which keeps its number

    @cached_property
    def path(self) -> list[str]:
        """The program's own path, see `own_path`."""
        return own_path()

    def once(self, function: Any) -> Any:
        """What is pickled in place of a function: itself where it may share its data, or is large.

        Raises:
            Exception: Whatever its data raise.
        """
        if type(function) is not FunctionType:
            return function
        found = self._found.get(id(function))
        if found is None:
            data = dumps(function)
            once = function if len(data) > call.LARGE else _Once(data)
            found = self._found[id(function)] = (function, once)
        return found[1]


def _packed_call(task: TaskDescription, directory: str | None, batch: Batch | None) -> bytes | str:
    try:
        function = task["function"] if batch is None else batch.once(task["function"])
        data, buffers = call.dump((function, task["args"], task["kwargs"]), directory)
    except Exception as error:  # pickling runs the objects' own code
        raise cannot_pack(task, error) from error
    return call.store(data, buffers, directory, f"{task['uid']}.arguments")


def _runner() -> bytes:
    """`call.run` by value: workers need not have this package."""
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


def python_task(order: str) -> str:
    """An order as a function task of RADICAL-Pilot (`PythonTask`)."""
    encoded = {"func": _runner(), "args": (order,), "kwargs": {}}
    return base64.b64encode(pickle.dumps(encoded)).decode("ascii")


def unpack(text: str, task: TaskDescription) -> BaseException | None:
    """Puts an outcome into a task's description.

    Returns:
        The exception of a call that raised, with its traceback there as the cause.
    """
    try:
        outcome = unpack_result(base64.b64decode(text))
    except (ProtocolVersionError, BackendError) as error:
        return error
    except ValueError as error:
        return BackendError(f"what came back from a worker cannot be read: {error}")
    return finish(task, outcome, call.load)
