"""The state table of a task is complete and consistent, and nothing else moves a task."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rhapsody import TasksMainStates
from rhapsody.engine.configuration.settings import Settings
from rhapsody.engine.core.record import TaskRecord
from rhapsody.engine.core.states import START, STATES, TABLE, FutureState, Transition, WorkState

Pair = tuple[FutureState, WorkState]

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
STATE_IDS = [f"{future} {work}" for future, work in STATES]
all_states = pytest.mark.parametrize("pair", STATES, ids=STATE_IDS)


def over(pair: Pair) -> bool:
    """Return whether the future is done and the work has ended."""
    future, work = pair
    return future is not FutureState.PENDING and work in (WorkState.ENDED, WorkState.LOST)


def after(pair: Pair) -> set[Pair]:
    """The pairs one event later."""
    return {to for (future, work, _), to in ROWS.items() if (future, work) == pair}


def reachable(start: Pair) -> set[Pair]:
    """The pairs any number of events later."""
    found, new = {start}, {start}
    while new:
        new = {to for pair in new for to in after(pair)} - found
        found |= new
    return found


def test_every_row_is_reachable_from_a_new_task() -> None:
    pairs = reachable((START.future, START.work))
    unreachable = [row for row in TABLE if (row[0], row[1]) not in pairs]
    assert not unreachable
    assert pairs == set(STATES)


def test_no_pair_event_or_kind_of_work_is_left_out() -> None:
    assert len(ROWS) == len(TABLE)
    assert {event for _, _, event in ROWS} == set(Transition)
    assert {work for _, work in STATES} == set(WorkState)
    assert {future for future, _ in STATES} == set(FutureState)


def test_a_settled_future_never_changes() -> None:
    changed = [row for row in TABLE if row[0] is not FutureState.PENDING and row[3] is not row[0]]
    assert not changed


def test_final_states_are_final_and_reachable() -> None:
    for pair in STATES:
        if over(pair):
            assert not after(pair)
        else:
            assert any(over(to) for to in reachable(pair))


@all_states
def test_every_pending_future_can_be_cancelled(pair: Pair) -> None:
    future, work = pair
    if future is FutureState.PENDING:
        assert ROWS[future, work, Transition.CANCEL][0] is FutureState.CANCELLED


@all_states
def test_whatever_a_backend_has_can_end_and_can_be_left_behind(pair: Pair) -> None:
    future, work = pair
    if work not in WITH_A_BACKEND:
        return
    assert ROWS[future, work, Transition.ABANDON][1] is WorkState.LOST
    if pair == (
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


def _call(*, service: bool) -> Any:
    return SimpleNamespace(task=SimpleNamespace(settings=Settings(service=service)))


@all_states
def test_every_pair_has_a_canonical_state(pair: Pair) -> None:
    future, work = pair
    record = object.__new__(TaskRecord)
    record.state = STATES[pair]
    service = work is WorkState.SERVING
    record.call = _call(service=service)
    state = record.public_state()
    assert isinstance(state, TasksMainStates)
    settled = {
        FutureState.FAILED: TasksMainStates.FAILED,
        FutureState.CANCELLED: TasksMainStates.CANCELED,
    }
    if future in settled:
        assert state is settled[future]
    if pair == (FutureState.DONE, WorkState.CANCELING):
        assert state is TasksMainStates.DONE
        record.call = _call(service=True)
        assert record.public_state() is TasksMainStates.RUNNING
    if work is WorkState.SERVING:
        assert state is TasksMainStates.RUNNING
    if future is FutureState.PENDING:
        assert state not in (TasksMainStates.FAILED, TasksMainStates.CANCELED)


class TableMachine(RuleBasedStateMachine):
    """A task under any events in any order: the rows, and nothing but the rows, move it."""

    def __init__(self) -> None:
        super().__init__()
        self.state = START
        self.settled: FutureState | None = None
        self.was_over = False

    @rule(event=st.sampled_from(Transition))
    def happens(self, event: Transition) -> None:
        expected = ROWS.get((self.state.future, self.state.work, event))
        after = self.state.after.get(event)
        assert expected == (None if after is None else (after.future, after.work))
        if after is not None:
            assert not self.was_over
            self.state = after

    @rule(data=st.data())
    def goes_on(self, data: st.DataObject) -> None:
        """An event that has a row: without these most runs would end early."""
        events = sorted(self.state.after)
        if events:
            self.happens(data.draw(st.sampled_from(events)))

    @invariant()
    def settles_once(self) -> None:
        future = self.state.future
        if self.settled is not None:
            assert future is self.settled
        elif future is not FutureState.PENDING:
            self.settled = future
        self.was_over = over((future, self.state.work))


TestTableMachine = TableMachine.TestCase
TestTableMachine.settings = settings(max_examples=200, stateful_step_count=30)
