"""The table of a task's life: complete, consistent, and all that moves a task."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rhapsody import TasksMainStates
from rhapsody.engine import states
from rhapsody.engine.record import TaskRecord
from rhapsody.engine.settings import Settings
from rhapsody.engine.states import SITUATIONS, START, TABLE, FutureState, Transition, WorkState

Situation = tuple[FutureState, WorkState]

ROWS = {
    (future, work, event): (after, work_after) for future, work, event, after, work_after in TABLE
}
WITH_A_BACKEND = {
    WorkState.SUBMITTING,
    WorkState.SUBMITTED,
    WorkState.RUNNING,
    WorkState.SERVING,
    WorkState.CANCELING,
}
SITUATION_IDS = [f"{future} {work}" for future, work in SITUATIONS]
all_situations = pytest.mark.parametrize("situation", SITUATIONS, ids=SITUATION_IDS)


def over(situation: Situation) -> bool:
    """Whether nothing can happen any more: the future is settled, the work has ended."""
    future, work = situation
    return future is not FutureState.PENDING and work in (WorkState.ENDED, WorkState.LOST)


def after(situation: Situation) -> set[Situation]:
    """The situations one event later."""
    return {to for (future, work, _), to in ROWS.items() if (future, work) == situation}


def reachable(start: Situation) -> set[Situation]:
    """The situations any number of events later."""
    found, new = {start}, {start}
    while new:
        new = {to for situation in new for to in after(situation)} - found
        found |= new
    return found


def test_every_row_is_reachable_from_a_new_task() -> None:
    situations = reachable((START.future, START.work))
    unreachable = [row for row in TABLE if (row[0], row[1]) not in situations]
    assert not unreachable
    assert situations == set(SITUATIONS)


def test_no_situation_event_or_kind_of_work_is_left_out() -> None:
    assert len(ROWS) == len(TABLE)
    assert {event for _, _, event in ROWS} == set(Transition)
    assert {work for _, work in SITUATIONS} == set(WorkState)
    assert {future for future, _ in SITUATIONS} == set(FutureState)


def test_a_settled_future_never_changes() -> None:
    changed = [row for row in TABLE if row[0] is not FutureState.PENDING and row[3] is not row[0]]
    assert not changed


def test_what_is_over_stays_over_and_all_else_can_get_there() -> None:
    for situation in SITUATIONS:
        if over(situation):
            assert not after(situation)
        else:
            assert any(over(to) for to in reachable(situation))


@all_situations
def test_every_pending_future_can_be_cancelled(situation: Situation) -> None:
    future, work = situation
    if future is FutureState.PENDING:
        assert ROWS[future, work, Transition.CANCEL][0] is FutureState.CANCELLED


@all_situations
def test_whatever_a_backend_has_can_end_and_can_be_left_behind(situation: Situation) -> None:
    future, work = situation
    if work not in WITH_A_BACKEND:
        return
    assert ROWS[future, work, Transition.ABANDON][1] is WorkState.LOST
    if situation == (
        FutureState.PENDING,
        WorkState.CANCELING,
    ):  # over its time: whatever ends it, it failed
        ends = {Transition.FAIL}
    elif future is not FutureState.PENDING:  # however it ends, nothing waits for it
        ends = {Transition.STOPPED}
    else:
        ends = {Transition.DONE, Transition.FAIL, Transition.STOPPED}
    for event in ends:
        assert ROWS[future, work, event][1] is WorkState.ENDED


def test_a_result_is_only_revealed_after_the_work_ended_well_or_serves() -> None:
    for (future, work, event), (to, work_after) in ROWS.items():
        if future is FutureState.PENDING and to is FutureState.DONE:
            assert (event, work_after) in {
                (Transition.REVEAL, WorkState.ENDED),
                (Transition.SERVE, WorkState.SERVING),
                (Transition.LET_GO, WorkState.CANCELING),  # something else stands in for the result
            }
            assert event is not Transition.REVEAL or work is WorkState.ENDED


def test_only_a_wait_leads_to_another_attempt() -> None:
    for (_, work, event), (_, work_after) in ROWS.items():
        if work_after is WorkState.READY:
            assert (work, event) in {
                (WorkState.WAITING, Transition.RESOLVE),
                (WorkState.RETRY_WAIT, Transition.DUE),
            }


@all_situations
def test_every_situation_has_a_canonical_state(situation: Situation) -> None:
    future, work = situation
    record = object.__new__(TaskRecord)
    record.life = SITUATIONS[situation]
    service = work is WorkState.SERVING
    record.task = cast("Any", SimpleNamespace(settings=Settings(service=service)))
    state = record.state()
    assert isinstance(state, TasksMainStates)
    settled = {
        FutureState.FAILED: TasksMainStates.FAILED,
        FutureState.CANCELLED: TasksMainStates.CANCELED,
    }
    if future in settled:
        assert state is settled[future]
    if situation == (FutureState.DONE, WorkState.CANCELING):
        assert state is TasksMainStates.DONE
        record.task = cast("Any", SimpleNamespace(settings=Settings(service=True)))
        assert record.state() is TasksMainStates.RUNNING
    if work is WorkState.SERVING:
        assert state is TasksMainStates.RUNNING
    if future is FutureState.PENDING:
        assert state not in (TasksMainStates.FAILED, TasksMainStates.CANCELED)


def test_the_picture_in_the_documentation_is_the_table() -> None:
    documentation = Path(__file__).parents[2] / "docs" / "architecture.md"
    assert states.diagram() in documentation.read_text()


class TableMachine(RuleBasedStateMachine):
    """A task under any events in any order: the rows, and nothing but the rows, move it."""

    def __init__(self) -> None:
        super().__init__()
        self.record = object.__new__(TaskRecord)
        self.record.life = START
        self.settled: FutureState | None = None
        self.was_over = False

    @rule(event=st.sampled_from(Transition))
    def happens(self, event: Transition) -> None:
        before = self.record.life
        expected = ROWS.get((before.future, before.work, event))
        moved = self.record.step(event)
        now = self.record.life
        if expected is None:
            assert not moved
            assert now is before
        else:
            assert moved
            assert (now.future, now.work) == expected
            assert not self.was_over

    @rule(data=st.data())
    def goes_on(self, data: st.DataObject) -> None:
        """An event that has a row: without these most runs would end early."""
        events = sorted(self.record.life.after)
        if events:
            self.happens(data.draw(st.sampled_from(events)))

    @invariant()
    def settles_once(self) -> None:
        future = self.record.life.future
        if self.settled is not None:
            assert future is self.settled
        elif future is not FutureState.PENDING:
            self.settled = future
        self.was_over = over((future, self.record.life.work))


TestTableMachine = TableMachine.TestCase
TestTableMachine.settings = settings(max_examples=200, stateful_step_count=30)
