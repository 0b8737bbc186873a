"""Batches of ready tasks to the backends, one lane for each attached backend.

A lane hands over one batch at a time; what becomes ready meanwhile forms the
next one. Preparing a batch takes a few milliseconds of the loop at most.
Cancellations do not queue behind submissions.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rhapsody.aio import asked_to_stop
from rhapsody.backends.base import BaseExecutionBackend, Capabilities
from rhapsody.engine.life import Event, Work
from rhapsody.errors import BackendUnavailableError, SubmissionError, describe_error
from rhapsody.states import TasksMainStates

if TYPE_CHECKING:
    from rhapsody.engine.node import Node
    from rhapsody.engine.runtime import Runtime

SLICE = 0.005
"""Seconds of work before the loop gets its turn."""

CHECK_EVERY = 32
"""Tasks between two looks at the clock."""


class ReadyQueue:
    """Nodes by priority, first come first served within one."""

    def __init__(self) -> None:
        self._first: deque[Node] = deque()
        self._others: dict[int, deque[Node]] = {}
        self._order: list[int] = []  # the priorities in use besides 0, high to low

    def push(self, node: Node, priority: int) -> None:
        """Adds a node."""
        if priority == 0:
            self._first.append(node)
            return
        if priority not in self._others:
            self._others[priority] = deque()
            self._order = sorted(self._others, reverse=True)
        self._others[priority].append(node)

    def pop(self) -> Node | None:
        """The next node, `None` where there is none."""
        for priority in self._order:
            if priority < 0:
                break
            if self._others[priority]:
                return self._others[priority].popleft()
        if self._first:
            return self._first.popleft()
        for priority in self._order:
            if self._others[priority]:
                return self._others[priority].popleft()
        return None

    def __len__(self) -> int:
        return len(self._first) + sum(map(len, self._others.values()))

    def __bool__(self) -> bool:
        return bool(self._first) or (bool(self._order) and len(self) > 0)

    def nodes(self) -> list[Node]:
        """What is in the queue, in no particular order."""
        return [*self._first, *(node for queue in self._others.values() for node in queue)]


class Lane:
    """One attached backend and what is on its way to it."""

    def __init__(self, runtime: Runtime, backend: BaseExecutionBackend, name: str) -> None:
        self.backend = backend
        self.name = name
        self.capabilities: Capabilities = getattr(backend, "capabilities", Capabilities())
        self.dry: bool = getattr(backend, "dry", False) is True
        self.states: Any = backend.get_task_states_map()
        self._native: Mapping[Any, TasksMainStates] = getattr(self.states, "native", {})
        self.queue: ReadyQueue = ReadyQueue()
        self.occupied: int = 0  # tasks that count against `max_pending`
        self._runtime = runtime
        self._resumed: deque[Node] = deque()
        self._services: deque[Node] = deque()  # where `max_pending` holds up the others
        self._waiter: asyncio.Future[None] | None = None
        self._batch: set[Node] = set()
        self._deferred: list[Node] = []
        self._closing = False
        self._idle = asyncio.Event()
        self._pump = runtime.spawn(self._run(), f"{runtime.uid} {name} lane")

    def main_state(self, native: Any) -> TasksMainStates | None:
        """The canonical state for one of the backend's, `None` for one nobody registered."""
        try:
            return self._native[native]
        except (KeyError, TypeError):
            pass
        try:
            main = self.states.to_main_state(native)
        except (ValueError, TypeError):
            return None
        return TasksMainStates(main)

    def push(self, node: Node) -> None:
        """Queues a node that is ready or prepared."""
        if node.task.settings.service and self._runtime.max_pending is not None:
            self._services.append(node)
        else:
            self.queue.push(node, node.task.settings.priority)
        self.wake()

    def resume(self, node: Node) -> None:
        """Queues a node whose preparation goes on, before those that have not begun."""
        service = node.task.settings.service and self._runtime.max_pending is not None
        (self._services if service else self._resumed).append(node)
        self.wake()

    def wake(self) -> None:
        """Makes the lane look at its queues."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
            self._idle.clear()

    def freed(self, node: Node) -> None:
        """A task the backend had has ended."""
        if not node.task.settings.service:
            self.occupied -= 1
            if self._runtime.max_pending is not None:
                self.wake()

    async def flushed(self) -> None:
        """Waits until the backend has had all that can be handed over now."""
        idle = asyncio.ensure_future(self._idle.wait())
        try:
            await asyncio.wait([idle, self._pump], return_when=asyncio.FIRST_COMPLETED)
        finally:
            idle.cancel()

    async def close(self, grace: float) -> None:
        """Ends the lane after the submission that is under way, if that does not take long."""
        self._closing = True
        self.wake()
        _, late = await asyncio.wait([self._pump], timeout=grace)
        if late:
            self._pump.cancel()
            await asyncio.wait([self._pump])

    async def _run(self) -> None:
        loop = self._runtime.loop
        ends = time.perf_counter() + SLICE
        while not self._closing:
            batch = self._take(ends)
            if batch:
                await self._submit(batch)
            del batch  # its tasks may be finished and forgotten long before the next ones
            if self._closing:
                return
            if not self._has_work():
                self._waiter = loop.create_future()
                self._idle.set()
                await self._waiter
                self._waiter = None
            elif time.perf_counter() > ends:
                await asyncio.sleep(0)  # the loop's turn
            else:
                continue
            ends = time.perf_counter() + SLICE

    def _has_work(self) -> bool:
        return bool(self._services or (self._has_room() and (self._resumed or self.queue)))

    def _has_room(self) -> bool:
        return self._room() > 0

    def _take(self, ends: float) -> list[Node]:
        """The next batch: as many tasks as can be prepared until the slice of time ends."""
        batch: list[Node] = []
        queue, resumed, prepare = self.queue, self._resumed, self._runtime.preparation.advance
        services, room = self._services, self._room()
        offer = self._runtime.pushdown.offer
        looked_at = 0
        while services or room > 0:
            looked_at += 1
            if looked_at % CHECK_EVERY == 0 and time.perf_counter() > ends:
                break
            if services:
                service = services.popleft()
                if service.life.work is Work.READY and prepare(service, self):
                    batch.append(service)
                continue
            node = resumed.popleft() if resumed else queue.pop()
            if node is None:
                break
            if node.life.work is Work.READY and prepare(node, self):
                batch.append(node)
                room -= 1
                if node.dependents:
                    offer(node, self)
        return batch

    def _room(self) -> float:
        limit = self._runtime.max_pending
        return float("inf") if limit is None else limit - self.occupied

    async def _submit(self, batch: list[Node]) -> None:
        runtime = self._runtime
        inflight, observed = runtime.updates.inflight, runtime.observed
        descriptions = []
        for node in batch:
            node.step(Event.SUBMIT)
            inflight[node.uid] = node
            node.future._backend = self.name
            descriptions.append(node.description)
            if not node.task.settings.service:
                self.occupied += 1
            if observed:
                runtime.observe(node, TasksMainStates.SUBMITTED)
        self._batch = set(batch)
        timeout = asyncio.timeout(runtime.submit_timeout)
        try:
            async with timeout:
                await self.backend.submit_tasks(descriptions)
        except (Exception, asyncio.CancelledError) as error:  # it says: not accepted
            if asked_to_stop():
                raise
            self._rejected(batch, error, timeout.expired())
        else:
            for node in batch:
                if node.life.work is Work.SUBMITTING:
                    node.step(Event.ACCEPT)
                    if not self.capabilities.reports_running:
                        runtime.started(node)
        finally:
            self._batch = set()
            deferred, self._deferred = self._deferred, []
            for node in deferred:
                self.cancel(node)

    def _rejected(self, batch: list[Node], error: BaseException, timed_out: bool) -> None:
        if timed_out:
            reason = f"did not accept {len(batch)} tasks within {self._runtime.submit_timeout} s"
        else:
            reason = f"did not accept {len(batch)} tasks: {describe_error(error)}"
        for node in batch:
            if timed_out and node.life.work in (Work.SUBMITTING, Work.CANCELING):
                # It may have been accepted all the same.
                self._runtime.spawn(self._ask(node.uid), f"cancel {node.uid}")
            if node.life.work is Work.SUBMITTING:
                if isinstance(error, BackendUnavailableError):
                    failure: Exception = BackendUnavailableError(str(error))
                else:
                    failure = SubmissionError(f"backend {self.name!r} {reason}")
                failure.__cause__ = error
                self._runtime.attempt_ended(node)
                self._runtime.attempt_failed(node, failure)
            elif node.life.work is Work.CANCELING:
                self._runtime.attempt_ended(node)
                self._runtime.stopped(node)

    # Cancellation.

    def cancel(self, node: Node) -> None:
        """Asks the backend to stop a task; waits for a submission that holds it."""
        if node in self._batch:
            self._deferred.append(node)
        elif node.life.work is Work.CANCELING:
            self._runtime.spawn(self._cancel(node, node.uid), f"cancel {node.uid}")

    async def _cancel(self, node: Node, uid: str) -> None:
        known = await self._ask(uid)
        if not known and node.uid == uid and node.life.work is Work.CANCELING:
            self._runtime.cannot_stop(node)

    async def _ask(self, uid: str) -> bool:
        try:
            answer = self.backend.cancel_task(uid)
            return bool(await answer if inspect.isawaitable(answer) else answer)
        except (Exception, asyncio.CancelledError) as error:  # must not hurt other tasks
            if asked_to_stop():
                raise
            self._runtime.log.error(
                "backend %r failed to cancel %s: %r", self.name, uid, error, exc_info=error
            )
            return False
