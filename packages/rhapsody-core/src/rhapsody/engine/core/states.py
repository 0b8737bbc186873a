"""Table of the states of a task and of the transitions between them, as data.

The state of a task has two parts: the state of the user's future, and that of the backend's work.
They differ because a future is canceled immediately, while its work may take some time to stop, and
because the future of a service is done while the service runs. Every change of a task is a
transition in this table, and `rhapsody.engine.core.scheduler` adds a handler to each row. If a
backend's report has no row, it is late, repeated or out of order: it changes nothing. It is counted
in `flow.stats.late`, unless it repeats that a task is running.

To add a rule, add a row here, a handler to the scheduler, and an invariant to
`tests/_support/world/invariants.py`. Tests run the scheduler alone, with a stub for the rest of
the engine, through a hundred thousand random histories; `python -m
tests._support.world.histories` runs ten million.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class FutureState(StrEnum):
    """State of the user's future."""

    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class WorkState(StrEnum):
    """State of the work of the task."""

    WAITING = "waiting"  # waiting for its dependencies
    READY = "ready"  # waiting to be prepared and submitted
    SUBMITTING = "submitting"  # `submit_tasks` has not returned yet
    SUBMITTED = "submitted"  # accepted by the backend, not started
    RUNNING = "running"
    SERVING = "serving"  # a service that is ready
    CANCELING = "canceling"  # asked to stop, not yet ended
    RETRY_WAIT = "retry-wait"  # between two attempts
    ENDED = "ended"
    LOST = "lost"  # the engine shut down before the work ended


FINISHED: Final = (WorkState.ENDED, WorkState.LOST)
"""States of work that has ended, or that the engine no longer follows."""


class Transition(StrEnum):
    """Event that moves a task to another state."""

    RESOLVE = "resolve"  # the last dependency has succeeded, or the task is pushed down
    SUBMIT = "submit"  # the task joins a batch
    ACCEPT = "accept"  # submit_tasks returned
    RUN = "run"  # the backend reports that the work is running
    SERVE = "serve"  # the service is ready
    DONE = "done"  # the work succeeded
    HOLD = "hold"  # the work succeeded, and the value stays with the backend
    SUBSTITUTE = "substitute"  # a recorded result or the fallback becomes the result
    LET_GO = "let-go"  # the fallback becomes the result, while the work continues
    REVEAL = "reveal"  # the result has been recorded and is set on the future
    FAIL = "fail"  # the task has no attempt left, or could never run
    RETRY = "retry"  # an attempt failed, and the task has another one left
    DUE = "due"  # the wait before the next attempt has ended
    STOPPED = "stopped"  # the work was canceled, or ended when nothing needed its outcome
    CANCEL = "cancel"  # canceled by the user, the engine or a dependency
    STOP = "stop"  # the attempt timed out: stop the work, then retry or fail
    GIVE_UP = "give up"  # the attempt timed out, and the work cannot be stopped
    ABANDON = "abandon"  # the engine shuts down before the work ends


_F, _W, _E = FutureState, WorkState, Transition

TABLE: Final[tuple[tuple[FutureState, WorkState, Transition, FutureState, WorkState], ...]] = (
    (_F.PENDING, _W.WAITING, _E.RESOLVE, _F.PENDING, _W.READY),
    (_F.PENDING, _W.WAITING, _E.FAIL, _F.FAILED, _W.ENDED),
    (_F.PENDING, _W.WAITING, _E.CANCEL, _F.CANCELLED, _W.ENDED),
    (_F.PENDING, _W.READY, _E.SUBMIT, _F.PENDING, _W.SUBMITTING),
    (_F.PENDING, _W.READY, _E.RUN, _F.PENDING, _W.RUNNING),
    (_F.PENDING, _W.READY, _E.SUBSTITUTE, _F.PENDING, _W.ENDED),
    (_F.PENDING, _W.READY, _E.FAIL, _F.FAILED, _W.ENDED),
    (_F.PENDING, _W.READY, _E.CANCEL, _F.CANCELLED, _W.ENDED),
    (_F.PENDING, _W.SUBMITTING, _E.ACCEPT, _F.PENDING, _W.SUBMITTED),
    (_F.PENDING, _W.SUBMITTING, _E.RUN, _F.PENDING, _W.RUNNING),
    (_F.PENDING, _W.SUBMITTED, _E.RUN, _F.PENDING, _W.RUNNING),
    *(
        row
        for work in (_W.SUBMITTING, _W.SUBMITTED, _W.RUNNING)
        for row in (
            (_F.PENDING, work, _E.SERVE, _F.DONE, _W.SERVING),
            (_F.PENDING, work, _E.DONE, _F.PENDING, _W.ENDED),
            (_F.PENDING, work, _E.HOLD, _F.PENDING, _W.ENDED),
            (_F.PENDING, work, _E.SUBSTITUTE, _F.PENDING, _W.ENDED),
            (_F.PENDING, work, _E.LET_GO, _F.DONE, _W.CANCELING),
            (_F.PENDING, work, _E.FAIL, _F.FAILED, _W.ENDED),
            (_F.PENDING, work, _E.RETRY, _F.PENDING, _W.RETRY_WAIT),
            (_F.PENDING, work, _E.STOPPED, _F.CANCELLED, _W.ENDED),
            (_F.PENDING, work, _E.CANCEL, _F.CANCELLED, _W.CANCELING),
            (_F.PENDING, work, _E.STOP, _F.PENDING, _W.CANCELING),
            (_F.PENDING, work, _E.GIVE_UP, _F.FAILED, _W.CANCELING),
            (_F.PENDING, work, _E.ABANDON, _F.CANCELLED, _W.LOST),
        )
    ),
    # The work is being stopped after a timeout: however it ends, the attempt has failed.
    (_F.PENDING, _W.CANCELING, _E.SUBSTITUTE, _F.PENDING, _W.ENDED),
    (_F.PENDING, _W.CANCELING, _E.LET_GO, _F.DONE, _W.CANCELING),
    (_F.PENDING, _W.CANCELING, _E.FAIL, _F.FAILED, _W.ENDED),
    (_F.PENDING, _W.CANCELING, _E.RETRY, _F.PENDING, _W.RETRY_WAIT),
    (_F.PENDING, _W.CANCELING, _E.GIVE_UP, _F.FAILED, _W.CANCELING),
    (_F.PENDING, _W.CANCELING, _E.CANCEL, _F.CANCELLED, _W.CANCELING),
    (_F.PENDING, _W.CANCELING, _E.ABANDON, _F.CANCELLED, _W.LOST),
    # The future is settled and the work continues: however it ends, its outcome is not used.
    *(
        row
        for future in (_F.CANCELLED, _F.FAILED, _F.DONE)
        for row in (
            (future, _W.CANCELING, _E.STOPPED, future, _W.ENDED),
            (future, _W.CANCELING, _E.ABANDON, future, _W.LOST),
        )
    ),
    (_F.DONE, _W.SERVING, _E.CANCEL, _F.DONE, _W.CANCELING),
    (_F.DONE, _W.SERVING, _E.STOPPED, _F.DONE, _W.ENDED),
    (_F.DONE, _W.SERVING, _E.ABANDON, _F.DONE, _W.LOST),
    (_F.PENDING, _W.RETRY_WAIT, _E.DUE, _F.PENDING, _W.READY),
    (_F.PENDING, _W.RETRY_WAIT, _E.FAIL, _F.FAILED, _W.ENDED),
    (_F.PENDING, _W.RETRY_WAIT, _E.CANCEL, _F.CANCELLED, _W.ENDED),
    # The work succeeded, and the future is pending until the result is recorded. If the value
    # stays with the backend, the task remains in this state: see `pushdown`.
    (_F.PENDING, _W.ENDED, _E.REVEAL, _F.DONE, _W.ENDED),
    (_F.PENDING, _W.ENDED, _E.FAIL, _F.FAILED, _W.ENDED),
    (_F.PENDING, _W.ENDED, _E.CANCEL, _F.CANCELLED, _W.ENDED),
)
"""Rows of the transition table: (future, work, transition, next future, next work)."""


class TaskState:
    """State of a task in the transition table, with the transitions that are possible from it.

    Attributes:
        future: The state of the user's future.
        work: The state of the work.
        after: The next state for each transition that is possible from this state.
    """

    __slots__ = ("after", "future", "work")

    def __init__(self, future: FutureState, work: WorkState) -> None:
        self.future: FutureState = future
        self.work: WorkState = work
        self.after: dict[Transition, TaskState] = {}

    def __repr__(self) -> str:
        return f"<{self.future} future, {self.work} work>"


def _states() -> dict[tuple[FutureState, WorkState], TaskState]:
    states: dict[tuple[FutureState, WorkState], TaskState] = {}

    def state(future: FutureState, work: WorkState) -> TaskState:
        return states.setdefault((future, work), TaskState(future, work))

    for future, work, event, next_future, next_work in TABLE:
        after = state(future, work).after
        after[event] = state(next_future, next_work)
    return states


STATES: Final = _states()
START: Final = STATES[FutureState.PENDING, WorkState.WAITING]
READY: Final = START.after[Transition.RESOLVE]
SUBMITTING: Final = READY.after[Transition.SUBMIT]
SUBMITTED: Final = SUBMITTING.after[Transition.ACCEPT]
