"""A backend and a clock that do what a test tells them, for tests of the engine alone."""

from __future__ import annotations

import asyncio
import dataclasses
import heapq
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Any, TypeVar, cast

from rhapsody.backends.base import Capabilities, ManagedBackend
from rhapsody.states import TasksMainStates
from rhapsody.task import TaskDescription

T = TypeVar("T")

PATIENCE = 20.0
"""Seconds after which a wait is a hang. Generous: the machine may be busy."""

RUNS_ALL = Capabilities(
    services=True,
    function_services=True,
    cancel_functions="running",
    cancel_async_functions="running",
    cancel_executables="running",
    cancel_services="running",
    shared_file_system=True,
    resources=frozenset({"cores", "gpus", "memory", "ranks", "walltime"}),
    reports_running=True,
)


async def within(awaitable: Awaitable[T], seconds: float = PATIENCE) -> T:
    """Awaits something that must not hang."""
    async with asyncio.timeout(seconds):
        return await awaitable


async def turns(number: int = 20) -> None:
    """Run some iterations of the loop, so that everything pending has happened."""
    for _ in range(number):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    """Run the loop until a condition holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - no time is spent asleep
            await asyncio.sleep(0)


def in_thread(function: Callable[..., object], *args: Any) -> None:
    """Calls a function in a thread of its own and waits for it."""
    thread = threading.Thread(target=function, args=args)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


class Scripted(ManagedBackend):
    """Accepts every task and reports of it what the test says, when the test says it.

    Attributes:
        batches: What each submission held.
        stops: The uids that it was asked to cancel.
        gate: Submissions return when this is set; it is from the start.
    """

    name = "scripted"
    canonical_states = True

    def __init__(self, name: str = "scripted", capabilities: Capabilities = RUNS_ALL) -> None:
        super().__init__()
        self.name = name
        self.capabilities = capabilities
        self.batches: list[list[TaskDescription]] = []
        self.stops: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.stopping: Callable[[TaskDescription], object] | None = self.stopped
        self._arrivals: asyncio.Queue[TaskDescription] = asyncio.Queue()
        self._reports: list[Any] = []

    def register_callback(self, func: Any) -> None:
        """Keeps it: what the script says goes there as it is, legal or not."""
        if func not in self._reports:
            self._reports.append(func)

    def unregister_callback(self, func: Any) -> None:
        """Forgets it."""
        if func in self._reports:
            self._reports.remove(func)

    async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
        """Notes the tasks; returns when the gate is open."""
        self.require_running()
        self.batches.append(list(tasks))
        for task in tasks:
            self._arrivals.put_nowait(task)
        await self.gate.wait()

    async def cancel_task(self, uid: str) -> bool:
        """Notes the wish, and stops the task unless `stopping` is `None`."""
        self.stops.append(uid)
        for task in self.tasks:
            if task["uid"] == uid:
                if self.stopping is not None:
                    self.stopping(task)
                return True
        return False

    @property
    def tasks(self) -> list[TaskDescription]:
        """All tasks that arrived."""
        return [task for batch in self.batches for task in batch]

    def named(self, name: str) -> list[TaskDescription]:
        """The attempts of the tasks of a name."""
        return [task for task in self.tasks if task["name"] == name]

    def names(self) -> list[str]:
        """The names of all tasks that arrived."""
        return [task["name"] for task in self.tasks]

    async def given(self, name: str, attempt: int = 1) -> TaskDescription:
        """The task of a name and attempt, once it is here."""

        def found() -> list[TaskDescription]:
            return [task for task in self.named(name) if task.get("attempt", 1) == attempt]

        await until(found)
        return found()[0]

    async def next(self) -> TaskDescription:
        """The next task that arrives."""
        return await within(self._arrivals.get())

    def forget(self) -> None:
        """Forget every task."""
        self.batches.clear()
        self._arrivals = asyncio.Queue()

    def report(self, task: Any, state: Any, service_callback: Any = None) -> None:
        """Reports a state, whether or not it makes sense."""
        for callback in tuple(self._reports):
            if service_callback is None:
                callback(task, state)
            else:
                callback(task, state, service_callback=service_callback)

    def runs(self, task: TaskDescription) -> None:
        """The task has started."""
        self.report(task, TasksMainStates.RUNNING)

    def done(self, task: TaskDescription, value: Any = None) -> None:
        """The task has ended well; the value is what an executable has printed."""
        if task["function"] is None:
            task["stdout"], task["stderr"], task["exit_code"] = value or "", "", 0
        else:
            task["return_value"] = value
        self.report(task, TasksMainStates.DONE)

    def failed(self, task: TaskDescription, error: Any) -> None:
        """The task has failed."""
        task["exception"] = error
        self.report(task, TasksMainStates.FAILED)

    def stopped(self, task: TaskDescription) -> None:
        """The task was cancelled."""
        self.report(task, TasksMainStates.CANCELED)

    def serves(self, task: TaskDescription) -> asyncio.Future[Any]:
        """A service has started; gives what its readiness is put into."""
        handed: list[asyncio.Future[Any]] = []
        self.report(task, TasksMainStates.RUNNING, lambda future, *_: handed.append(future))
        return handed[0]

    def ready(self, task: TaskDescription, info: Any = None) -> None:
        """A service runs and is ready at once."""
        self.report(task, TasksMainStates.RUNNING, lambda future, *_: future.set_result(info))


class Inline(ManagedBackend):
    """Runs functions on the loop: the quickest backend that computes something."""

    name = "inline"
    canonical_states = True
    capabilities = Capabilities(
        executables=False,
        cancel_async_functions="running",
        shared_file_system=True,
        reports_running=True,
    )

    def __init__(self, name: str = "inline") -> None:
        super().__init__()
        self.name = name
        self.ran: list[str] = []

    async def run_task(self, task: TaskDescription) -> Any:
        """Calls the function here and now."""
        self.ran.append(task["name"])
        result = cast("Any", task["function"])(*task["args"], **task["kwargs"])
        return await result if asyncio.iscoroutine(result) else result


class Crowd(ManagedBackend):
    """Runs tasks until the test opens the gate, and knows how many are there at once.

    Attributes:
        now, most: How many run now, and ran at once at most, by name.
        all_now, all_most: The same of all together.
        order: The first arguments in the order in which they came.
    """

    name = "crowd"
    canonical_states = True
    capabilities = RUNS_ALL

    def __init__(self, name: str = "crowd") -> None:
        super().__init__()
        self.name = name
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.order: list[Any] = []
        self.all_now = self.all_most = 0
        self.gate = asyncio.Event()

    async def run_task(self, task: TaskDescription) -> Any:
        """Runs until the gate is open."""
        name = task["name"]
        self.order.append(task["args"][0] if task["args"] else name)
        self.now[name] += 1
        self.all_now += 1
        self.most[name] = max(self.most[name], self.now[name])
        self.all_most = max(self.all_most, self.all_now)
        await self.gate.wait()
        await asyncio.sleep(0)
        self.now[name] -= 1
        self.all_now -= 1
        return task["args"][0] if task["args"] else None


class _Call:
    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def __call__(self) -> None:
        if self.callback is not None:
            self.callback()

    def cancel(self) -> None:
        self.callback = None


class ManualClock:
    """Time that stands still until the test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._calls: list[tuple[float, int, _Call]] = []
        self._numbers = count()

    def time(self) -> float:
        """Seconds since the epoch."""
        return 1.7e9 + self.now

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return self.now

    def call_at(self, when: float, callback: Callable[[], object]) -> _Call:
        """Calls back when time has come there."""
        call = _Call(callback)
        if when <= self.now:
            asyncio.get_running_loop().call_soon(call)
            return call
        heapq.heappush(self._calls, (when, next(self._numbers), call))
        return call

    @property
    def waiting(self) -> int:
        """Number of calls to wait for."""
        return sum(call.callback is not None for _, _, call in self._calls)

    async def advance(self, seconds: float) -> None:
        """Moves on, making the calls that are due on the way, and lets the loop follow."""
        end = self.now + seconds
        await turns()
        while self._calls and self._calls[0][0] <= end:
            when, _, call = heapq.heappop(self._calls)
            self.now = max(self.now, when)
            if call.callback is not None:
                call()
                await turns()
        self.now = end
        await turns()


UNSTOPPABLE = dataclasses.replace(
    RUNS_ALL, cancel_functions="none", cancel_async_functions="none", cancel_executables="none"
)


class Stubborn(Scripted):
    """Is asked to stop tasks and does not say that it did."""

    def __init__(self) -> None:
        super().__init__()
        self.stopping = None


async def outcome(awaitable: Awaitable[Any]) -> BaseException:
    """The error that awaiting something ends with."""
    try:
        value = await within(awaitable)
    except (Exception, asyncio.CancelledError, SystemExit) as error:
        return error
    raise AssertionError(f"no error, but {value!r}")


async def cancelled(future: asyncio.Future[Any]) -> bool:
    """Return whether awaiting it raises CancelledError."""
    try:
        await within(future)
    except asyncio.CancelledError:
        return True
    return False
