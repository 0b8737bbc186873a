"""Tasks that several checks submit, and the forms of calls."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rhapsody.states import TasksMainStates
from rhapsody.task import Resources, TaskDescription, TaskKind
from rhapsody.testing import _work
from rhapsody.testing._driver import Driver

if TYPE_CHECKING:
    from rhapsody.backends.base import Capabilities

DONE, FAILED = TasksMainStates.DONE, TasksMainStates.FAILED
CANCELED, RUNNING = TasksMainStates.CANCELED, TasksMainStates.RUNNING

KINDS: tuple[TaskKind, ...] = ("function", "async_function", "executable")
FUNCTION_KINDS: tuple[TaskKind, ...] = ("function", "async_function")

_LONG = 600.0  # seconds after which work ends that nothing else has ended


def kinds_of(capabilities: Capabilities) -> list[TaskKind]:
    """Return the kinds of task that the backend runs, services aside."""
    return [kind for kind in KINDS if capabilities.runs(kind)]


def function_kinds(capabilities: Capabilities) -> list[TaskKind]:
    """Return the kinds of function that the backend runs."""
    return [kind for kind in FUNCTION_KINDS if capabilities.runs(kind)]


def call(
    driver: Driver, kind: TaskKind, name: str, /, *args: Any, **kwargs: Any
) -> TaskDescription:
    """Describe a call of a function of `_work`, or of the coroutine function next to it."""
    suffix = "_async" if kind == "async_function" else ""
    return driver.call(getattr(_work, name + suffix), *args, **kwargs)


def quick(driver: Driver, kind: TaskKind) -> TaskDescription:
    """Describe a task that succeeds at once with the result 2."""
    return driver.command("echo 2") if kind == "executable" else call(driver, kind, "add", 1)


def failing(driver: Driver, kind: TaskKind) -> TaskDescription:
    """Describe a task that fails at once."""
    if kind == "executable":
        return driver.command("echo on purpose >&2; exit 3")
    return call(driver, kind, "fail", "on purpose")


def with_resources(task: TaskDescription, resources: Resources) -> TaskDescription:
    """Add a request for resources to a description."""
    task["resources"] = resources
    return task


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that another process does without a message, by looking often."""
    while not condition():
        await asyncio.sleep(0.01)


def text_of(path: Path) -> str | None:
    """Return the text of a file, `None` if there is no such file."""
    return path.read_text() if path.is_file() else None


class Ticking:
    """A task that appends to a file while it runs, until it is released or stopped.

    It shows whether its work goes on, whatever the backend reports. The end of the check removes
    its files, which releases it.

    Attributes:
        task: Its description.
        kind: Its kind.
    """

    def __init__(self, driver: Driver, kind: TaskKind) -> None:
        task = driver.describe(f"ticking {kind}")
        self._ticks = driver.work_dir / f"{task['uid']}.ticks"
        self._gate = driver.work_dir / f"{task['uid']}.going"
        self._gate.touch()
        arguments = (str(self._ticks), str(self._gate), _LONG)
        if kind in ("function", "async_function", "function_service"):
            task["function"] = _work.tick_async if kind == "async_function" else _work.tick
            task["args"] = arguments
        else:
            task["executable"], *task["arguments"] = _work.tick_command(*arguments)
            driver.with_sandbox(task)
        task["is_service"] = kind in ("service", "function_service")
        self.task = task
        self.kind: TaskKind = kind

    @property
    def begun(self) -> bool:
        """True once it has ticked."""
        return self._size() > 0

    async def began(self) -> None:
        """Wait until it has ticked once."""
        await until(lambda: self.begun)

    def release(self) -> None:
        """Let it end."""
        self._gate.unlink(missing_ok=True)

    async def is_still(self, watch: float = 0.2) -> bool:
        """Return whether it does not tick any more."""
        size = self._size()
        for _ in range(round(watch / 0.05)):
            await asyncio.sleep(0.05)
            if self._size() != size:
                return False
        return True

    def _size(self) -> int:
        try:
            return self._ticks.stat().st_size
        except FileNotFoundError:
            return 0


@dataclass(frozen=True, slots=True)
class Route:
    """A form of call with a request for cores, which a backend may run in a way of its own.

    Attributes:
        name: The name for messages.
        kind: The kind of task.
        wrap: Brings a function into this form.
        resources: The request, `None` for none.
    """

    name: str
    kind: TaskKind
    wrap: Callable[[Any], Any]
    resources: Resources | None

    def call(self, driver: Driver, name: str, /, *args: Any, **kwargs: Any) -> TaskDescription:
        """Describe a call of a function of `_work`."""
        return self.take(call(driver, self.kind, name, *args, **kwargs))

    def take(self, task: TaskDescription) -> TaskDescription:
        """Bring the function of a description into this form, and add the request."""
        task["function"] = self.wrap(task["function"])
        if self.resources is not None:
            task["resources"] = self.resources
        return task


def routes_of(capabilities: Capabilities) -> list[Route]:
    """Return every form of call that the backend runs, without cores and with `cores=0`."""
    requests: list[tuple[str, Resources | None]] = [("", None)]
    if "cores" in capabilities.resources:
        requests.append((" with cores=0", Resources(cores=0)))
    forms: list[tuple[str, TaskKind, Callable[[Any], Any]]] = [
        ("a function", "function", lambda function: function),
        ("a partial", "function", functools.partial),
        ("a method", "function", lambda function: _work.Holder(function).call),
        ("a callable object", "function", _work.Holder),
        ("a coroutine function", "async_function", lambda function: function),
        ("a partial of a coroutine function", "async_function", functools.partial),
        ("a coroutine method", "async_function", lambda f: _work.Holder(f).call_async),
    ]
    return [
        Route(name + suffix, kind, wrap, request)
        for suffix, request in requests
        for name, kind, wrap in forms
        if capabilities.runs(kind)
    ]
