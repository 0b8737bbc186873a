"""Invariants: rules of the contract that hold in every history of the scheduler."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from rhapsody.engine.core.record import TaskRecord, record_of
from rhapsody.engine.core.states import FutureState, WorkState
from rhapsody.errors import DependencyFailureError
from rhapsody.states import TasksMainStates

if TYPE_CHECKING:
    from tests._support.world.world import World

DONE, CANCELED = TasksMainStates.DONE, TasksMainStates.CANCELED


class BrokenInvariantError(AssertionError):
    """The scheduler did what it must not, or did not what it must."""


class Invariants:
    """Rules of the contract that hold in every history."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ended: set[TaskRecord] = set()

    def hold(self, kept: object, what: str) -> None:
        if not kept:
            raise BrokenInvariantError(what)

    def handed_over(self, record: TaskRecord) -> None:
        """A task goes to a backend after its dependencies, while it is wanted, so many times."""
        world, future = self.world, record.future
        self.hold(not future.done(), f"{future.uid} runs although it is settled")
        for one in world.calls[record]:
            good = one.done() and not one.cancelled() and one.exception() is None
            self.hold(good, f"{future.uid} runs without the value of {one.uid}")
        policies = record.call.task.settings.retries or ()
        most = 1 + world.LOST_RETRIES + sum(policy.attempts for policy in policies)
        where = world.submitted[record, record.attempt.backend]
        self.hold(
            where <= most, f"{future.uid} is tried too often on {record.attempt.backend.name}"
        )
        others = (
            record.attempt.backend is not world.backends[1]
            and world.submitted[record, world.backends[1]]
        )
        self.hold(not others, f"{future.uid} comes back to a backend that it has left")

    def succeeded(self, record: TaskRecord, value: Any) -> None:
        """A result is that of the last attempt, and was recorded before it is seen."""
        if value not in ("recorded", "fallback", "value"):
            self.hold(value == record.attempt.uid, f"{record.future.uid} got the result {value}")
            if self.world.saves and not record.call.task.settings.service:
                self.hold(record in self.world.recorded, f"{record.future.uid} is seen unrecorded")

    def published(self, record: TaskRecord, state: TasksMainStates) -> None:
        """Check that nothing is reported of a task after its end, except of services."""
        self.hold(
            record not in self.ended, f"{state} of {record.future.uid} was reported after its end"
        )
        if state is CANCELED or (state is DONE and not record.call.task.settings.service):
            self.ended.add(record)

    def look(self) -> None:
        """Check what holds at any time: slots, limits, counts of dependencies, deadlines, edges."""
        world, scheduler = self.world, self.world.scheduler
        inflight = [n for n in scheduler.inflight.values() if not n.call.task.settings.service]
        for backend in world.backends:
            there = sum(record.attempt.backend is backend for record in inflight)
            self.hold(backend.occupied == there, "slots are not what is in flight")
        used: Counter[str] = Counter()
        for record in scheduler.live:
            uid = record.future.uid
            used.update(name for name, _ in record.limits)
            if record.state.work is WorkState.WAITING:
                left = sum(not one.done() for one in record.call.dependencies)
                self.hold(record.unfinished == left, f"{uid} waits for a wrong number")
                self.hold(left, f"{uid} waits for nothing")
            pending = record.state.future is FutureState.PENDING
            self.hold(pending != record.future.done(), f"{uid} is not what its future says")
            if record.state.work is WorkState.CANCELING:
                self.hold(world.stops[record], f"no backend was asked to stop {uid}")
        for name, size in (("license", 1), ("disk", 2)):
            self.hold(used[name] == scheduler.limits._used.get(name, 0), f"{name} is miscounted")
            self.hold(used[name] <= size, f"too many have {name}")
        for _, _, timed, deadline in world.timers:
            if deadline.call is not None and timed is not None:
                now: Any = timed.timer
                right = now is deadline
                self.hold(right, f"a deadline of {timed.future.uid} was not taken back")

    def look_at_the_end(self) -> None:
        """Every future is settled once, and everything was given back and counted."""
        scheduler, stats = self.world.scheduler, self.world.scheduler.stats
        outcomes: Counter[str] = Counter()
        for record in self.world.records:
            future: Any = record.future
            self.hold(future.done(), f"{future.uid} is never settled")
            outcomes[future.outcome[0]] += 1
            self.hold(record_of(future) is None, f"{future.uid} still holds its node")
            ended = [one for one in self.world.calls[record] if one.done() and not one.cancelled()]
            failed = any(one.exception() for one in ended)
            ran = (
                any((record, one) in self.world.submitted for one in self.world.backends)
                or record.call.task.prefix == "block"
            )
            if failed and not ran and future.outcome[0] == "failed":
                right = isinstance(future.exception(), DependencyFailureError)
                self.hold(right, f"{future.uid} fails otherwise than with its dependency")
        self.hold(not scheduler.live and not scheduler.inflight, "something is still alive")
        self.hold(not any(b.occupied for b in self.world.backends), "a slot is not free")
        self.hold(not any(scheduler.limits._used.values()), "a place under a limit is not free")
        told = {"done": stats.done, "failed": stats.failed, "cancelled": stats.cancelled}
        self.hold(told == {how: outcomes[how] for how in told}, f"counted {told}, were {outcomes}")
        self.hold(stats.tasks == len(self.world.records), "calls are miscounted")
