"""State tables, compared with the documentation and the installed library."""

from __future__ import annotations

from itertools import pairwise

import pytest

from rhapsody.states import StateMapper, TasksMainStates
from rhapsody_radical import states
from rhapsody_radical.pilot import rp
from rhapsody_radical.states import (
    PILOT_TRANSITIONS,
    TASK_STATES,
    TRANSITIONS,
    Generation,
    PilotState,
    canonical,
    pilot_transition,
    translate,
)

rps = rp.states

# As documented, one row for each step: up to 0.27, 0.28, after the refactoring.
DOCUMENTED = """
NEW | NEW | NEW
UNSCHEDULED | UNSCHEDULED | UMGR_SCHEDULING_PENDING
- | SCHEDULING | UMGR_SCHEDULING
PENDING_INPUT_STAGING | PENDING_INPUT_STAGING | UMGR_STAGING_INPUT_PENDING
STAGING_INPUT | STAGING_INPUT | UMGR_STAGING_INPUT
- | - | AGENT_STAGING_INPUT_PENDING
STAGING_INPUT | STAGING_INPUT | AGENT_STAGING_INPUT
PENDING_EXECUTION | PENDING_EXECUTION | AGENT_SCHEDULING_PENDING
SCHEDULING | ALLOCATING | AGENT_SCHEDULING
- | - | EXECUTING_PENDING
EXECUTING | EXECUTING | EXECUTING
PENDING_OUTPUT_STAGING | PENDING_OUTPUT_STAGING | AGENT_STAGING_OUTPUT_PENDING
STAGING_OUTPUT | STAGING_OUTPUT | AGENT_STAGING_OUTPUT
- | - | UMGR_STAGING_OUTPUT_PENDING
STAGING_OUTPUT | STAGING_OUTPUT | UMGR_STAGING_OUTPUT
DONE | DONE | DONE
CANCELED | CANCELED | CANCELED
FAILED | FAILED | FAILED
"""
ROWS = [
    [None if cell.strip() == "-" else cell.strip() for cell in line.split("|")]
    for line in DOCUMENTED.strip().splitlines()
]
GENERATIONS = list(Generation)
DOCUMENTED_GENERATIONS = GENERATIONS[:3]


@pytest.mark.parametrize("source", range(3))
@pytest.mark.parametrize("target", range(3))
def test_translations_match_the_documented_table(source: int, target: int) -> None:
    for row in ROWS:
        state = row[source]
        if state is None:
            continue
        expected = [
            other[target] for other in ROWS if other[source] == state and other[target] is not None
        ]
        given = translate(state, GENERATIONS[source], GENERATIONS[target])
        assert given == tuple(dict.fromkeys(expected))


def test_a_state_for_two_steps_has_two_translations() -> None:
    assert translate("STAGING_INPUT", "0.27", "refactored") == (
        "UMGR_STAGING_INPUT",
        "AGENT_STAGING_INPUT",
    )


def test_a_step_missing_in_a_generation_has_no_translation() -> None:
    assert translate("AGENT_EXECUTING_PENDING", "current", "0.28") == ()
    assert translate("UMGR_SCHEDULING", "refactored", "0.27") == ()


def test_scheduling_has_another_meaning_in_0_28() -> None:
    assert translate("SCHEDULING", "0.27", "current") == ("AGENT_SCHEDULING",)
    assert translate("SCHEDULING", "0.28", "current") == ("TMGR_SCHEDULING",)
    assert canonical("SCHEDULING", "0.27") is TasksMainStates.SUBMITTED
    assert canonical("SCHEDULING", "0.28") is TasksMainStates.PENDING


def test_current_states_match_the_library() -> None:
    values = {state: value for state, value in rps._task_state_values.items() if state}
    order = TASK_STATES[Generation.CURRENT]
    assert set(order) == set(values)
    assert sorted(order[:-3], key=values.__getitem__) == list(order[:-3])


def test_current_names_differ_from_refactored_ones_as_documented() -> None:
    for refactored, current in zip(
        TASK_STATES[Generation.REFACTORED], TASK_STATES[Generation.CURRENT], strict=True
    ):
        expected = refactored.replace("UMGR_", "TMGR_")
        if refactored.startswith("EXECUTING"):
            expected = f"AGENT_{refactored}"
        assert current == expected


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_state_has_a_canonical_state(generation: Generation) -> None:
    order = list(TasksMainStates)
    states_ = TASK_STATES[generation]
    mains = [canonical(state, generation) for state in states_]
    assert [order.index(main) for main in mains[:-3]] == sorted(
        order.index(main) for main in mains[:-3]
    )
    assert mains[-3:] == ["DONE", "CANCELED", "FAILED"]
    assert "RUNNING" in mains


def test_unknown_states_and_generations_are_named_in_the_error() -> None:
    with pytest.raises(ValueError, match=r"no task state 'UNSCHEDULED'.*TMGR_SCHEDULING"):
        canonical("UNSCHEDULED")
    with pytest.raises(ValueError, match=r"unknown generation '0.9'.*'0.27'"):
        translate("NEW", "0.9", "current")


def test_the_backends_states_are_registered() -> None:
    states.register()
    mapper = StateMapper("radical_pilot")
    assert tuple(rps.FINAL) == (mapper.DONE, mapper.FAILED, mapper.CANCELED)
    assert mapper.RUNNING == rps.AGENT_EXECUTING
    for state in TASK_STATES[Generation.CURRENT]:
        assert mapper.to_main_state(state) is canonical(state)


@pytest.mark.parametrize(
    "name", ["AGENT_STAGING_INPUT_PENDING", "AGENT_EXECUTING", "PMGR_ACTIVE_PENDING", "PMGR_ACTIVE"]
)
def test_constants_match_the_library(name: str) -> None:
    assert getattr(states, name) == getattr(rp, name)
    assert set(states.FINAL) == set(rp.FINAL)


# Pilots.


def test_pilot_states_match_the_library() -> None:
    native = {each.native for each in PilotState}
    assert native == {state for state in rps._pilot_state_values if state not in (None, "NEW")}
    assert {each.native for each in PilotState if each.final} == set(rps.FINAL)


def test_regular_transitions_of_a_pilot_are_valid() -> None:
    way = [None, "PENDING_LAUNCH", "LAUNCHING", "PENDING_ACTIVE", "ACTIVE", "DONE"]
    for source, target in pairwise(way):
        assert target is not None
        assert pilot_transition(source, target).target == target


def test_a_pilot_can_fail_or_be_canceled_in_every_state_before_its_end() -> None:
    for state in PilotState:
        if not state.final:
            assert pilot_transition(state, "FAILED").reason
            assert pilot_transition(state.native, "CANCELED").reason
    reasons = {step.reason for step in TRANSITIONS if step.target is PilotState.FAILED}
    assert len(reasons) == 4


def test_invalid_transitions_of_a_pilot_are_rejected() -> None:
    with pytest.raises(ValueError, match="from ACTIVE to LAUNCHING; allowed: CANCELED, DONE"):
        pilot_transition("ACTIVE", "LAUNCHING")
    with pytest.raises(ValueError, match="allowed: CANCELED, FAILED, PMGR_ACTIVE_PENDING"):
        pilot_transition("PMGR_LAUNCHING", "DONE")
    with pytest.raises(ValueError, match="final"):
        pilot_transition("DONE", "FAILED")
    with pytest.raises(ValueError, match="from LAUNCHING to DONE"):
        pilot_transition("LAUNCHING", "DONE")
    with pytest.raises(ValueError, match="no pilot state 'IDLE'"):
        pilot_transition("IDLE", "DONE")


def test_every_pilot_state_can_be_reached() -> None:
    reached: set[PilotState] = set()
    waiting = list(PILOT_TRANSITIONS[None])
    while waiting:
        state = waiting.pop()
        if state not in reached:
            reached.add(state)
            waiting.extend(PILOT_TRANSITIONS[state])
    assert reached == set(PilotState)
    assert PilotState.of("NEW") is None


def test_none_is_not_a_task_state() -> None:
    with pytest.raises(ValueError, match="no task state None"):
        translate(None, "0.27", "current")  # type: ignore[arg-type]
