"""Backend that simulates a cluster: nodes, start-up cost, failures and batch jobs, in virtual time.

No task runs. The simulation is a queue of events, such as the ends of tasks, and a clock that jumps
to the next event when the event loop has nothing else to do. At that moment, the engine and the
program have handled everything that has happened so far, and would only wait. The engine uses the
same clock, so timeouts, waits before retries and the times in records are virtual as well.

Python has no public way to find out if a loop is idle. The clock therefore looks at the queue of
callbacks of asyncio's own event loop, and refuses other loops.
"""

from __future__ import annotations

import heapq
import math
import random
import time
from asyncio import get_running_loop
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, NamedTuple

from rhapsody import (
    BackendUnavailableError,
    CapabilityError,
    InsufficientWalltimeError,
    Resources,
    TaskDescription,
    TaskLostError,
    TasksMainStates,
)
from rhapsody.backends import Capabilities, ManagedBackend
from rhapsody.plugins import AttemptId
from rhapsody.sdk import seconds, time_needed
from rhapsody_simulated.plugin import CAPABILITIES

Duration = float | str | Mapping[str, float | str] | Callable[[TaskDescription], float]

DUMMY_OUTPUT = "Dummy Output"
"""Return value and output of every task, as on the noop backend."""

ONE_CORE = Resources()

DONE, FAILED = TasksMainStates.DONE, TasksMainStates.FAILED
CANCELED, RUNNING = TasksMainStates.CANCELED, TasksMainStates.RUNNING


class Event:
    """Future call of the virtual clock."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[float], object]) -> None:
        self.call: Callable[[float], object] | None = call

    def cancel(self) -> None:
        """Cancel the call."""
        self.call = None


class VirtualClock:
    """Clock that jumps to its next event when the event loop is idle.

    Args:
        engine_time: True if the processor time of the loop's thread is added to the time.

    Attributes:
        epoch: The time of the start, in seconds since the epoch.
    """

    def __init__(self, *, engine_time: bool = False) -> None:
        self._real = time.thread_time if engine_time else float  # `float()` is 0.0
        self._ahead = 0.0  # difference between the virtual time and `_real()`
        self.epoch: float = 0.0
        self._events: list[tuple[float, int, Event]] = []
        self._numbers = count()
        self._loop: Any = None
        self._watching = False

    def start(self) -> None:
        """Start at 0 seconds, on the running loop.

        Raises:
            BackendUnavailableError: The loop is not one of asyncio's own.
        """
        loop = get_running_loop()
        if not hasattr(loop, "_ready"):
            raise BackendUnavailableError(
                f"virtual time needs an event loop of asyncio, got {type(loop).__qualname__}: run "
                "the program without replacing the event loop"
            )
        self._loop = loop
        self.epoch, self._ahead = time.time(), -self._real()

    def time(self) -> float:
        """Return the virtual time since the epoch in seconds; time 0 is the time of the start."""
        return self.epoch + self.monotonic()

    def monotonic(self) -> float:
        """Return the virtual time in seconds."""
        return self._real() + self._ahead

    def call_at(self, when: float, callback: Callable[[], object]) -> Event:
        """Call `callback` when `monotonic` reaches `when`."""
        return self.at(when, lambda _: callback())

    def at(self, when: float, call: Callable[[float], object]) -> Event:
        """Call `call(when)` when `monotonic` reaches `when`."""
        event = Event(call)
        heapq.heappush(self._events, (when, next(self._numbers), event))
        self._watch()
        return event

    def catch_up(self) -> None:
        """Make the calls that are due."""
        events, now = self._events, self.monotonic()
        while events and events[0][0] <= now:
            when, _, event = heapq.heappop(events)
            if event.call is not None:
                event.call(when)

    def _watch(self) -> None:
        if not self._watching and self._events:
            self._watching = True
            self._loop.call_soon(self._step)

    def _step(self) -> None:
        """Jump to the next event if no other callback is queued."""
        if self._loop._ready:
            self._loop.call_soon(self._step)
            return
        self._watching = False
        events = self._events
        while events and events[0][2].call is None:
            heapq.heappop(events)
        if events:
            self._ahead = max(self._ahead, events[0][0] - self._real())
            self.catch_up()
        self._watch()


class Place(NamedTuple):
    """Cores and GPUs of one node that a task occupies."""

    node: int
    cores: int
    gpus: int


class Nodes:
    """Free cores and GPUs of equal nodes.

    The nodes are grouped by what they have free, so that a search does not depend on their number.
    """

    def __init__(self, nodes: int, cores: int, gpus: int) -> None:
        self.free_cores: int = nodes * cores
        self._of = [(cores, gpus)] * nodes
        self._groups = {(cores, gpus): dict.fromkeys(range(nodes))}

    def take(self, cores: int, gpus: int, ranks: int) -> list[Place] | None:
        """Occupy the nodes with the fewest free cores that fit.

        Args:
            cores: Number of cores of each rank.
            gpus: Number of GPUs of each rank.
            ranks: Number of ranks, which may be on different nodes.

        Returns:
            The places; `None` if there are too few.
        """
        places: list[Place] = []
        while ranks and (cores or gpus):
            fitting = [free for free in self._groups if free[0] >= cores and free[1] >= gpus]
            if cores * ranks > self.free_cores or not fitting:
                self.release(places)
                return None
            free = min(fitting)
            together = min(ranks, ranks_in(free, cores, gpus))
            place = Place(next(reversed(self._groups[free])), together * cores, together * gpus)
            self._change(place, -1)
            places.append(place)
            ranks -= together
        return places

    def release(self, places: Sequence[Place]) -> None:
        """Free places."""
        for place in places:
            self._change(place, 1)

    def _change(self, place: Place, sign: int) -> None:
        node, cores, gpus = place
        before = self._of[node]
        after = self._of[node] = before[0] + sign * cores, before[1] + sign * gpus
        self.free_cores += sign * cores
        del self._groups[before][node]
        if not self._groups[before]:
            del self._groups[before]
        self._groups.setdefault(after, {})[node] = None


def ranks_in(free: tuple[int, int], cores: int, gpus: int) -> int:
    """Return the number of ranks with these cores and GPUs that fit into `free`."""
    return min(has // need for has, need in zip(free, (cores, gpus), strict=True) if need)


@dataclass(slots=True, eq=False)
class SimulatedAttempt:
    """Attempt that waits or runs."""

    task: TaskDescription
    needs: tuple[int, int, int]  # cores and GPUs of each rank, number of ranks
    seconds: float  # infinity for a service
    walltime: float | None
    places: Sequence[Place] = ()
    started: float = 0.0
    end: Event | None = None


class SimulatedExecutionBackend(ManagedBackend):
    """Backend that simulates a cluster in virtual time; tasks do not run.

    Tasks start in the order of their submission: a task that does not fit yet delays the tasks
    behind it. A task occupies its cores and GPUs for its duration and returns `"Dummy Output"`.
    Memory is not limited. A service is ready immediately, and runs until it is canceled.

    All nodes belong to one batch job at a time. With a walltime, attempts that are running at the
    end of the job are lost, and the next job is submitted. A task whose walltime or timeout exceeds
    the rest of the job waits for the next job.

    Virtual time passes only when the event loop is idle. It does not wait for anything else that
    the program awaits, such as `asyncio.sleep(1)`, a thread or a file, and it stands still in a
    loop around `asyncio.sleep(0)`.

    Args:
        nodes: Number of nodes.
        cores: Number of cores of each node.
        gpus: Number of GPUs of each node.
        duration: Duration of each task, in seconds or as text such as `"3 min"`; a mapping from
            names of tasks to durations; or a function that takes a task's description and returns
            the number of seconds.
        startup: Time for which a task occupies its cores in addition to its duration, in seconds
            or as text.
        failure_rate: Probability that an attempt is lost, from 0 to 1. A lost attempt fails with
            `TaskLostError` at a random time of its duration, so `lost_retries` applies.
        seed: Number that selects the attempts that are lost. With the same seed, the same attempts
            of the same calls are lost.
        queue_time: Time that each batch job waits before it starts, in seconds or as text.
        walltime: Walltime of each batch job, in seconds or as text; `None` for no limit.
        engine_time: True to add the processor time of the loop's thread, in which the engine, the
            program and the simulation run, to the virtual time. By default they take no time, and
            a simulation always has the same result.
        name: The backend's name in an engine. Default: `"simulated"`.

    Attributes:
        clock: The clock, which starts at 0 seconds.
        duration: The function that returns the duration of a task.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A value is too small or too large, or malformed.
    """

    name = "simulated"
    dry = True
    shares_memory = True
    capabilities: Capabilities = CAPABILITIES

    def __init__(
        self,
        nodes: int = 1,
        cores: int = 1,
        gpus: int = 0,
        *,
        duration: Duration = 1.0,
        startup: float | str = 0.0,
        failure_rate: float = 0.0,
        seed: int = 0,
        queue_time: float | str = 0.0,
        walltime: float | str | None = None,
        engine_time: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        for argument, value, least in (("nodes", nodes, 1), ("cores", cores, 1), ("gpus", gpus, 0)):
            if type(value) is not int:
                raise TypeError(f"{argument} must be a whole number, got {value!r}")
            if value < least:
                raise ValueError(f"{argument} must be at least {least}, got {value}")
        if type(failure_rate) not in (int, float):
            raise TypeError(f"failure_rate must be a number from 0 to 1, got {failure_rate!r}")
        if not 0 <= failure_rate <= 1:
            raise ValueError(f"failure_rate must be a number from 0 to 1, got {failure_rate!r}")
        self.clock: VirtualClock = VirtualClock(engine_time=engine_time)
        self._size = nodes, cores, gpus
        self._nodes = Nodes(nodes, cores, gpus)
        self.duration: Callable[[TaskDescription], float | str] = _duration(duration)
        self._startup = seconds("startup", startup, zero=True)
        self._failure_rate = failure_rate
        self._seed = seed
        self._queue_time = seconds("queue_time", queue_time, zero=True)
        self._walltime = math.inf if walltime is None else seconds("walltime", walltime)
        self._jobs = 0
        self._job_begins = self._job_ends = -math.inf
        self._waiting: deque[SimulatedAttempt] = deque()
        self._runs: dict[str, SimulatedAttempt] = {}
        self._next_fill = -math.inf

    async def start(self) -> None:
        """Start the clock."""
        self.clock.start()

    async def stop(self) -> None:
        """Cancel all tasks."""
        self._waiting.clear()
        for uid in list(self._runs):
            await self.cancel_task(uid)

    def account(self) -> Mapping[str, Any]:
        """Return the virtual time in seconds and the number of batch jobs."""
        return {"virtual_seconds": round(self.clock.monotonic(), 3), "jobs": self._jobs}

    def cores_in_use(self) -> tuple[float, int]:
        """Return the number of cores in use and the total number of cores."""
        total = self._size[0] * self._size[1]
        return total - self._nodes.free_cores, total

    async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
        """Start the tasks that fit, and let the others wait."""
        self.clock.catch_up()
        for task in self.admit(tasks):
            self.accept(task)
            try:
                run = self._checked(task)
            except Exception as error:  # the task cannot run, or a user's function failed
                task["exception"] = error
                self.task_state_cb(task, FAILED)
                continue
            self._runs[task["uid"]] = run
            if task["is_service"] and "resources" not in task:
                self._begin(run, self.clock.monotonic(), math.inf)
            else:
                self._waiting.append(run)
        self._fill(self.clock.monotonic())

    async def cancel_task(self, uid: str) -> bool:
        """Cancel a task that waits or runs; return False for any other task."""
        run = self._runs.pop(uid, None)
        if run is None:
            return False
        if run.end is not None:
            run.end.cancel()
        self._nodes.release(run.places)
        self.task_state_cb(run.task, CANCELED)
        self._fill(self.clock.monotonic())
        return True

    def _checked(self, task: TaskDescription) -> SimulatedAttempt:
        """Return a run of a task.

        Raises:
            CapabilityError: The task does not fit on the nodes.
            InsufficientWalltimeError: The task may need more time than a batch job has.
        """
        resources = task.get("resources", ONE_CORE)
        cores, gpus, ranks = int(resources.cores), resources.gpus, resources.ranks
        nodes, *size = self._size
        if (cores or gpus) and ranks > nodes * ranks_in((size[0], size[1]), cores, gpus):
            raise CapabilityError(
                f"task {task['name']!r} needs {ranks} x ({cores} cores, {gpus} GPUs), but backend "
                f"{self.name!r} has {nodes} x ({size[0]} cores, {size[1]} GPUs): set its options "
                "nodes, cores and gpus to more"
            )
        walltime = time_needed(task)
        if walltime is not None and walltime > self._walltime:
            raise InsufficientWalltimeError(
                f"task {task['name']!r} may need {walltime:g} s, but the batch jobs of backend "
                f"{self.name!r} have a walltime of {self._walltime:g} s",
                backend=self.name,
                needs=walltime,
                left=self._walltime,
            )
        if task["is_service"]:
            lasts = math.inf
        else:
            lasts = seconds("duration", self.duration(task), zero=True) + self._startup
        return SimulatedAttempt(task, (cores, gpus, ranks), lasts, walltime)

    def _fill(self, now: float) -> None:
        """Start the waiting tasks that fit, in order."""
        waiting, runs = self._waiting, self._runs
        while waiting:
            run = waiting[0]
            if runs.get(run.task["uid"]) is not run:  # canceled
                waiting.popleft()
                continue
            if now >= self._job_ends:
                self._jobs += 1
                self._job_begins = now + self._queue_time
                self._job_ends = self._job_begins + self._walltime
            if now < self._job_begins:
                self._fill_at(self._job_begins)
                return
            if run.walltime is not None and now + run.walltime > self._job_ends:
                self._fill_at(self._job_ends)
                return
            places = self._nodes.take(*run.needs)
            if places is None:
                return
            waiting.popleft()
            run.places = places
            self._begin(run, now, self._job_ends)

    def _fill_at(self, when: float) -> None:
        """Call `_fill` at a time, unless that call is already scheduled."""
        if self._next_fill != when:
            self._next_fill = when
            self.clock.at(when, self._fill)

    def _begin(self, run: SimulatedAttempt, now: float, limit: float) -> None:
        """Start a task that ends, or is lost, at `limit` at the latest."""
        task, ends, lost = run.task, now + run.seconds, ""
        run.started = now
        if run.places:
            task["worker"] = f"node {run.places[0].node}"
        if self._failure_rate and run.seconds < math.inf:
            # Without the uid of the engine, which usually differs from run to run.
            attempt = AttemptId.of(task["uid"])
            name = f"{self._seed}.{attempt.task.label}.{attempt.number}"
            chance = random.Random(name)  # noqa: S311 - a simulation
            if chance.random() < self._failure_rate:
                ends, lost = now + chance.random() * run.seconds, "its simulated worker failed"
        if ends > limit:
            ends, lost = limit, f"its batch job reached the walltime of {self._walltime:g} s"
        if ends < math.inf:
            run.end = self.clock.at(ends, partial(self._end, run, lost))
        self.task_state_cb(task, RUNNING)

    def _end(self, run: SimulatedAttempt, lost: str, now: float) -> None:
        """End a task; `lost` is the reason if the attempt is lost."""
        task = run.task
        del self._runs[task["uid"]]
        self._nodes.release(run.places)
        if lost:
            task["exception"] = TaskLostError(f"task {task['name']!r} was lost: {lost}")
        else:
            task["stdout"] = task["return_value"] = DUMMY_OUTPUT
            epoch = self.clock.epoch
            task["interval"] = epoch + run.started + self._startup, epoch + now
            if task["function"] is None:
                task["stderr"], task["exit_code"] = "", 0
        self.task_state_cb(task, FAILED if lost else DONE)
        self._fill(now)


def _duration(given: Duration) -> Callable[[TaskDescription], float | str]:
    """Return a function that returns the duration of a task."""
    if callable(given):
        return given
    if isinstance(given, Mapping):
        table = {
            name: seconds(f"duration of task {name!r}", each, zero=True)
            for name, each in given.items()
        }

        def look_up(task: TaskDescription) -> float:
            if task["name"] not in table:
                raise ValueError(
                    f"duration has no entry for task {task['name']!r}; add {task['name']!r} to the "
                    "table"
                )
            return table[task["name"]]

        return look_up
    fixed = seconds("duration", given, zero=True)
    return lambda _: fixed
