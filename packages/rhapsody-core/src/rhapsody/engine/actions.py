"""What the scheduler asks of what is around it: the two interfaces between deciding and doing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rhapsody.engine.record import TaskRecord
from rhapsody.engine.timers import Timer
from rhapsody.states import TasksMainStates


class Actions(Protocol):
    """What the scheduler asks of what is around it, always on the engine's loop.

    Each call does its part and returns; what comes of it is told in events, later or at once.
    """

    def route(self, record: TaskRecord) -> None:
        """Queues a task that is ready for its backend."""

    def start_block(self, record: TaskRecord) -> None:
        """Runs a block whose dependencies have ended."""

    def stop(self, record: TaskRecord) -> None:
        """Asks for the work of a task to be stopped; one that is CANCELING."""

    def room(self, record: TaskRecord) -> None:
        """The backend that had this task has room for another task."""

    def after(self, delay: float, call: Callable[[], object]) -> Timer:
        """Calls back in so many seconds, unless the timer is cancelled."""

    def follow(self, record: TaskRecord, dependency: asyncio.Future[Any]) -> None:
        """Sees to it that `foreign_done` is called for a future that is not the engine's."""

    def unfollow(self, record: TaskRecord, dependency: asyncio.Future[Any]) -> None:
        """Takes `follow` back."""

    def outcome(self, record: TaskRecord, main: TasksMainStates, report: Any) -> tuple[Any, Any]:
        """Reads what came of an attempt: its value and `None`, or anything and its error.

        Keeps what is left of it besides the value, as `keep` does.
        """

    def keep(self, record: TaskRecord, report: Any, *, succeeded: bool) -> None:
        """Keeps what is left of an attempt besides its value: output, sandbox, exit code."""

    def record(self, record: TaskRecord, value: Any) -> None:
        """Has the files of a result saved, and the result recorded; then `reveal` is called.

        Where they cannot be saved, `fail` is called instead.
        """

    def succeed(self, record: TaskRecord, value: Any) -> None:
        """Gives the future its result."""

    def fail(self, record: TaskRecord, error: BaseException) -> BaseException:
        """Gives the future its exception; returns the one that it has."""

    def cancel(self, record: TaskRecord, msg: Any) -> None:
        """Cancels the future."""

    def publish(
        self, record: TaskRecord, state: TasksMainStates, error: BaseException | None = None
    ) -> None:
        """Tells observers of a state."""

    def ended_by_itself(
        self, record: TaskRecord, main: TasksMainStates, report: Any
    ) -> tuple[TasksMainStates, BaseException | None]:
        """Sees to a service that was ready and has ended although nobody stopped it.

        Returns the state and the error that observers are told.
        """

    def leave(self, record: TaskRecord) -> None:
        """Nobody needs the sandbox of a task's last attempt, unless something was kept of it."""


class HeldValues(Protocol):
    """Values that stay with a backend, and tasks that go there before they have theirs.

    Attributes:
        holds: Whether a backend has ever held a value for this engine.
    """

    holds: bool

    def is_held(self, dependency: asyncio.Future[Any]) -> bool:
        """Whether a dependency has ended, and a backend of this engine holds its value."""

    def is_at_rest(self, dependency: asyncio.Future[Any]) -> bool:
        """Whether a value stays with a backend and nobody has asked for it: not to be looked at."""

    def with_values(self, record: TaskRecord) -> Sequence[asyncio.Future[Any]]:
        """A task's dependencies without those whose values are held."""

    def needs_values(self, record: TaskRecord) -> bool:
        """Whether a task whose dependencies have ended well waits for values to come."""

    def follow(self, record: TaskRecord) -> None:
        """A new task waits for others: it may go to its backend at once."""

    def hold(self, record: TaskRecord, report: Any) -> bool:
        """Whether a task that is done leaves its value with its backend."""

    def take_back(self, record: TaskRecord, report: Any) -> bool:
        """Whether a backend did not run a task, for a value that it was to have is lost."""

    def dependency_settled(self, record: TaskRecord, dependency: asyncio.Future[Any]) -> None:
        """A dependency of a task that is with its backend already has ended."""
