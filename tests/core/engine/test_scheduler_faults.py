"""The histories find faults: each of these is planted into the scheduler, and found soon."""

from __future__ import annotations

from typing import Any

import pytest

from rhapsody.engine.core.record import TaskRecord
from rhapsody.engine.core.scheduler import Scheduler
from rhapsody.engine.core.states import READY, FutureState, Transition, WorkState
from rhapsody.states import TasksMainStates
from tests._support.world.world import history

SOON = 2000
"""Histories within which each fault is found: about a second."""


class LostDecrement(Scheduler):
    """One of two dependencies that end is not counted."""

    def _notify_dependents(self, record: TaskRecord) -> None:
        for dependent in record.dependents or ():
            dependent.unfinished += dependent.unfinished == 2
        super()._notify_dependents(record)


class DoubleSettle(Scheduler):
    """Publishes a result although its future was cancelled."""

    def reveal(self, record: TaskRecord, value: Any) -> None:
        if Transition.REVEAL in record.state.after:
            super().reveal(record, value)
        else:
            record.future.set_result(value)


class LateUpdateApplied(Scheduler):
    """Fault: reports about an attempt that has ended count for the next one."""

    def _free(self, record: TaskRecord) -> None:
        uid = record.attempt.uid
        super()._free(record)
        self.inflight[uid] = record


class RetryAfterCancel(Scheduler):
    """A task that was cancelled while it waited for its next attempt is tried again."""

    def _disarm(self, record: TaskRecord) -> None:
        if record.state.work is not WorkState.ENDED:
            super()._disarm(record)

    def _again(self, record: TaskRecord) -> None:
        record.state = READY
        self._actions.route(record)


class SeenBeforeRecorded(Scheduler):
    """A result is seen before it is recorded."""

    def end(self, record: TaskRecord, main: TasksMainStates, report: Any) -> None:
        self.recording = False
        super().end(record, main, report)


class SlotNotFreed(Scheduler):
    """An attempt that failed keeps its slot."""

    def _attempt_failed(self, record: TaskRecord, error: BaseException) -> None:
        record.attempt.backend.occupied += 1
        super()._attempt_failed(record, error)


class DeadlineNotDisarmed(Scheduler):
    """Keeps the timeout of an attempt that has ended."""

    def _disarm(self, record: TaskRecord) -> None:
        record.timer = None


class LimitNotGivenBack(Scheduler):
    """A cancelled task keeps its places under named limits."""

    def _release(self, record: TaskRecord) -> None:
        if record.state.future is FutureState.CANCELLED:
            self._disarm(record)
        else:
            super()._release(record)


class DependentsNotTold(Scheduler):
    """Fault: dependents of a canceled task wait forever."""

    def _cancelled(self, record: TaskRecord) -> None:
        record.dependents = None
        super()._cancelled(record)


class TriedForEver(Scheduler):
    """A failed attempt is not counted."""

    def _attempt_failed(self, record: TaskRecord, error: BaseException) -> None:
        super()._attempt_failed(record, error)
        if record.tries is not None:
            record.tries.failures, record.tries.losses = {}, 0


class BackAndForth(Scheduler):
    """A task comes back to a backend that it has left."""

    def _attempt_failed(self, record: TaskRecord, error: BaseException) -> None:
        super()._attempt_failed(record, error)
        if record.tries is not None:
            record.tries.elsewhere = None


class WorkNotStopped(Scheduler):
    """Does not ask the backend to stop the work of a cancelled task."""

    def _stop_cancelled(self, record: TaskRecord) -> None:
        self._cancelled(record)


class AnotherAttemptServes(Scheduler):
    """Accepts readiness from an attempt that has ended."""

    def serve(self, record: TaskRecord, uid: str, information: Any) -> None:
        super().serve(record, record.attempt.uid, information)


class FailureNotCounted(Scheduler):
    """A failed task is not counted."""

    def _failed(self, record: TaskRecord, error: BaseException) -> None:
        super()._failed(record, error)
        self.stats.failed -= 1


class RunsWithoutItsDependencies(Scheduler):
    """A task whose dependency failed runs."""

    def _fail_with_dependencies(self, record: TaskRecord) -> bool:
        return False


FAULTS = [
    LostDecrement, DoubleSettle, LateUpdateApplied, RetryAfterCancel, SeenBeforeRecorded,
    SlotNotFreed, DeadlineNotDisarmed, LimitNotGivenBack, DependentsNotTold, TriedForEver,
    BackAndForth, WorkNotStopped, AnotherAttemptServes, FailureNotCounted,
    RunsWithoutItsDependencies,
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: type[Scheduler]) -> None:
    with pytest.raises((AssertionError, KeyError)):
        run_all(fault)


def run_all(fault: type[Scheduler]) -> None:
    for seed in range(SOON):
        history(seed, fault)
