"""Groups: short calls that share a Dask task.

Dask's scheduler needs about 1 ms for a task, however short the task is. If the calls of a function
have been short so far, several calls that are ready together are sent as one task. The task runs
the calls one after the other, and returns their replies and the time that each call took.

Each call in a group can be started, canceled and lost separately, because the worker registers it
in the same way as a separate task:

- A canceled call that has not started is skipped.
- A group ends early if it takes longer than expected. If one call takes long, the replies of the
  earlier calls are fetched while that call runs. The remaining calls are sent again.
- If a worker is lost, so is the call that was running. The others are sent again, each as a
  separate task.
"""

from __future__ import annotations

import asyncio
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from rhapsody_dask.results import BackgroundTasks, ClusterResults
from rhapsody_dask.task import ClusterTask, Demand, SendableTask
from rhapsody_dask.worker.entry import run_group
from rhapsody_dask.worker.messages import CANCELED, GroupReplies, Order, key_of
from rhapsody_dask.worker.site import stop_group

TARGET_SECONDS = 0.05
"""Intended duration of a group in seconds."""

SCHEDULING_COST = 0.0005
"""Minimum time in seconds that Dask's scheduler needs for a task.

A group is not expected to take longer than the scheduler would need for all calls that are ready,
so that grouping does not delay any of them.
"""

RECALL_AFTER = 0.09
"""Seconds from the report that a call is running until the remaining calls of its group are sent
again.
"""

MAX_CALLS = 500
"""Largest number of calls in a group."""

MAX_CALL_SIZE = 1 << 14
"""Largest size in bytes of a packed call in a group."""

PROBES = 4
"""Number of calls of a new function that are sent alone to measure them."""

MIN_MEASURED = 2
"""Number of measured calls after which groups are formed; less than `PROBES`, because a worker may
hang.
"""

WEIGHT = 0.2
"""Weight of the most recent group in the average time of a function's calls."""


@dataclass(eq=False)
class Function:
    """Run time of a function's calls, and the calls that are held back until it is known.

    Attributes:
        seconds: The exponential moving average of the run time of a call. Of the first `PROBES`
            groups, only the shortest counts, because the first calls may import modules.
        measured: Number of groups, of one call or more, that were measured.
        slow: True if a call that is being measured has run for too long.
        probes: Number of calls that are being measured while others are held back.
        held: The calls that are held back.
    """

    seconds: float = math.inf
    measured: int = 0
    slow: bool = False
    probes: int = 0
    held: list[SendableTask] = field(default_factory=list)

    @property
    def known(self) -> bool:
        """True if no more calls need to be held back."""
        return self.slow or self.measured >= MIN_MEASURED

    def measure(self, seconds: float) -> None:
        """Update the average run time with the mean run time of a group's calls."""
        self.measured += 1
        if self.measured <= PROBES:
            self.seconds = min(self.seconds, seconds)
        else:
            self.seconds += (seconds - self.seconds) * WEIGHT

    def size(self, ready: int) -> int:
        """Return the number of calls to put in a group; 1 means that each call is sent alone.

        Args:
            ready: The number of calls that are ready.
        """
        limit = min(TARGET_SECONDS, ready * SCHEDULING_COST)
        return max(1, min(MAX_CALLS, int(limit / max(self.seconds, 1e-6))))


class SentGroup:
    """Calls that were sent as one task.

    Attributes:
        function: The function of the calls.
        uid: The uid of the group: the first call's uid, `+` and the number of other calls.
        members: The calls without a reply, by uid.
    """

    def __init__(self, function: Function, calls: Sequence[SendableTask]) -> None:
        self.function = function
        self.uid: str = f"{calls[0].call.uid}+{len(calls) - 1}"
        self.members: dict[str, SendableTask] = {one.call.uid: one for one in calls}

    def packed(self, session: str) -> bytes:
        """Return the pickled `Order` of the group with the packed tasks, for the worker."""
        calls = list(self.members.values())
        order = Order(session, self.uid, calls[0].call.task["name"], 1, None, b"", {})
        return pickle.dumps((order, [one.order for one in calls]), 5)


@dataclass(eq=False)
class Groups:
    """Sender of one backend's calls: sends calls in groups, and delivers their replies.

    Attributes:
        client: Dask's client.
        session: The backend's session.
        tasks: The open tasks by uid.
        results: The receiver of the replies.
        send_alone: Function that sends each call as a separate task.
    """

    client: Any
    session: str
    tasks: Mapping[str, ClusterTask]
    results: ClusterResults
    send_alone: Callable[[Sequence[SendableTask]], None]
    _functions: dict[tuple[str, Demand], Function] = field(default_factory=dict)
    _open: set[SentGroup] = field(default_factory=set)
    _background: BackgroundTasks = field(default_factory=BackgroundTasks)

    def close(self) -> None:
        """Stop waiting for groups."""
        self._background.close()
        self._functions.clear()

    def take(self, ready: Sequence[SendableTask]) -> list[SendableTask]:
        """Send calls in groups or hold them back; return the calls to send as separate tasks."""
        others: list[SendableTask] = []
        alike: dict[tuple[str, Demand], list[SendableTask]] = {}
        for one in ready:
            if one.plain and len(one.order) <= MAX_CALL_SIZE and not one.call.referred_to:
                task = one.call.task
                name = getattr(task["function"], "__qualname__", task["name"])
                alike.setdefault((name, one.call.demand), []).append(one)
            else:
                others.append(one)
        for kind, calls in alike.items():
            others += self._group(self._functions.setdefault(kind, Function()), calls)
        return others

    def _group(self, function: Function, calls: list[SendableTask]) -> list[SendableTask]:
        """Send a function's calls in groups or hold them back; return those to send separately."""
        if len(calls) < 2:
            return calls
        if not function.known:
            if not function.probes:
                probes, calls = calls[:PROBES], calls[PROBES:]
                function.probes = len(probes)
                self._send(function, [[one] for one in probes])
            function.held += calls
            for one in calls:
                one.call.grouped = True
            return []
        size = function.size(len(calls))
        if size == 1:  # measure one call, because the calls may have become shorter
            self._send(function, [calls[:1]])
            return calls[1:]
        rest = iter(calls)
        self._send(function, list(iter(lambda: list(islice(rest, size)), [])))
        return []

    def _send(self, function: Function, parts: Sequence[Sequence[SendableTask]]) -> None:
        """Send groups of calls with equal annotations."""
        groups = [SentGroup(function, part) for part in parts]
        first = parts[0][0].call
        keys = [key_of(first.task["name"], self.session, group.uid) for group in groups]
        orders = [group.packed(self.session) for group in groups]
        keywords = first.demand.keywords()
        futures = self.client.map(run_group, orders, key=keys, pure=False, **keywords)
        for group, future in zip(groups, futures, strict=True):
            for one in group.members.values():
                one.call.grouped = True
            self._open.add(group)
            self._background.start(self._follow(group, future))

    def _send_again(self, calls: Sequence[SendableTask]) -> None:
        """Send calls that were in a group or held back, each as a separate task."""
        for one in calls:
            one.call.grouped = False
        self.send_alone(calls)

    def _to_run(self, calls: Sequence[SendableTask]) -> list[SendableTask]:
        """End the calls that are being stopped, and return those that still have to run."""
        for one in calls:
            if one.call.cancelled or one.call.error is not None:
                self.results.end_unstarted(one.call)
        return [one for one in calls if one.call.uid in self.tasks]

    async def _follow(self, group: SentGroup, future: Any) -> None:
        """Wait for the end of a group, deliver its replies, and send the remaining calls again."""
        await future.exception()
        ran = False
        if future.status == "finished":
            with suppress(Exception):  # raised by the connection; its loss is reported elsewhere
                found = await self.client.gather(
                    [future], errors="skip", direct=self.results.direct
                )
                ran = any(self._deliver(group, replies) for replies in found)
        self._open.discard(group)
        function, rest = group.function, self._to_run([*group.members.values()])
        if future.status == "cancelled":
            for one in rest:
                self.results.dropped(one.call)
        elif ran:
            self._send_again(self._group(function, rest))
        else:  # alone, so that a call that kills its worker does not affect others
            self._send_again(rest)
        function.probes = max(0, function.probes - 1)
        if function.known or not function.probes:
            self._release(function)

    def _deliver(self, group: SentGroup, replies: GroupReplies) -> bool:
        """Deliver the replies of a group; return False if there are none."""
        times = [seconds for reply, seconds in replies.values() if reply.kind != CANCELED]
        if times:
            group.function.measure(sum(times) / len(times))
        ran = bool(replies)
        for uid in [*replies]:
            # Removed, because the tracebacks of errors that user code keeps refer to `replies`.
            reply, _ = replies.pop(uid)
            one = group.members.pop(uid, None)  # `None` if it was delivered before
            if one is not None and self.tasks.get(uid) is one.call:
                self.results.receive(one.call, reply)
        return ran

    def _release(self, function: Function) -> None:
        """Send the calls of a function that were held back."""
        held, function.held = function.held, []
        self._send_again(self._group(function, self._to_run(held)))

    def runs(self, call: ClusterTask) -> None:
        """Handle a worker's report that a call has been running for at least 10 ms."""
        group = next((group for group in self._open if call.uid in group.members), None)
        if group is None:
            return
        if len(group.members) > 1:
            self._background.start(self._withdraw(group, call))
        elif not group.function.known:
            self._background.start(self._give_up(group, call))

    async def _give_up(self, group: SentGroup, call: ClusterTask) -> None:
        """Send the calls that wait for a measured call if it takes over `TARGET_SECONDS`."""
        await asyncio.sleep(TARGET_SECONDS)
        if call.uid in group.members:
            group.function.slow = True
            self._release(group.function)

    async def _withdraw(self, group: SentGroup, call: ClusterTask) -> None:
        """Send the remaining calls of a group again if a call takes over `RECALL_AFTER`."""
        await asyncio.sleep(RECALL_AFTER)
        if call.uid not in group.members:
            return
        answers: dict[str, GroupReplies | None] = {}
        ids = (self.session, group.uid, call.uid)
        with suppress(OSError):  # the worker was lost
            answers = await self.client.run(
                stop_group, *ids, workers=[call.worker], on_error="ignore"
            )
        for replies in answers.values():
            if replies is not None:
                self._deliver(group, replies)
                uids = [uid for uid in group.members if uid != call.uid]
                rest = self._to_run([group.members.pop(uid) for uid in uids])
                self._send_again(self._group(group.function, rest))
