"""Statistics of a run: durations, used resources and failures, and the critical path.

The functions compute everything from the history that `reader` returns, in time proportional to the
number of tasks and dependencies. A task waits from the moment when it could have started: its call,
or the end of the last task on which it depends. It runs during its attempts.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rhapsody.history.reader import Attempt, RunHistory, TaskRun
from rhapsody.history.timeline import cores_of


@dataclass(frozen=True, slots=True)
class Durations:
    """Durations of attempts, in seconds.

    Attributes:
        count: The number of attempts with a known duration.
        median: The median.
        p95: The 95th percentile: 95 % of the attempts are not longer.
        max: The longest duration.
        total: The sum.
    """

    count: int
    median: float
    p95: float
    max: float
    total: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Durations | None:
        """Return the statistics of durations, or `None` if there are none."""
        found = sorted(seconds)
        if not found:
            return None
        return cls(len(found), _quantile(found, 0.5), _quantile(found, 0.95), found[-1], sum(found))


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Return a quantile of sorted numbers, interpolated between the two nearest ones."""
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


SHORT = 0.01
"""Duration in seconds up to which an attempt's share of CPU time is treated as unknown.

The CPU time of a call includes that of reading the kernel's counters before and after the call. The
duration does not. This takes tens of microseconds, which can be longer than the call.
"""


def available_time(attempt: Attempt, resources: Mapping[str, object]) -> float | None:
    """Return the CPU time that an attempt could have used on its cores, in seconds.

    Args:
        attempt: The attempt.
        resources: The resources that it requested.

    Returns:
        The duration multiplied by the number of cores. `None` if the duration is unknown or not
        longer than `SHORT`, or if no cores were requested.
    """
    seconds = attempt.seconds
    cores, ranks = resources.get("cores", 1), resources.get("ranks", 1)
    if seconds is None or seconds <= SHORT:
        return None
    if not isinstance(cores, int | float) or not isinstance(ranks, int):
        return None
    return seconds * cores * ranks or None


@dataclass(frozen=True, slots=True)
class NameStatistics:
    """Statistics of the tasks with one name.

    Attributes:
        name: The name.
        kind: `"function"`, `"executable"` or `"block"`.
        count: The number of tasks.
        done: The number of tasks that succeeded, including reused results.
        failed: The number of tasks that failed, without those that were skipped.
        skipped: The number of tasks that did not run because a dependency failed.
        canceled: The number of canceled tasks.
        reused: The number of tasks whose results are those of an earlier run.
        retried: The number of attempts that were followed by another one.
        durations: The durations of the attempts that have ended; `None` if none is known.
        cpu_seconds: The processor time of all attempts that report it; otherwise `None`.
        cpu_efficiency: The CPU time as a share of the duration multiplied by the requested cores,
            of the attempts that are long enough for it; `None` if there are none.
        peak_memory: The maximum memory of an attempt in bytes, if it is known.
        requested_memory: The maximum requested memory of a task in bytes, for all its ranks.
        build_seconds: The time in which the attempts built worker values, which is not part of the
            durations; `None` if they built none.
    """

    name: str
    kind: str = "function"
    count: int = 0
    done: int = 0
    failed: int = 0
    skipped: int = 0
    canceled: int = 0
    reused: int = 0
    retried: int = 0
    durations: Durations | None = None
    cpu_seconds: float | None = None
    cpu_efficiency: float | None = None
    peak_memory: int | None = None
    requested_memory: int | None = None
    build_seconds: float | None = None

    @property
    def unused_memory(self) -> int | None:
        """Requested memory that no task used, in bytes; `None` if it is unknown."""
        if self.peak_memory is None or self.requested_memory is None:
            return None
        return max(0, self.requested_memory - self.peak_memory)


@dataclass(slots=True)
class _Collected:
    """Running totals for the tasks with one name."""

    kind: str
    outcomes: list[str] = field(default_factory=list)
    reused: int = 0
    retried: int = 0
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: float | None = None
    measured: float = 0.0  # CPU time of attempts with a known share, and the time of their cores
    available: float = 0.0
    peak: int | None = None
    requested: int | None = None
    built: float | None = None

    def add(self, task: TaskRun) -> None:
        """Count a task."""
        self.outcomes.append(task.outcome)
        requested = task.resources
        if requested and requested.get("memory"):
            self._request(requested)
        for attempt in task.attempts:
            if attempt.started is not None and attempt.ended is not None:
                self.seconds.append(max(0.0, attempt.ended - attempt.started))
            if attempt.retried:
                self.retried += 1
            elif attempt.reused:
                self.reused += 1
            if attempt.usage or attempt.resources:
                self._use(attempt, requested)

    def _request(self, resources: Mapping[str, object]) -> None:
        memory, ranks = resources.get("memory"), resources.get("ranks", 1)
        if isinstance(memory, int) and isinstance(ranks, int):
            self.requested = max(self.requested or 0, memory * ranks)

    def _use(self, attempt: Attempt, requested: Mapping[str, object]) -> None:
        """Add the resources that an attempt has used."""
        if attempt.resources:
            requested = {**requested, **attempt.resources}
            self._request(requested)
        usage = attempt.usage or {}
        peak, cpu = usage.get("peak_memory"), usage.get("cpu_seconds")
        if (built := usage.get("build_seconds")) is not None:
            self.built = (self.built or 0.0) + built
        if peak is not None:
            self.peak = max(self.peak or 0, peak)
        if cpu is None:
            return
        self.cpu_seconds = (self.cpu_seconds or 0.0) + cpu
        available = available_time(attempt, requested)
        if available is not None:
            self.measured += cpu
            self.available += available

    def result(self, name: str) -> NameStatistics:
        """Return the statistics."""
        outcomes = Counter(self.outcomes)
        return NameStatistics(
            name=name,
            kind=self.kind,
            count=len(self.outcomes),
            done=outcomes["done"],
            failed=outcomes["failed"],
            skipped=outcomes["skipped"],
            canceled=outcomes["canceled"],
            reused=self.reused,
            retried=self.retried,
            durations=Durations.of(self.seconds),
            cpu_seconds=self.cpu_seconds,
            cpu_efficiency=self.measured / self.available if self.available else None,
            peak_memory=self.peak,
            requested_memory=self.requested,
            build_seconds=self.built,
        )


def by_name(history: RunHistory) -> list[NameStatistics]:
    """Return the statistics of tasks and blocks by name, in the order of first calls.

    Blocks are separate from tasks with the same name.
    """
    found: dict[tuple[str, bool], _Collected] = {}
    for task in history.tasks.values():
        key = (task.name, task.kind == "block")
        collected = found.get(key)
        if collected is None:
            collected = found[key] = _Collected(task.kind)
        collected.add(task)
    return [collected.result(name) for (name, _), collected in found.items()]


def most_unused_memory(statistics: Iterable[NameStatistics]) -> NameStatistics | None:
    """Return the statistics of the tasks that leave the most of their requested memory unused."""
    return max(
        (each for each in statistics if each.unused_memory),
        key=lambda each: each.unused_memory or 0,
        default=None,
    )


def failure_key(task: TaskRun) -> tuple[object, ...]:
    """Return values that are equal for tasks that failed alike, as in the summary of a run.

    These are their name, the type of the error, the exit code, and the line that raised the error.
    """
    last = task.attempts[-1]
    if last.error is None:
        return (task.name,)
    return task.name, last.error.kind, last.exit_code, last.error.place


class Step(NamedTuple):
    """Task on the critical path.

    Attributes:
        task: The task.
        waited: Seconds in which the task could have run but did not, such as the time until a
            worker was free.
        ran: Seconds in which its attempts ran.
    """

    task: TaskRun
    waited: float
    ran: float

    @property
    def seconds(self) -> float:
        """Seconds from the moment when the task could have started until its end."""
        return self.waited + self.ran


def critical_path(
    history: RunHistory, now: float | None = None, *, waiting: bool = True
) -> list[Step]:
    """Return the longest chain of tasks in which each task depends on the previous one.

    The length of a chain is the time that its tasks waited and ran. A run cannot become faster than
    its critical path unless the tasks on the path do. The tasks in a block depend on everything on
    which the block depends, and the block depends on its tasks. Skipped tasks are left out, and so
    are services: what depends on a service waits only until it is ready.

    Args:
        history: The history.
        now: The time until which running tasks have run; `None` to ignore tasks that have not
            ended.
        waiting: False to measure chains only by the time that their tasks ran. With any number of
            workers, the run takes at least as long as the longest of these chains.
    """
    tasks, inside = history.tasks, _members(history.tasks)
    found: dict[str, _Link] = {}
    unsettled: dict[str, list[str]] = {}  # keys of tasks, by the dependency that comes later
    for first in tasks:
        ready = [first]
        for key in ready:  # the list grows
            task = tasks[key]
            before: Sequence[str] = task.dependencies
            if inside:
                before = [*before, *inside.get(key, ())]
                if task.block is not None and task.block in tasks:
                    before += tasks[task.block].dependencies
            for each in before:
                if each not in found and each in tasks:
                    unsettled.setdefault(each, []).append(key)
                    break
            else:
                found[key] = _link(task, before, found, now, waiting)
                if key in unsettled:
                    ready += unsettled.pop(key)
    # Tasks that are still waiting are in cycles, which only a damaged record contains.
    last = max(found, key=lambda key: found[key].length, default=None)
    path: list[Step] = []
    while last is not None:
        link = found[last]
        if link.end is not None and not (tasks[last].skipped or tasks[last].is_service):
            path.append(_step(tasks[last], link.took, now))
        last = link.previous
    return path[::-1]


@dataclass(frozen=True, slots=True)
class TimeShares:
    """Where the time of a run went, and lower bounds of its duration. All values are in seconds.

    `ran`, `queued`, `held` and `program` follow the chain of causes back from the task that ended
    last: to the dependency that it waited for, or to the end of the task before the program called
    it. Their sum is `total`.

    Attributes:
        total: The time from the start of the run to the end of the last task.
        ran: The time in which the tasks of this chain ran.
        queued: The time from their submission to their start: they waited for a free core or
            worker, or in the queue of a batch system.
        held: The time from the moment when they could have started to their submission, as for
            `limit=`.
        program: The time in which no task of this chain was ready: the program computed, waited for
            something else, or had not called it yet.
        chain: The time that the tasks of the longest chain ran, a lower bound with any number of
            workers.
        core_seconds: The sum of the run times of all attempts, each multiplied by its cores.
    """

    total: float
    ran: float
    queued: float
    held: float
    program: float
    chain: float
    core_seconds: float


def time_shares(history: RunHistory, now: float | None = None) -> TimeShares | None:
    """Return where the time of a run went; `None` if no task has ended.

    Args:
        history: The history.
        now: The time until which running tasks have run; `None` to ignore tasks that have not
            ended.
    """
    tasks, inside = history.tasks, _members(history.tasks)
    ends = {
        key: end
        for key, task in tasks.items()
        if not (task.is_service or task.skipped) and (end := _end(task, now)) is not None
    }
    if not ends:
        return None
    began = history.run.started or min(task.time for task in tasks.values())
    in_order = sorted(ends, key=ends.__getitem__)
    times = [ends[key] for key in in_order]
    key: str | None = in_order[-1]
    total, ran, queued, held, program = max(0.0, times[-1] - began), 0.0, 0.0, 0.0, 0.0
    until, seen = times[-1], set[str]()
    while key is not None and key not in seen:
        seen.add(key)
        task = tasks[key]
        before = [each for each in (*task.dependencies, *inside.get(key, ())) if each in ends]
        previous = max(before, key=ends.__getitem__, default=None)
        ready = task.time
        if previous is not None and ends[previous] >= ready:
            ready = ends[previous]
        else:  # the program has called the task after everything that it depends on
            place = bisect.bisect_right(times, ready) - 1
            previous = in_order[place] if place >= 0 else None
        ready = min(ready, until)
        if task.kind == "block":
            program += until - ready
        else:
            attempt = task.attempts[0]
            submitted = min(until, max(ready, attempt.submitted or ready))
            started = min(until, max(submitted, attempt.started or submitted))
            held, queued, ran = (
                held + submitted - ready,
                queued + started - submitted,
                ran + until - started,
            )
        until = ready
        if previous is not None and previous not in seen:
            gap = max(0.0, until - ends[previous])
            program, until = program + gap, min(until, ends[previous])
            key = previous
        else:
            key = None
    program += max(0.0, until - began)
    chain = critical_path(history, now, waiting=False)
    seconds = sum(
        sum(_seconds(task, now)) * cores_of(task.resources)
        for task in tasks.values()
        if task.kind != "block" and not task.is_service
    )
    return TimeShares(total, ran, queued, held, program, sum(step.ran for step in chain), seconds)


class _Link(NamedTuple):
    """Task as the last one of a chain.

    Attributes:
        end: The time at which the task ended; `None` if it has not ended.
        took: The seconds from the moment when the task could have started until its end.
        length: The length of the longest chain that ends with the task, in seconds.
        previous: The key of the task before this one in the chain.
    """

    end: float | None = None
    took: float = 0.0
    length: float = 0.0
    previous: str | None = None


def _link(
    task: TaskRun,
    before: Iterable[str],
    found: Mapping[str, _Link],
    now: float | None,
    waiting: bool,
) -> _Link:
    """Return a task as the last one of the longest chain that ends with it."""
    end = _end(task, now)
    if end is None:
        return _NOT_ENDED
    could_start, length, previous = task.time, 0.0, None
    for key in before:
        link = found.get(key)
        if link is not None and link.end is not None:
            if link.end > could_start:
                could_start = link.end
            if link.length > length:
                length, previous = link.length, key
    if task.is_service:  # it ends when nothing needs it any more
        return _Link(could_start, 0.0, length, previous)
    took = max(0.0, end - could_start)
    counted = took if waiting else _step(task, took, now).ran
    return _Link(end, took, length + counted, previous)


_NOT_ENDED = _Link()


def _end(task: TaskRun, now: float | None) -> float | None:
    """Return the time at which a task ended.

    A running task ends `now`. Return `None` if `now` is `None` or the task has not started.
    """
    if not task.attempts:
        return None
    last = task.attempts[-1]
    if last.ended is not None:
        return None if last.retried else last.ended
    return now if last.started is not None else None


def _step(task: TaskRun, took: float, now: float | None) -> Step:
    """Return a task on the critical path, with the seconds in which its attempts ran."""
    # The time of a block beyond that of its tasks is spent in its code.
    ran = took if task.kind == "block" else min(took, sum(_seconds(task, now)))
    return Step(task, took - ran, ran)


def _seconds(task: TaskRun, now: float | None) -> Iterator[float]:
    """Yield the durations of the attempts that have started."""
    for attempt in task.attempts:
        end = now if attempt.ended is None else attempt.ended
        if attempt.started is not None and end is not None:
            yield max(0.0, end - attempt.started)


def _members(tasks: Mapping[str, TaskRun]) -> dict[str, list[str]]:
    """Return the keys of the tasks in each block."""
    members: dict[str, list[str]] = {}
    for key, task in tasks.items():
        if task.block is not None:
            members.setdefault(task.block, []).append(key)
    return members
