"""What a running task can know of itself: `current_task`, and how backends provide it."""

from __future__ import annotations

import contextvars
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class TaskContext:
    """What a running task can know of itself, see `current_task`.

    Attributes:
        uid: The attempt's uid, unique over engines and attempts.
        name: The task's name.
        attempt: Counted from 1.
        sandbox: The task's directory, `None` where it has none.
        deadline: When its time-out is over, in seconds since the epoch
            (`time.time()`), `None` without a time-out.
    """

    __slots__ = ("_cancelled", "attempt", "deadline", "name", "sandbox", "uid")

    def __init__(
        self,
        *,
        uid: str,
        name: str,
        attempt: int = 1,
        sandbox: str | None = None,
        deadline: float | None = None,
    ) -> None:
        self.uid: str = uid
        self.name: str = name
        self.attempt: int = attempt
        self.sandbox: str | None = sandbox
        self.deadline: float | None = deadline
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """Whether somebody cancelled the task; for functions that can stop by themselves."""
        return self._cancelled

    def request_cancel(self) -> None:
        """Makes `cancelled` true. Called by the backend, from any thread."""
        self._cancelled = True


_context: contextvars.ContextVar[TaskContext | None] = contextvars.ContextVar(
    "rhapsody_task", default=None
)


def running_task() -> TaskContext | None:
    """Return the task that is running here, `None` where there is none."""
    return _context.get()


def current_task() -> TaskContext:
    """The task that is running here: its uid, name, attempt, sandbox, deadline and `cancelled`.

    For use inside a function task, on the thread or in the coroutine that the
    backend called it in.

    Raises:
        RuntimeError: No task is running here.
    """
    context = running_task()
    if context is None:
        raise RuntimeError("no task is running here: call current_task() inside a function task")
    return context


class Setting(Generic[T]):
    """Sets a context variable inside a block.

    Not made with `contextlib.contextmanager`, which takes longer, and sets the
    traceback of what leaves the block: exceptions of a frozen class refuse that.
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


def task_context(context: TaskContext) -> Setting[Any]:
    """Makes `current_task()` return `context` inside the block. Used by backends."""
    return Setting(_context, context)


def enter_task(context: TaskContext) -> None:
    """Makes `current_task()` return `context` for the rest of this `contextvars.Context`."""
    _context.set(context)
