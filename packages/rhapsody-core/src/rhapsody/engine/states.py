"""The life of a task as one table: the future its user holds by the work a backend does.

Everything the engine does to a task is an event in this table. What it has no
row for is late, doubled or out of order, and is not applied. The picture in
docs/architecture.md is drawn from it. What an event makes the engine do is not here.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class FutureState(StrEnum):
    """What the user's future says."""

    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class WorkState(StrEnum):
    """What is being done about the task."""

    WAITING = "waiting"  # for its dependencies
    READY = "ready"  # for its turn to be handed to a backend
    SUBMITTING = "submitting"  # being handed over
    SUBMITTED = "submitted"  # with the backend, not started
    RUNNING = "running"
    SERVING = "serving"  # a service that is ready
    CANCELING = "canceling"  # asked to stop, not yet ended
    RETRY_WAIT = "retry-wait"  # between two attempts
    ENDED = "ended"
    LOST = "lost"  # nobody knows any more


OVER: Final = (WorkState.ENDED, WorkState.LOST)
"""Work of which nothing more comes."""


class Transition(StrEnum):
    """What can happen to a task."""

    RESOLVE = "resolve"  # its last dependency has ended well
    SUBMIT = "submit"  # it goes into a batch
    ACCEPT = "accept"  # submit_tasks returned
    RUN = "run"  # the backend says it runs
    SERVE = "serve"  # the service is ready
    DONE = "done"  # the work ended well
    FALL_BACK = "fall-back"  # no attempt is left, and something stands in for the result
    LET_GO = "let-go"  # the same, while the work goes on
    REVEAL = "reveal"  # its result may be seen
    FAIL = "fail"  # it has failed for good, or never could run
    RETRY = "retry"  # it failed and has an attempt left
    DUE = "due"  # the wait before the next attempt is over
    STOPPED = "stopped"  # the backend says it was cancelled
    CANCEL = "cancel"  # the user, or the end of the engine
    STOP = "stop"  # over its time: stop the work, then decide
    GIVE_UP = "give up"  # over its time, and the work cannot be stopped
    ABANDON = "abandon"  # the engine ends and the work has not


_F, _W, _E = FutureState, WorkState, Transition

TABLE: Final[tuple[tuple[FutureState, WorkState, Transition, FutureState, WorkState], ...]] = (
    (_F.PENDING, _W.WAITING, _E.RESOLVE, _F.PENDING, _W.READY),
    (_F.PENDING, _W.WAITING, _E.FAIL, _F.FAILED, _W.ENDED),
    (_F.PENDING, _W.WAITING, _E.CANCEL, _F.CANCELLED, _W.ENDED),
    (_F.PENDING, _W.READY, _E.SUBMIT, _F.PENDING, _W.SUBMITTING),
    (_F.PENDING, _W.READY, _E.RUN, _F.PENDING, _W.RUNNING),
    (_F.PENDING, _W.READY, _E.DONE, _F.PENDING, _W.ENDED),
    (_F.PENDING, _W.READY, _E.FALL_BACK, _F.PENDING, _W.ENDED),
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
            (_F.PENDING, work, _E.FALL_BACK, _F.PENDING, _W.ENDED),
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
    # Stopped for its time: whatever ends it, it has failed.
    (_F.PENDING, _W.CANCELING, _E.FALL_BACK, _F.PENDING, _W.ENDED),
    (_F.PENDING, _W.CANCELING, _E.LET_GO, _F.DONE, _W.CANCELING),
    (_F.PENDING, _W.CANCELING, _E.FAIL, _F.FAILED, _W.ENDED),
    (_F.PENDING, _W.CANCELING, _E.RETRY, _F.PENDING, _W.RETRY_WAIT),
    (_F.PENDING, _W.CANCELING, _E.GIVE_UP, _F.FAILED, _W.CANCELING),
    (_F.PENDING, _W.CANCELING, _E.CANCEL, _F.CANCELLED, _W.CANCELING),
    (_F.PENDING, _W.CANCELING, _E.ABANDON, _F.CANCELLED, _W.LOST),
    # The future is settled, the work goes on: nothing it says is seen any more.
    *(
        row
        for future in (_F.CANCELLED, _F.FAILED, _F.DONE)
        for row in (
            (future, _W.CANCELING, _E.DONE, future, _W.ENDED),
            (future, _W.CANCELING, _E.FAIL, future, _W.ENDED),
            (future, _W.CANCELING, _E.STOPPED, future, _W.ENDED),
            (future, _W.CANCELING, _E.ABANDON, future, _W.LOST),
        )
    ),
    (_F.DONE, _W.SERVING, _E.CANCEL, _F.DONE, _W.CANCELING),
    (_F.DONE, _W.SERVING, _E.DONE, _F.DONE, _W.ENDED),
    (_F.DONE, _W.SERVING, _E.FAIL, _F.DONE, _W.ENDED),
    (_F.DONE, _W.SERVING, _E.STOPPED, _F.DONE, _W.ENDED),
    (_F.DONE, _W.SERVING, _E.ABANDON, _F.DONE, _W.LOST),
    (_F.PENDING, _W.RETRY_WAIT, _E.DUE, _F.PENDING, _W.READY),
    (_F.PENDING, _W.RETRY_WAIT, _E.FAIL, _F.FAILED, _W.ENDED),
    (_F.PENDING, _W.RETRY_WAIT, _E.CANCEL, _F.CANCELLED, _W.ENDED),
    # Ended well, and held until the result is recorded. Where the value stays with the
    # backend, the task ends here: see `held`.
    (_F.PENDING, _W.ENDED, _E.REVEAL, _F.DONE, _W.ENDED),
    (_F.PENDING, _W.ENDED, _E.FAIL, _F.FAILED, _W.ENDED),
    (_F.PENDING, _W.ENDED, _E.CANCEL, _F.CANCELLED, _W.ENDED),
)
"""Rows of (future, work, event, future after it, work after it)."""


class TaskState:
    """One field of the table: a situation a task can be in, and the ways out of it.

    Attributes:
        future: What the user's future says.
        work: What is being done.
        after: The situation after each event that may happen here.
    """

    __slots__ = ("after", "future", "work")

    def __init__(self, future: FutureState, work: WorkState) -> None:
        self.future: FutureState = future
        self.work: WorkState = work
        self.after: dict[Transition, TaskState] = {}

    def __repr__(self) -> str:
        return f"<{self.future} future, {self.work} work>"


def _situations() -> dict[tuple[FutureState, WorkState], TaskState]:
    situations: dict[tuple[FutureState, WorkState], TaskState] = {}

    def situation(future: FutureState, work: WorkState) -> TaskState:
        return situations.setdefault((future, work), TaskState(future, work))

    for future, work, event, next_future, next_work in TABLE:
        after = situation(future, work).after
        if event in after:
            raise AssertionError(f"two rows for {future}, {work}, {event}")
        after[event] = situation(next_future, next_work)
    return situations


SITUATIONS: Final = _situations()
START: Final = SITUATIONS[FutureState.PENDING, WorkState.WAITING]
READY: Final = START.after[Transition.RESOLVE]
SUBMITTING: Final = READY.after[Transition.SUBMIT]
SUBMITTED: Final = SUBMITTING.after[Transition.ACCEPT]


def diagram() -> str:
    """The table as a Mermaid state diagram, events between the same two situations joined."""
    edges: dict[tuple[str, str], list[str]] = {}
    for future, work, event, next_future, next_work in TABLE:
        edge = (_node(future, work), _node(next_future, next_work))
        edges.setdefault(edge, []).append(event.value)
    lines = ["stateDiagram-v2", "    direction LR"]
    for future, work in SITUATIONS:
        lines.append(f'    state "{work} ({future})" as {_node(future, work)}')
    lines.append(f"    [*] --> {_node(FutureState.PENDING, WorkState.WAITING)}")
    lines += [f"    {a} --> {b} : {', '.join(events)}" for (a, b), events in edges.items()]
    return "\n".join(lines)


def _node(future: FutureState, work: WorkState) -> str:
    return f"{work}_{future}".replace("-", "_")
