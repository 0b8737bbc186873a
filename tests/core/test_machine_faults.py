"""The histories find faults: each of these is planted into the machine, and found soon."""

from __future__ import annotations

from typing import Any

import pytest

from rhapsody.engine.graph import Graph
from rhapsody.engine.life import READY, Event, Future, Work
from rhapsody.engine.machine import Machine
from rhapsody.engine.node import Extra, Node
from rhapsody.states import TasksMainStates
from tests.core.machine.world import history

SOON = 2000
"""Histories within which each fault is found: about a second."""


class LostDecrement(Machine):
    """One of two dependencies that end is not counted."""

    def __init__(self, *given: Any, **settings: Any) -> None:
        super().__init__(*given, **settings)
        self.graph = ForgetfulGraph(self)


class ForgetfulGraph(Graph):
    """Forgets to count a dependency of a node that waits for two."""

    def _dependency_settled(self, node: Node, dependency: Any) -> None:
        node.unfinished += node.unfinished == 2
        super()._dependency_settled(node, dependency)


class DoubleSettle(Machine):
    """A result that a user had cancelled is revealed all the same."""

    def reveal(self, node: Node, value: Any) -> None:
        if not node.step(Event.REVEAL):
            self.actions.succeed(node, value)
            return
        self._show(node, value)


class LateUpdateApplied(Machine):
    """What a backend says of an attempt that is over counts for the next one."""

    def _free(self, node: Node) -> None:
        uid = node.uid
        super()._free(node)
        self.inflight[uid] = node


class RetryAfterCancel(Machine):
    """A task that was cancelled while it waited for its next attempt is tried again."""

    def _disarm(self, node: Node) -> None:
        if node.life.work is not Work.ENDED:
            super()._disarm(node)

    def _again(self, node: Node) -> None:
        node.life = READY
        self.actions.route(node)


class SeenBeforeRecorded(Machine):
    """A result is seen before it is recorded."""

    def end(self, node: Node, main: TasksMainStates, report: Any) -> None:
        self.recording = False
        super().end(node, main, report)


class SlotNotFreed(Machine):
    """An attempt that failed keeps its slot."""

    def _attempt_failed(self, node: Node, error: BaseException) -> None:
        assert node.backend is not None
        node.backend.occupied += 1
        super()._attempt_failed(node, error)


class DeadlineNotDisarmed(Machine):
    """The time-out of an attempt that is over goes on."""

    def _disarm(self, node: Node) -> None:
        if node.extra is not None:
            node.extra.timer = None


class LimitNotGivenBack(Machine):
    """A cancelled task keeps its places under named limits."""

    def _release(self, node: Node, extra: Extra) -> None:
        if node.life.future is Future.CANCELLED:
            self._disarm(node)
        else:
            super()._release(node, extra)


class DependentsNotTold(Machine):
    """What waits for a cancelled task waits for ever."""

    def _stop_cancelled(self, cancelled: tuple[Node, bool]) -> None:
        cancelled[0].dependents = None
        super()._stop_cancelled(cancelled)


class TriedForEver(Machine):
    """A failed attempt is not counted."""

    def _attempt_failed(self, node: Node, error: BaseException) -> None:
        super()._attempt_failed(node, error)
        if node.extra is not None:
            node.extra.failures, node.extra.losses = {}, 0


class BackAndForth(Machine):
    """A task comes back to a backend that it has left."""

    def _attempt_failed(self, node: Node, error: BaseException) -> None:
        super()._attempt_failed(node, error)
        if node.extra is not None:
            node.extra.elsewhere = None


class WorkNotStopped(Machine):
    """The work of a cancelled task goes on, as nobody is asked to stop it."""

    def _stop_cancelled(self, cancelled: tuple[Node, bool]) -> None:
        super()._stop_cancelled((cancelled[0], False))


class AnotherAttemptServes(Machine):
    """A service is ready as an attempt says so that is over."""

    def serve(self, node: Node, uid: str, information: Any) -> None:
        super().serve(node, node.uid, information)


class FailureNotCounted(Machine):
    """A failed task is not counted."""

    def _failed(self, node: Node, error: BaseException) -> None:
        super()._failed(node, error)
        self.stats.failed -= 1


class RunsWithoutItsDependencies(Machine):
    """A task whose dependency failed runs."""

    def __init__(self, *given: Any, **settings: Any) -> None:
        super().__init__(*given, **settings)
        self.graph = CarelessGraph(self)


class CarelessGraph(Graph):
    """Does not look whether dependencies failed."""

    def fail_with_dependencies(self, node: Node) -> bool:
        return False


FAULTS = [
    LostDecrement, DoubleSettle, LateUpdateApplied, RetryAfterCancel, SeenBeforeRecorded,
    SlotNotFreed, DeadlineNotDisarmed, LimitNotGivenBack, DependentsNotTold, TriedForEver,
    BackAndForth, WorkNotStopped, AnotherAttemptServes, FailureNotCounted,
    RunsWithoutItsDependencies,
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: type[Machine]) -> None:
    with pytest.raises((AssertionError, KeyError)):
        run_all(fault)


def run_all(fault: type[Machine]) -> None:
    for seed in range(SOON):
        history(seed, fault)
