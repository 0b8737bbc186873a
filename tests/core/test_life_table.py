"""The table of a task's life: complete, consistent, and all that moves a task (DESIGN 5)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rhapsody import TasksMainStates
from rhapsody.engine import life
from rhapsody.engine.life import SITUATIONS, START, TABLE, Event, Future, Work
from rhapsody.engine.node import Node
from rhapsody.engine.settings import Settings

Situation = tuple[Future, Work]

ROWS = {
    (future, work, event): (after, work_after) for future, work, event, after, work_after in TABLE
}
WITH_A_BACKEND = {Work.SUBMITTING, Work.SUBMITTED, Work.RUNNING, Work.SERVING, Work.CANCELING}
SITUATION_IDS = [f"{future} {work}" for future, work in SITUATIONS]
all_situations = pytest.mark.parametrize("situation", SITUATIONS, ids=SITUATION_IDS)


def over(situation: Situation) -> bool:
    """Whether nothing can happen any more: the future is settled, the work has ended."""
    future, work = situation
    return future is not Future.PENDING and work in (Work.ENDED, Work.LOST)


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
    assert {event for _, _, event in ROWS} == set(Event)
    assert {work for _, work in SITUATIONS} == set(Work)
    assert {future for future, _ in SITUATIONS} == set(Future)


def test_a_settled_future_never_changes() -> None:
    changed = [row for row in TABLE if row[0] is not Future.PENDING and row[3] is not row[0]]
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
    if future is Future.PENDING:
        assert ROWS[future, work, Event.CANCEL][0] is Future.CANCELLED


@all_situations
def test_whatever_a_backend_has_can_end_and_can_be_left_behind(situation: Situation) -> None:
    future, work = situation
    if work not in WITH_A_BACKEND:
        return
    assert ROWS[future, work, Event.ABANDON][1] is Work.LOST
    if situation == (Future.PENDING, Work.CANCELING):  # over its time: whatever ends it, it failed
        ends = {Event.FAIL}
    else:
        ends = {Event.DONE, Event.FAIL, Event.STOPPED}
    for event in ends:
        assert ROWS[future, work, event][1] is Work.ENDED


def test_a_result_is_only_revealed_after_the_work_ended_well_or_serves() -> None:
    for (future, work, event), (to, work_after) in ROWS.items():
        if future is Future.PENDING and to is Future.DONE:
            assert (event, work_after) in {
                (Event.REVEAL, Work.ENDED),
                (Event.SERVE, Work.SERVING),
                (Event.LET_GO, Work.CANCELING),  # something else stands in for the result
            }
            assert event is not Event.REVEAL or work is Work.ENDED


def test_only_a_wait_leads_to_another_attempt() -> None:
    for (_, work, event), (_, work_after) in ROWS.items():
        if work_after is Work.READY:
            assert (work, event) in {(Work.WAITING, Event.RESOLVE), (Work.RETRY_WAIT, Event.DUE)}


@all_situations
def test_every_situation_has_a_canonical_state(situation: Situation) -> None:
    future, work = situation
    node = object.__new__(Node)
    node.life = SITUATIONS[situation]
    service = work is Work.SERVING
    node.task = cast("Any", SimpleNamespace(settings=Settings(service=service)))
    state = node.state()
    assert isinstance(state, TasksMainStates)
    settled = {Future.FAILED: TasksMainStates.FAILED, Future.CANCELLED: TasksMainStates.CANCELED}
    if future in settled:
        assert state is settled[future]
    if situation == (Future.DONE, Work.CANCELING):
        assert state is TasksMainStates.DONE
        node.task = cast("Any", SimpleNamespace(settings=Settings(service=True)))
        assert node.state() is TasksMainStates.RUNNING
    if work is Work.SERVING:
        assert state is TasksMainStates.RUNNING
    if future is Future.PENDING:
        assert state not in (TasksMainStates.FAILED, TasksMainStates.CANCELED)


def test_the_picture_in_the_documentation_is_the_table() -> None:
    documentation = Path(__file__).parents[2] / "docs" / "architecture.md"
    assert life.diagram() in documentation.read_text()


class TableMachine(RuleBasedStateMachine):
    """A node under any events in any order: the rows, and nothing but the rows, move it."""

    def __init__(self) -> None:
        super().__init__()
        self.node = object.__new__(Node)
        self.node.life = START
        self.settled: Future | None = None
        self.was_over = False

    @rule(event=st.sampled_from(Event))
    def happens(self, event: Event) -> None:
        before = self.node.life
        expected = ROWS.get((before.future, before.work, event))
        moved = self.node.step(event)
        now = self.node.life
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
        events = sorted(self.node.life.after)
        if events:
            self.happens(data.draw(st.sampled_from(events)))

    @invariant()
    def settles_once(self) -> None:
        future = self.node.life.future
        if self.settled is not None:
            assert future is self.settled
        elif future is not Future.PENDING:
            self.settled = future
        self.was_over = over((future, self.node.life.work))


TestTableMachine = TableMachine.TestCase
TestTableMachine.settings = settings(max_examples=200, stateful_step_count=30)
