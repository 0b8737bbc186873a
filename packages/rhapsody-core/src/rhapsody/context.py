"""Context of a running task: `current_task` for task functions, `task_context` for backends."""

from __future__ import annotations

import contextvars
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class TaskContext:
    """Context of a running task; see `current_task`.

    Attributes:
        uid: The attempt's uid, unique across engines and attempts.
        name: The task's name.
        attempt: The number of the attempt, starting at 1.
        sandbox: The task's directory, or `None` if it has none.
        deadline: The time at which the attempt's timeout expires, in seconds since the epoch
            (`time.time()`), or `None` if there is no timeout.
        trace_context: The attempt's W3C trace context, as header names (`traceparent`) and their
            values; empty if no plugin traces the attempt.
    """

    __slots__ = (
        "_cancelled", "attempt", "deadline", "name", "sandbox", "trace_context", "uid"
    )  # fmt: skip

    def __init__(
        self,
        uid: str,
        name: str,
        attempt: int = 1,
        sandbox: str | None = None,
        deadline: float | None = None,
        trace_context: Mapping[str, str] | None = None,
    ) -> None:
        self.uid: str = uid
        self.name: str = name
        self.attempt: int = attempt
        self.sandbox: str | None = sandbox
        self.deadline: float | None = deadline
        self.trace_context: Mapping[str, str] = trace_context or {}
        self._cancelled = False

    @classmethod
    def of(cls, task: Mapping[str, Any]) -> TaskContext:
        """Create the context of an attempt that starts now, from the attempt's description."""
        get, timeout = task.get, task.get("timeout")
        deadline = None if timeout is None else time.time() + timeout
        return cls(  # positional arguments, because a class takes much longer to accept keywords
            task["uid"], task["name"], get("attempt", 1), get("sandbox"), deadline,
            get("trace_context"),
        )  # fmt: skip

    @property
    def cancelled(self) -> bool:
        """True once the task has been canceled. A function can check this to stop early."""
        return self._cancelled

    def request_cancel(self) -> None:
        """Set `cancelled` to True. Called by the backend, from any thread."""
        self._cancelled = True


_context: contextvars.ContextVar[TaskContext | None] = contextvars.ContextVar(
    "rhapsody_task", default=None
)


def running_task() -> TaskContext | None:
    """Return the context of the running task, or `None` outside a task."""
    return _context.get()


def current_task() -> TaskContext:
    """Return the context of the running task: its uid, name, attempt, sandbox and deadline.

    The context's `cancelled` is True once the task has been canceled. Call `current_task` in a
    function task, on the thread or in the coroutine in which the backend called the task's
    function.

    Raises:
        RuntimeError: Called outside a task.
    """
    context = running_task()
    if context is None:
        raise RuntimeError("current_task() was called outside a task; call it in a function task")
    return context


class Setting(Generic[T]):
    """Context manager that sets a context variable inside its block.

    `contextlib.contextmanager` is slower. It also sets the `__traceback__` of an exception that
    leaves the block; this fails for exceptions that are frozen dataclasses.
    """

    __slots__ = ("_token", "_value", "_variable")

    def __init__(self, variable: contextvars.ContextVar[T], value: T) -> None:
        self._variable = variable
        self._value = value

    def __enter__(self) -> T:
        self._token = self._variable.set(self._value)
        return self._value

    def __exit__(self, *error: object) -> None:
        self._variable.reset(self._token)


class _Traced(Setting[Any]):
    """Context manager that also sets OpenTelemetry's current context, if that is installed."""

    __slots__ = ("_leave",)

    def __enter__(self) -> Any:
        context = super().__enter__()
        self._leave = _enter_trace(context.trace_context)
        return context

    def __exit__(self, *error: object) -> None:
        if self._leave is not None:
            self._leave()
        super().__exit__(*error)


def _enter_trace(carrier: Mapping[str, str]) -> Callable[[], object] | None:
    """Make the context in `carrier` OpenTelemetry's current one.

    Returns:
        The function that undoes this, or `None` if OpenTelemetry is not installed.
    """
    if (found := _propagation()) is None:
        return None
    attach, detach, extract = found
    return partial(detach, attach(extract(carrier)))


@cache
def _propagation() -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]] | None:
    """Return OpenTelemetry's functions for contexts, or `None` if it is not installed."""
    try:
        from opentelemetry import context, propagate
    except ImportError:
        return None
    return context.attach, context.detach, propagate.extract


def task_context(context: TaskContext) -> Setting[Any]:
    """Return a context manager in which `current_task()` returns `context`. For backends.

    If the context has a `trace_context`, it is also OpenTelemetry's current context, so that spans
    and logs of the function belong to the span of the attempt.
    """
    return (_Traced if context.trace_context else Setting)(_context, context)


def call_context(task: Mapping[str, Any]) -> contextvars.Context:
    """Return the `contextvars.Context` for an attempt in this process: a copy of that of the call.

    Args:
        task: The attempt's description.
    """
    context = task.get("context")
    return contextvars.Context() if context is None else context.copy()


def enter_task(context: TaskContext) -> None:
    """Do what `task_context` does, for the rest of this `contextvars.Context`."""
    _context.set(context)
    decimal: Any = sys.modules.get("decimal")
    if decimal is not None:  # its contexts can be changed, and copied contexts share them
        decimal.setcontext(decimal.getcontext().copy())
    if context.trace_context:
        _enter_trace(context.trace_context)
