"""What the contract promises of every history of the machine, whatever happens in it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from rhapsody.engine.life import Future, Work
from rhapsody.engine.node import Node
from rhapsody.errors import DependencyFailureError
from rhapsody.states import TasksMainStates

if TYPE_CHECKING:
    from tests.core.machine.world import World

DONE, CANCELED = TasksMainStates.DONE, TasksMainStates.CANCELED


class BrokenPromiseError(AssertionError):
    """The machine did what it must not, or did not what it must."""


class Promises:
    """What the contract promises of every history, whatever happens in it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ended: set[Node] = set()

    def hold(self, kept: object, what: str) -> None:
        if not kept:
            raise BrokenPromiseError(what)

    def handed_over(self, node: Node) -> None:
        """A task goes to a backend after its dependencies, while it is wanted, so many times."""
        world, future = self.world, node.future
        self.hold(not future.done(), f"{future.uid} runs although it is settled")
        for one in world.calls[node]:
            good = one.done() and not one.cancelled() and one.exception() is None
            self.hold(good, f"{future.uid} runs without the value of {one.uid}")
        policies = node.task.settings.retries or ()
        most = 1 + world.LOST_RETRIES + sum(policy.attempts for policy in policies)
        assert node.backend is not None
        where = world.submitted[node, node.backend]
        self.hold(where <= most, f"{future.uid} is tried too often on {node.backend.name}")
        others = node.backend is not world.backends[1] and world.submitted[node, world.backends[1]]
        self.hold(not others, f"{future.uid} comes back to a backend that it has left")

    def succeeded(self, node: Node, value: Any) -> None:
        """A result is that of the last attempt, and was recorded before it is seen."""
        if value not in ("recorded", "fallback", "value"):
            self.hold(value == node.uid, f"{node.future.uid} got the result {value}")
            if self.world.records and not node.task.settings.service:
                self.hold(node in self.world.recorded, f"{node.future.uid} is seen unrecorded")

    def published(self, node: Node, state: TasksMainStates) -> None:
        """Nothing is told of a task after it was told to have ended, but of services."""
        self.hold(node not in self.ended, f"{state} is told of {node.future.uid} after its end")
        if state is CANCELED or (state is DONE and not node.task.settings.service):
            self.ended.add(node)

    def look(self) -> None:
        """What holds at any time: slots, limits, counts of dependencies, deadlines, edges."""
        world, machine = self.world, self.world.machine
        inflight = [n for n in machine.inflight.values() if not n.task.settings.service]
        for backend in world.backends:
            there = sum(node.backend is backend for node in inflight)
            self.hold(backend.occupied == there, "slots are not what is in flight")
        used: Counter[str] = Counter()
        for node in machine.graph.live:
            uid = node.future.uid
            used.update(name for name, _ in (node.extra.limits if node.extra else ()))
            if node.life.work is Work.WAITING:
                left = sum(not one.done() for one in node.dependencies)
                self.hold(node.unfinished == left, f"{uid} waits for a wrong number")
                self.hold(left, f"{uid} waits for nothing")
            pending = node.life.future is Future.PENDING
            self.hold(pending != node.future.done(), f"{uid} is not what its future says")
            if node.life.work is Work.CANCELING:
                self.hold(world.stops[node], f"nobody was asked to stop {uid}")
        for name, size in (("licence", 1), ("disk", 2)):
            self.hold(used[name] == machine.limits._used.get(name, 0), f"{name} is miscounted")
            self.hold(used[name] <= size, f"too many have {name}")
        for _, _, timed, deadline in world.timers:
            if deadline.call is not None and timed is not None:
                now: Any = None if timed.extra is None else timed.extra.timer
                right = now is deadline
                self.hold(right, f"a deadline of {timed.future.uid} was not taken back")

    def look_at_the_end(self) -> None:
        """Every future is settled once, and everything was given back and counted."""
        machine, stats = self.world.machine, self.world.machine.stats
        outcomes: Counter[str] = Counter()
        for node in self.world.nodes:
            future: Any = node.future
            self.hold(future.done(), f"{future.uid} is never settled")
            outcomes[future.outcome[0]] += 1
            self.hold(future._node is None, f"{future.uid} still holds its node")
            ended = [one for one in self.world.calls[node] if one.done() and not one.cancelled()]
            failed = any(one.exception() for one in ended)
            ran = (
                any((node, one) in self.world.submitted for one in self.world.backends)
                or node.task.prefix == "block"
            )
            if failed and not ran and future.outcome[0] == "failed":
                right = isinstance(future.exception(), DependencyFailureError)
                self.hold(right, f"{future.uid} fails otherwise than with its dependency")
        self.hold(not machine.graph.live and not machine.inflight, "something is still alive")
        self.hold(not any(b.occupied for b in self.world.backends), "a slot is not free")
        self.hold(not any(machine.limits._used.values()), "a place under a limit is not free")
        told = {"done": stats.done, "failed": stats.failed, "cancelled": stats.cancelled}
        self.hold(told == {how: outcomes[how] for how in told}, f"counted {told}, were {outcomes}")
        self.hold(stats.tasks == len(self.world.nodes), "calls are miscounted")
