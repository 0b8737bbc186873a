"""The tasks that several groups of checks submit: quick, failing, and going on until told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from rhapsody.states import TasksMainStates
from rhapsody.task import TaskDescription, TaskKind
from rhapsody.testing._driver import Driver
from rhapsody.testing._work import (
    add,
    add_async,
    fail,
    fail_async,
    tick,
    tick_async,
    tick_command,
)

if TYPE_CHECKING:
    from rhapsody.testing._trial import Trial

DONE = TasksMainStates.DONE
FAILED = TasksMainStates.FAILED
CANCELED = TasksMainStates.CANCELED
RUNNING = TasksMainStates.RUNNING


def quick(driver: Driver, kind: TaskKind) -> TaskDescription:
    """A task of this kind that succeeds at once."""
    match kind:
        case "function":
            return driver.call(add, 1)
        case "async_function":
            return driver.call(add_async, 1)
        case _:
            return driver.command("echo 2")


def failing(driver: Driver, kind: TaskKind) -> TaskDescription:
    """A task of this kind that fails at once."""
    match kind:
        case "function":
            return driver.call(fail, "on purpose")
        case "async_function":
            return driver.call(fail_async, "on purpose")
        case _:
            return driver.command("echo on purpose >&2; exit 3")


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what another process makes true without telling anybody, by looking often."""
    while not condition():  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0.01)


class Ticking:
    """A task that appends to a file while it runs, until it is released or stopped.

    So it is seen from outside whether its work goes on, whatever the backend says.

    Args:
        trial: The trial it belongs to.
        driver: The driver that will submit it.
        kind: The kind of task.

    Attributes:
        task: Its description.
        kind: Its kind.
    """

    def __init__(self, trial: Trial, driver: Driver, kind: TaskKind) -> None:
        # It ends by itself some time after the check, should nothing else end it.
        seconds = 3 * trial.kit.time_limit
        task = driver.describe(f"ticking {kind}")
        self._ticks = driver.work_dir / f"{task['uid']}.ticks"
        # The end of the trial removes it with the directory, whatever became of the check.
        self._gate = driver.work_dir / f"{task['uid']}.going"
        self._gate.touch()
        self._clock = trial.clock
        words = (str(self._ticks), str(self._gate), seconds)
        if kind in ("function", "async_function", "function_service"):
            task["function"] = tick_async if kind == "async_function" else tick
            task["args"] = words
        else:
            command = tick_command(*words)
            task["executable"], task["arguments"] = command[0], command[1:]
            driver.with_sandbox(task)
        task["is_service"] = kind in ("service", "function_service")
        self.task = task
        self.kind: TaskKind = kind

    async def began(self) -> None:
        """Waits until it has ticked once."""
        await until(lambda: self._size() > 0)

    def has_begun(self) -> bool:
        """Whether it has ticked."""
        return self._size() > 0

    def release(self) -> None:
        """Tells it to end."""
        self._gate.unlink(missing_ok=True)

    async def let_go(self) -> None:
        """Waits until it has ended by itself after `release`, a tick later at most."""
        while not await self.is_still(0.1):
            pass

    async def is_still(self, watch: float = 0.4) -> bool:
        """Whether it does not tick any more."""
        size, end = self._size(), self._clock.now() + watch
        while self._clock.now() < end:
            await self._clock.elapse(0.05)
            if self._size() != size:
                return False
        return True

    def _size(self) -> int:
        try:
            return self._ticks.stat().st_size
        except FileNotFoundError:
            return 0
