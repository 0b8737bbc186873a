"""RADICAL-Pilot's states as data: four generations of task states, and the states of a pilot.

The tables serve programs that read old sessions or use old names, and the backend, whose native
states are the current ones. RADICAL-Pilot is not imported; a test compares the tables with the
installed library's constants.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from operator import attrgetter
from types import MappingProxyType
from typing import NamedTuple

from rhapsody import StateMapper, TasksMainStates

BACKEND = "radical_pilot"

AGENT_STAGING_INPUT_PENDING = "AGENT_STAGING_INPUT_PENDING"
AGENT_EXECUTING = "AGENT_EXECUTING"
PMGR_ACTIVE_PENDING, PMGR_ACTIVE = "PMGR_ACTIVE_PENDING", "PMGR_ACTIVE"
FINAL = ("DONE", "FAILED", "CANCELED")
"""The final states of tasks and pilots."""


class Generation(StrEnum):
    """Generation of RADICAL-Pilot's task states: the names that a range of its versions uses."""

    V0_27 = "0.27"
    """Versions up to 0.27."""
    V0_28 = "0.28"
    """Version 0.28, which added a state for the unit manager's scheduler."""
    REFACTORED = "refactored"
    """The names in RADICAL-Pilot's documentation, such as `UMGR_SCHEDULING`."""
    CURRENT = "current"
    """Version 1 of `radical.pilot`."""


class _StateRow(NamedTuple):
    """One step of a task's life: its name in each generation that has it, and its canonical state.

    Attributes:
        names: The names.
        main: The canonical state.
    """

    names: Mapping[Generation, str]
    main: TasksMainStates


# Up to 0.27, 0.28, refactored, and the canonical state.
_DOCUMENTED = """
NEW NEW NEW PENDING
UNSCHEDULED UNSCHEDULED UMGR_SCHEDULING_PENDING PENDING
- SCHEDULING UMGR_SCHEDULING PENDING
PENDING_INPUT_STAGING PENDING_INPUT_STAGING UMGR_STAGING_INPUT_PENDING PENDING
STAGING_INPUT STAGING_INPUT UMGR_STAGING_INPUT PENDING
- - AGENT_STAGING_INPUT_PENDING SUBMITTED
STAGING_INPUT STAGING_INPUT AGENT_STAGING_INPUT SUBMITTED
PENDING_EXECUTION PENDING_EXECUTION AGENT_SCHEDULING_PENDING SUBMITTED
SCHEDULING ALLOCATING AGENT_SCHEDULING SUBMITTED
- - EXECUTING_PENDING SUBMITTED
EXECUTING EXECUTING EXECUTING RUNNING
PENDING_OUTPUT_STAGING PENDING_OUTPUT_STAGING AGENT_STAGING_OUTPUT_PENDING RUNNING
STAGING_OUTPUT STAGING_OUTPUT AGENT_STAGING_OUTPUT RUNNING
- - UMGR_STAGING_OUTPUT_PENDING RUNNING
STAGING_OUTPUT STAGING_OUTPUT UMGR_STAGING_OUTPUT RUNNING
DONE DONE DONE DONE
CANCELED CANCELED CANCELED CANCELED
FAILED FAILED FAILED FAILED
"""


def _row(line: str) -> _StateRow:
    *names, main = line.split()
    current = re.sub("^UMGR_", "TMGR_", re.sub("^EXECUTING", "AGENT_EXECUTING", names[-1]))
    of_generations = zip(Generation, (*names, current), strict=True)
    return _StateRow(
        {of: name for of, name in of_generations if name != "-"}, TasksMainStates[main]
    )


_ROWS = tuple(map(_row, _DOCUMENTED.strip().splitlines()))

TASK_STATES: Mapping[Generation, tuple[str, ...]] = MappingProxyType(
    {
        of: tuple(dict.fromkeys(row.names[of] for row in _ROWS if of in row.names))
        for of in Generation
    }
)
"""The task states of each generation in the order in which a task passes through them.

The last three are final; a task ends in one of them.
"""


def generation(value: Generation | str) -> Generation:
    """Return the generation that a name refers to.

    Raises:
        ValueError: There is no generation with this name.
    """
    try:
        return Generation(value)
    except ValueError:
        known = ", ".join(repr(str(each)) for each in Generation)
        raise ValueError(
            f"unknown generation {value!r} of RADICAL-Pilot states; use one of {known}"
        ) from None


def _rows(state: str, of: Generation) -> list[_StateRow]:
    rows = [row for row in _ROWS if (of, state) in row.names.items()]
    if not rows:
        known = ", ".join(TASK_STATES[of])
        raise ValueError(
            f"generation {str(of)!r} of RADICAL-Pilot has no task state {state!r}; its states are "
            f"{known}"
        )
    return rows


def translate(state: str, from_: Generation | str, to: Generation | str) -> tuple[str, ...]:
    """Translate a task state between generations of RADICAL-Pilot's states (see `Generation`).

    Args:
        state: A task state.
        from_: The generation to which the state belongs.
        to: The generation into which the state is translated.

    Returns:
        The corresponding states, in the order in which a task passes through them; empty if `to`
        has none.

    Raises:
        ValueError: A generation, or the state in its generation, is unknown.
    """
    of, into = generation(from_), generation(to)
    found = [row.names for row in _rows(state, of)]
    return tuple(dict.fromkeys(names[into] for names in found if into in names))


def canonical(state: str, of: Generation | str = Generation.CURRENT) -> TasksMainStates:
    """Return the canonical state for a task state.

    A state that two components use (`STAGING_INPUT`, by the manager and by the agent) is treated as
    the earlier step.

    Raises:
        ValueError: The generation, or the state in it, is unknown.
    """
    return _rows(state, generation(of))[0].main


def register() -> None:
    """Register the current states as the native states of the backend `radical_pilot`."""
    of: dict[TasksMainStates, list[str]] = {}
    for row in _ROWS:
        of.setdefault(row.main, []).append(row.names[Generation.CURRENT])
    StateMapper.register_backend_tasks_states(
        BACKEND,
        done_state=of[TasksMainStates.DONE],
        failed_state=of[TasksMainStates.FAILED],
        canceled_state=of[TasksMainStates.CANCELED],
        running_state=of[TasksMainStates.RUNNING],
        pending=of[TasksMainStates.PENDING],
        submitted=of[TasksMainStates.SUBMITTED],
    )


# Pilots.


class PilotState(StrEnum):
    """State of a pilot.

    The value is the state's name in RADICAL-Pilot's documentation, and `native` is the name that
    RADICAL-Pilot reports.
    """

    PENDING_LAUNCH = "PENDING_LAUNCH"
    LAUNCHING = "LAUNCHING"
    PENDING_ACTIVE = "PENDING_ACTIVE"
    ACTIVE = "ACTIVE"
    DONE = "DONE"
    FAILED = "FAILED"
    CANCELED = "CANCELED"

    @property
    def native(self) -> str:
        """The name by which RADICAL-Pilot reports the state."""
        return _PILOT_NATIVE.get(self, str(self))

    @property
    def final(self) -> bool:
        """True for a final state."""
        return not PILOT_TRANSITIONS[self]

    @classmethod
    def of(cls, state: str) -> PilotState | None:
        """Return the state with a name, or `None` for `NEW`.

        Both RADICAL-Pilot's documented name and the name that it reports are accepted.

        Raises:
            ValueError: There is no such state.
        """
        if state == "NEW":  # the pilot has not been submitted to the manager
            return None
        for each in cls:
            if state in (str(each), each.native):
                return each
        known = ", ".join(each.native for each in cls)
        raise ValueError(f"RADICAL-Pilot has no pilot state {state!r}; the states are {known}")


_PILOT_NATIVE = {
    PilotState.PENDING_LAUNCH: "PMGR_LAUNCHING_PENDING",
    PilotState.LAUNCHING: "PMGR_LAUNCHING",
    PilotState.PENDING_ACTIVE: "PMGR_ACTIVE_PENDING",
    PilotState.ACTIVE: "PMGR_ACTIVE",
}


class PilotTransition(NamedTuple):
    """Transition between two states of a pilot.

    Attributes:
        source: The state before the transition; `None` for the first transition.
        target: The state after the transition.
        reason: The cause of the transition.
    """

    source: PilotState | None
    target: PilotState
    reason: str


_STEPS = (
    ("NEW", "PENDING_LAUNCH", "submitted to the pilot manager"),
    ("PENDING_LAUNCH", "LAUNCHING", "being submitted to the resource"),
    ("LAUNCHING", "PENDING_ACTIVE", "launched, and waiting to become active"),
    ("PENDING_ACTIVE", "ACTIVE", "started by the batch system"),
    ("ACTIVE", "DONE", "ended normally"),
    ("PENDING_LAUNCH", "FAILED", "failed before it was launched"),
    ("LAUNCHING", "FAILED", "failed while it was being launched"),
    ("PENDING_ACTIVE", "FAILED", "failed to become active"),
    ("ACTIVE", "FAILED", "failed while it was active"),
    ("ACTIVE", "CANCELED", "canceled while it was active"),
    ("PENDING_LAUNCH", "CANCELED", "canceled before it was launched"),
    ("LAUNCHING", "CANCELED", "canceled while it was being launched"),
    ("PENDING_ACTIVE", "CANCELED", "canceled before it was active"),
)

TRANSITIONS: tuple[PilotTransition, ...] = tuple(
    PilotTransition(PilotState.of(a), PilotState(b), why) for a, b, why in _STEPS
)
"""All transitions of a pilot."""

PILOT_TRANSITIONS: Mapping[PilotState | None, frozenset[PilotState]] = MappingProxyType(
    {
        source: frozenset(step.target for step in TRANSITIONS if step.source is source)
        for source in (None, *PilotState)
    }
)
"""The states that may follow each state; for `None`, the first state."""


def pilot_transition(source: PilotState | str | None, target: PilotState | str) -> PilotTransition:
    """Return the transition between two pilot states.

    Accepts the names in RADICAL-Pilot's documentation and the names that RADICAL-Pilot reports. If
    `source` is `None`, `target` must be a pilot's first state.

    Raises:
        ValueError: A state is unknown, or there is no such transition.
    """
    before = None if source is None else PilotState.of(source)
    after = PilotState.of(target)
    for step in TRANSITIONS:
        if step.source is before and step.target is after:
            return step
    words = str if before is None or source == str(before) else attrgetter("native")
    allowed = ", ".join(sorted(map(words, PILOT_TRANSITIONS[before]))) or "none, the state is final"
    raise ValueError(f"a pilot cannot change from {source} to {target}; allowed: {allowed}")
