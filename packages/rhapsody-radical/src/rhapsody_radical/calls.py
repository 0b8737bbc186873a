"""A function task's call as text, and its reply back, on the side of the engine."""

from __future__ import annotations

import base64
import os
import pickle
import sys
import threading
from collections.abc import Mapping
from functools import cache
from typing import Any

import cloudpickle  # type: ignore[import-untyped]

from rhapsody.backends.local.worker import RemoteTraceback
from rhapsody.errors import TaskFailedError
from rhapsody.task import TaskDescription
from rhapsody_radical import call
from rhapsody_radical.descriptions import as_list
from rhapsody_radical.translate import THREADS


def pack(task: TaskDescription, settings: Mapping[str, Any], *, capture: Any) -> str:
    """An order for `rhapsody_radical.call.run`, as text.

    Raises:
        TypeError: Something of the call cannot be pickled; it says what.
    """
    resources = task.get("resources")
    environment: dict[str, str] = {}
    if resources is not None and resources.cores:
        environment.update(dict.fromkeys(THREADS, str(resources.cores)))
    environment.update(task.get("environment", {}))
    environment.update(settings.get("environment") or {})
    order = {
        "uid": task["uid"],
        "name": task["name"],
        "attempt": task.get("attempt", 1),
        "sandbox": task.get("sandbox"),
        "timeout": task.get("timeout"),
        "environment": environment,
        "capture": capture,
        "path": own_path(),
        "pre_exec": as_list(settings.get("pre_exec")),
        "call": _packed_call(task),
    }
    return base64.b64encode(pickle.dumps(order)).decode("ascii")


def own_path() -> list[str]:
    """The program's own directories of `sys.path`, without those of its environment.

    Modules there travel by name: a worker on the same file system imports them from there.
    """
    installed = tuple({os.path.join(prefix, "") for prefix in (sys.prefix, sys.base_prefix)})
    found = [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)]
    return [path for path in found if not path.startswith(installed)]


def _packed_call(task: TaskDescription) -> bytes:
    try:
        packed: bytes = cloudpickle.dumps((task["function"], task["args"], task["kwargs"]))
    except Exception as error:  # pickling runs the objects' own code
        part, value = _culprit(task)
        raise TypeError(
            f"task {task['name']!r}: {part} ({type(value).__qualname__}) cannot be pickled for a "
            f"worker: {type(error).__name__}: {error}; pass data that can be"
        ) from error
    return packed


def _culprit(task: TaskDescription) -> tuple[str, Any]:
    parts: list[tuple[str, Any]] = [("the function", task["function"])]
    parts += [(f"positional argument {i}", value) for i, value in enumerate(task["args"])]
    parts += [(f"argument {name!r}", value) for name, value in task["kwargs"].items()]
    for part, value in parts:
        try:
            cloudpickle.dumps(value)
        except Exception:  # as above
            return part, value
    return "the call", task["function"]


def _runner() -> bytes:
    """`call.run` by value: workers need not have this package."""
    with _packing:  # the registration is the process's, and other backends may be at it
        return _packed_runner()


@cache
def _packed_runner() -> bytes:
    cloudpickle.register_pickle_by_value(call)
    try:
        packed: bytes = cloudpickle.dumps(call.run)
    finally:
        cloudpickle.unregister_pickle_by_value(call)
    return packed


_packing = threading.Lock()


def python_task(order: str) -> str:
    """An order as a function task of RADICAL-Pilot (`PythonTask`)."""
    encoded = {"func": _runner(), "args": (order,), "kwargs": {}}
    return base64.b64encode(pickle.dumps(encoded)).decode("ascii")


def unpack(text: str, task: TaskDescription) -> BaseException | None:
    """Puts a reply into a task's description.

    Returns:
        The exception of a call that raised, with its traceback there as the cause.
    """
    reply = pickle.loads(base64.b64decode(text))  # noqa: S301 - from our own worker
    for name in ("stdout", "stderr"):
        if name in reply:
            task[name] = reply[name]
    task["worker"] = f"{reply['host']}:{reply['pid']}"
    try:
        payload = pickle.loads(reply["payload"])  # noqa: S301 - as above
    except BaseException as error:  # loading runs the objects' own code
        error.add_note(f"while the result of task {task['name']!r} was unpacked")
        return error
    if reply["done"]:
        task["return_value"] = payload
        return None
    raised = _rebuilt(payload)
    raised.__cause__ = RemoteTraceback(payload["text"])
    return raised


def _rebuilt(payload: dict[str, Any]) -> BaseException:
    error = payload["error"]
    if error is None:
        return TaskFailedError(payload["kind"])
    if isinstance(error, tuple):
        kind, args, state = error
        error = kind.__new__(kind, *args)
        error.args = args
        error.__dict__.update(state)
    assert isinstance(error, BaseException)
    return error
