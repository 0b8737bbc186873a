"""Timeline of a run: the attempts that each worker made, in lanes in which they do not overlap.

A worker that makes several attempts at once has several lanes. Unless the worker has measured it,
the recorded end of an attempt is the time at which the program received its result; by then, the
worker may already be running the next attempt. An overlap of up to 10 ms is therefore not treated
as simultaneous work: the earlier attempt is shortened instead. Each executable runs in a new
process; the executables of a backend share its lanes.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rhapsody.history.reader import Attempt, RunHistory, TaskRun

SLACK = 10_000
"""Maximum overlap, in microseconds, of attempts in one lane."""

BLOCKS = "blocks"
"""Group of the lanes of blocks, which run in the program itself."""


class Slice(NamedTuple):
    """Attempt on a timeline.

    Attributes:
        task: The task.
        attempt: The attempt.
        start: The start, in microseconds since the origin.
        end: The end in the same form, at least one microsecond later.
    """

    task: TaskRun
    attempt: Attempt
    start: int
    end: int


@dataclass(slots=True)
class Lane:
    """Attempts that a worker made one after the other.

    Attributes:
        group: The name of the backend.
        name: The name of the worker, with a number if it has several lanes.
        slices: The attempts, in the order of time.
    """

    group: str
    name: str
    slices: list[Slice] = field(default_factory=list)


def last_time(history: RunHistory) -> float:
    """Return the latest time in a record: the time until which a killed run certainly ran."""
    found = [history.run.ended, history.run.started]
    for task in history.tasks.values():
        found.append(task.time)
        for attempt in task.attempts:
            found += (attempt.submitted, attempt.started, attempt.ended)
    return max((time for time in found if time is not None), default=0.0)


def origin(history: RunHistory) -> float:
    """Return the start of a run, or that of an attempt whose host has an earlier clock."""
    found = [history.run.started]
    found += [each.started for task in history.tasks.values() for each in task.attempts]
    return min((time for time in found if time is not None), default=0.0)


def lanes(history: RunHistory, now: float | None = None) -> list[Lane]:
    """Return the lanes of all workers, by group and name.

    Attempts without a recorded start, such as reused results, are not included.

    Args:
        history: The history.
        now: The time until which unfinished attempts have run; `None` for the last time in the
            record.
    """
    until, zero = last_time(history) if now is None else now, origin(history)
    workers: dict[tuple[str, str], list[Slice]] = {}
    for task in history.tasks.values():
        for attempt in task.attempts:
            if attempt.started is None:
                continue
            ended = until if attempt.ended is None else attempt.ended
            start = round((attempt.started - zero) * 1e6)
            end = max(start + 1, round((ended - zero) * 1e6))
            worker = _worker(history, task, attempt)
            workers.setdefault(worker, []).append(Slice(task, attempt, start, end))
    return [
        lane
        for (group, name), slices in sorted(workers.items(), key=lambda each: _order(*each[0]))
        for lane in _split(group, name, slices)
    ]


def _worker(history: RunHistory, task: TaskRun, attempt: Attempt) -> tuple[str, str]:
    """Return the group and the name of the worker of an attempt."""
    if task.kind == "block":
        group, name = BLOCKS, "block"
    else:
        group, name = attempt.backend or "unknown backend", attempt.worker or "unknown worker"
        name = re.sub(r"^process \d+$", "process", name)
    if len(history.engines) > 1:
        group += f" ({task.engine})"
    return group, name


def _order(group: str, name: str) -> tuple[bool, str, list[tuple[int, str]]]:
    """Return the sort key of a worker.

    The rows of blocks come before all workers, and `worker-2` comes before `worker-10`.
    """
    parts = re.findall(r"\d+|\D+", name)
    numbered = [(int(each), "") if each.isdecimal() else (-1, each) for each in parts]
    return not group.startswith(BLOCKS), group, numbered


def _split(group: str, name: str, slices: Iterable[Slice]) -> list[Lane]:
    """Return as few lanes as possible for the attempts of a worker."""
    found: list[Lane] = []
    ends: list[tuple[int, int]] = []  # heap of the end and the index of each lane
    for each in sorted(slices, key=lambda each: (each.start, each.end)):
        if ends and _fits(each, found[ends[0][1]].slices):
            index = heapq.heappop(ends)[1]
        else:
            index = len(found)
            found.append(Lane(group, f"{name} ({index + 1})" if index else name))
        lane = found[index].slices
        if lane and lane[-1].end > each.start:
            lane[-1] = lane[-1]._replace(end=each.start)
        lane.append(each)
        heapq.heappush(ends, (each.end, index))
    return found


def _fits(new: Slice, lane: list[Slice]) -> bool:
    """Return True if an attempt can follow the last one of a lane, which may be shortened."""
    last = lane[-1]
    return last.end <= new.start or (last.end - new.start <= SLACK and last.start < new.start)


class Busy(NamedTuple):
    """Part of a run, with the amount of work in this part.

    Attributes:
        start: The start, in microseconds since the origin.
        end: The end in the same form.
        attempts: The mean number of attempts that ran at the same time.
        cores: The mean number of cores that they requested.
    """

    start: float
    end: float
    attempts: float
    cores: float


def utilization(found: Iterable[Lane], end: float, parts: int) -> list[Busy]:
    """Return how much of the time was used, in parts of equal length.

    Services are not included, because they mostly wait for requests.

    Args:
        found: The lanes, without those of blocks, which only contain other tasks.
        end: The end of the last part, in microseconds since the origin.
        parts: The number of parts.
    """
    width = max(end, 1.0) / parts
    attempts, cores = [0.0] * (parts + 1), [0.0] * (parts + 1)
    for lane in found:
        for each in lane.slices:
            if each.task.is_service:
                continue
            requested = cores_of({**each.task.resources, **(each.attempt.resources or {})})
            first, last = int(each.start / width), int(each.end / width)
            for part in range(max(0, first), min(last, parts - 1) + 1):
                inside = min(each.end, (part + 1) * width) - max(each.start, part * width)
                attempts[part] += inside / width
                cores[part] += inside / width * requested
    return [
        Busy(part * width, (part + 1) * width, attempts[part], cores[part]) for part in range(parts)
    ]


def cores_of(requested: Mapping[str, Any]) -> float:
    """Return the number of cores in requested resources, on all ranks."""
    cores, ranks = requested.get("cores", 1), requested.get("ranks", 1)
    known = isinstance(cores, int | float) and isinstance(ranks, int)
    return cores * ranks if known else 1.0
