"""The main program's side of calls that run in other processes.

`pack` turns a task's call into bytes. In the worker, `rhapsody.sdk.runner.Runner.run` makes the
call and returns the outcome as bytes. `unpack` reads these bytes, and `finish` writes the outcome
into the task's description. The backend transports the bytes. A backend with its own format
uses `call_spec`, then either `pack_call` or `cannot_pack`, and finally `result`.

All backends share this protocol, so that exception types, messages and tracebacks are the same on
each of them.
"""

from __future__ import annotations

import inspect
import linecache
import pickle
import re
import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Literal, cast

from rhapsody.errors import (
    BackendError,
    TaskFailedError,
    add_note,
    describe_error,
    set_cause,
)
from rhapsody.sdk.executables import thread_count
from rhapsody.sdk.modules import own_modules
from rhapsody.sdk.runner import (
    PROTOCOL_VERSION,
    CallResult,
    CallSpec,
    ProtocolVersionError,
    dumps,
    loads,
    made,
    require_version,
)
from rhapsody.task import TaskDescription, Usage

__all__ = [
    "RemoteTraceback",
    "call_spec",
    "cannot_pack",
    "finish",
    "pack",
    "pack_call",
    "parts",
    "report",
    "result",
    "unpack",
    "unpack_error",
]

WORKER = "a worker"
PICKLE_ADVICE = "pass data that can be pickled"


class RemoteTraceback(Exception):  # noqa: N818 - it is the cause of an error, not one
    """Traceback of an exception from another process, set as the cause of the exception."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


def call_spec(
    task: TaskDescription,
    *,
    cores: float = 0,
    environment: Mapping[str, str] | None = None,
    directory: str | None = None,
    more: Mapping[str, Any] | None = None,
    modules: bytes | Literal[True] | None = True,
) -> CallSpec:
    """Return the data about a task that a worker needs in addition to the call itself.

    Args:
        task: The description of the task.
        cores: Number of cores that numeric libraries may use. They start one thread per whole
            core, but at least one. 0 means no limit.
        environment: The environment variables to set. Default: those of the task's description.
        directory: The directory for files of the call. Default: the task's sandbox.
        more: Values of built-in types for the backend's own `Runner`. Default: the context of
            `decimal` if the task's description contains the context of the call.
        modules: The result of `rhapsody.sdk.modules.own_modules`, or only its first `REFERENCE`
            bytes if the worker has received the modules before; `None` to send no modules.
            Default: `own_modules` is called.
    """
    sandbox = task.get("sandbox")
    return CallSpec(
        PROTOCOL_VERSION,
        task["uid"],
        task["name"],
        task.get("attempt", 1),
        sandbox,
        task.get("timeout"),
        thread_count(cores),
        task.get("environment", {}) if environment is None else environment,
        task.get("capture", True),
        sandbox if directory is None else directory,
        program_settings(task) if more is None else more,
        own_modules() if modules is True else modules,
        task.get("trace_context", {}),
        task.get("watch", ()),
    )


_DECIMAL = (28, "ROUND_HALF_EVEN")


def program_settings(task: TaskDescription) -> Mapping[str, Any]:
    """Return the program's context of `decimal` at the call, unless it is the default."""
    decimal, context = sys.modules.get("decimal"), task.get("context")
    if decimal is None or context is None:
        return {}
    current = context.copy().run(decimal.getcontext)
    traps = {signal for signal, trapped in current.traps.items() if trapped}
    default = {decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow}
    if (current.prec, current.rounding) == _DECIMAL and traps == default:
        return {}
    return {"decimal": current}


def pack(
    task: TaskDescription,
    order: CallSpec | None = None,
    *,
    worker: str = WORKER,
    cure: str = PICKLE_ADVICE,
) -> bytes:
    """Pickle a task's call together with its spec, for `Runner.run`.

    Args:
        task: The description of the task.
        order: The spec of the call. Default: `call_spec(task)`.
        worker: The name of the worker in messages.
        cure: The remedy for an object that cannot be pickled, for messages.

    Returns:
        The packed call.

    Raises:
        TypeError: A part of the call cannot be pickled; the message names it.
    """
    call = pack_call(task, worker=worker, cure=cure)
    return pickle.dumps((*(call_spec(task) if order is None else order), call), 5)


def pack_call(task: TaskDescription, *, worker: str = WORKER, cure: str = PICKLE_ADVICE) -> bytes:
    """Pickle only a task's function and arguments, for `Runner.load`.

    Args:
        task: The description of the task.
        worker: The name of the worker in messages.
        cure: The remedy for an object that cannot be pickled, for messages.

    Returns:
        The pickle.

    Raises:
        TypeError: The function or an argument cannot be pickled; the message names it.
    """  # noqa: DOC501 - a TypeError
    try:
        return dumps((task["function"], task["args"], task["kwargs"]))
    except BaseException as error:  # pickling runs the objects' own code
        raise cannot_pack(task, error, worker=worker, cure=cure) from error


def cannot_pack(
    task: TaskDescription, error: BaseException, *, worker: str = WORKER, cure: str = PICKLE_ADVICE
) -> TypeError:
    """Return an error that names the part of a call that cannot be pickled, and the remedy.

    Args:
        task: The task's description.
        error: The error that pickling the call raised.
        worker: The name of the worker in messages.
        cure: The remedy, for the message.
    """
    part, culprit, reason = "the call", task["function"], describe_error(error)
    for name, value in parts(task).items():
        try:
            dumps(value)
        except BaseException as found:  # pickling runs the objects' own code
            part, culprit, reason = name, value, describe_error(found)
            inner = variable_inside(value)
            if inner is not None:
                part, culprit = f"{inner[0]} used by {name}", inner[1]
            break
    cure = getattr(type(culprit), "_pickle_advice", cure)  # set by our classes
    kind = culprit if isinstance(culprit, type) else type(culprit)
    if "RLock" in reason and any(type(each) is cached_property for each in vars(kind).values()):
        cure = "put the class, which uses functools.cached_property, into a module"
    return TypeError(
        f"task {task['name']!r}: {part} ({type(culprit).__qualname__}) cannot be pickled for "
        f"{worker}: {reason}; {cure}"
    )


def variable_inside(function: object) -> tuple[str, Any] | None:
    """Return the name and value of a variable that a function uses and that cannot be pickled.

    Return `None` if no such variable is found.
    """
    try:
        uses = inspect.getclosurevars(cast("Callable[..., Any]", function))
    except (TypeError, ValueError):  # not a Python function, or it uses an unset variable
        return None
    for name, value in {**uses.nonlocals, **uses.globals}.items():
        try:
            dumps(value)
        except BaseException:  # pickling runs the objects' own code
            return f"variable {name!r}", value
    return None


def parts(task: TaskDescription) -> dict[str, Any]:
    """Return the function and the arguments of a call, keyed by their names in error messages."""
    found: dict[str, Any] = {"the function": task["function"]}
    found |= {f"positional argument {n}": value for n, value in enumerate(task["args"])}
    found |= {f"argument {name!r}": value for name, value in task["kwargs"].items()}
    return found


def argument_name(function: object, argument: int | str) -> str:
    """Return the name of an argument for messages, such as `argument 'values'`.

    Args:
        function: The function that is called.
        argument: The position of the argument, starting at 0, or its name.
    """
    if isinstance(argument, int):
        try:
            signature = inspect.signature(cast("Callable[..., Any]", function))
        except (TypeError, ValueError):  # no signature: builtins
            return f"argument {argument + 1}"
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = [each.name for each in signature.parameters.values() if each.kind in positional]
        if argument >= len(names):
            return f"argument {argument + 1}"
        argument = names[argument]
    return f"argument {argument!r}"


def unpack(packed: bytes) -> CallResult:
    """Unpickle the outcome of a call, as returned by `Runner.run`.

    Returns:
        The outcome.

    Raises:
        ProtocolVersionError: The worker uses another version of the protocol.
        BackendError: The bytes do not contain an outcome.
    """
    try:
        fields = loads(packed)
        require_version(int(fields[0]), "the worker", "this program")
        return CallResult(*fields)
    except ProtocolVersionError:
        raise
    except Exception as error:  # invalid bytes can raise anything
        raise BackendError(
            f"the reply of a worker cannot be unpickled: {describe_error(error)}"
        ) from error


def finish(
    task: TaskDescription, outcome: CallResult, unpack: Callable[[Any], Any] = loads
) -> BaseException | None:
    """Write the value or exception of a call, and the call's output, into the task's description.

    Args:
        task: The task's description.
        outcome: The outcome of the call.
        unpack: The inverse of the method `pack` of the worker's `Runner`.

    Returns:
        The exception if the task failed, with the worker's traceback as its cause; otherwise
        `None`.
    """
    report(task, outcome)
    task["worker"] = f"{outcome.host}:{outcome.pid}"
    value, error = result(task, outcome, unpack)
    if error is None:
        task["return_value"] = value
    else:
        task["exception"] = error
    return error


def report(task: TaskDescription, outcome: CallResult) -> None:
    """Write a call's output, times, used resources and files into the task's description."""
    if outcome.stdout is not None:
        task["stdout"] = outcome.stdout
    if outcome.stderr is not None:
        task["stderr"] = outcome.stderr
    if outcome.sandbox is not None:
        task["sandbox"] = outcome.sandbox
    if outcome.usage is not None:
        task["usage"] = cast("Usage", outcome.usage)
    if outcome.interval is not None:
        task["interval"] = outcome.interval
    if outcome.opened:
        task["opened"] = outcome.opened


def result(
    task: TaskDescription, outcome: CallResult, unpack: Callable[[Any], Any] = loads
) -> tuple[Any, BaseException | None]:
    """Return the value of a call, or the exception that it or its unpacking raised.

    Args:
        task: The task's description.
        outcome: The outcome of the call.
        unpack: The inverse of the method `pack` of the worker's `Runner`.

    Returns:
        The value and `None`, or `None` and the exception.
    """
    try:
        if outcome.done:
            return unpack(outcome.payload), None
        return None, unpack_error(outcome.payload, unpack)
    except BaseException as error:  # loading runs the objects' own code
        name, pid = task["name"], outcome.pid
        add_note(error, f"while unpacking the reply of worker process {pid} for task {name!r}")
        return None, error.with_traceback(None)


def unpack_error(packed: Any, unpack: Callable[[Any], Any] = loads) -> BaseException:
    """Return the exception that a `Runner` packed, with the worker's traceback as its cause.

    Args:
        packed: The result of `rhapsody.sdk.runner.pack_error`.
        unpack: The inverse of the function `pack` that was passed to `pack_error`.
    """
    way, data, text = unpack(packed)
    error = TaskFailedError(data) if way == "words" else made(way, data)
    set_cause(error, RemoteTraceback(_with_source(text)))
    return error


_FRAME = re.compile(r'^([ |]*)File "([^"\n]+)", line (\d+), in .*\n(?!\1  )', re.MULTILINE)
"""Matches the line of a traceback frame that is not followed by its source line."""


def _with_source(text: str) -> str:
    """Add source lines that only this process can read, such as a notebook's, to a traceback."""

    def frame(found: re.Match[str]) -> str:
        indent, file, number = found.groups()
        line = linecache.getline(file, int(number)).strip()
        return f"{found[0]}{indent}  {line}\n" if line else found[0]

    return _FRAME.sub(frame, text)
