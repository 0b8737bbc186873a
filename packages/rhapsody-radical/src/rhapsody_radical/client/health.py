"""Health of pilots and RAPTOR workers: one rule that detects when no tasks are started any more.

RADICAL-Pilot does not report that one of its components has ended, that a scheduler has hung since
it was forked, or that a message was lost. The common effect is that tasks do not start although
cores are free, which can be detected without knowledge of RADICAL-Pilot's components. The rule
considers only tasks that fit regardless of the nodes on which other tasks run.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rhapsody_radical.descriptions import cores_taken
from rhapsody_radical.states import AGENT_EXECUTING, TASK_STATES, Generation

STALL_TIMEOUT = 180.0
"""Seconds after which a pilot or RAPTOR master is ended if it starts no task although one fits."""

PLACED = "AGENT_EXECUTING_PENDING"
"""State of a task that has its cores and has not been started."""

_ORDER = TASK_STATES[Generation.CURRENT]
WAITING = frozenset(_ORDER[: _ORDER.index(PLACED)])
"""States of a task that does not have its cores."""

SPECIAL = (
    *("gpus_per_rank", "mem_per_rank", "lfs_per_rank", "ranks_per_node", "slots", "partition"),
    *("tags", "services", "input_staging"),
)
"""Settings with which a task may have to wait although cores are free."""

OWN_ENVIRONMENT = "rp"
"""Name of the agent's own environment, which RAPTOR's masters use.

Tasks in other environments may have to wait until their environment has been created.
"""


class IdleTime:
    """Time for which a pilot or a RAPTOR master has started no task although one fits."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    def moved(self) -> None:
        """Record that a task has started."""
        self._since = time.monotonic()

    def is_stalled(self, waits: bool) -> bool:
        """Return True if a task that fits has waited for too long; called about once a second.

        Args:
            waits: True if a task that fits is waiting now.
        """
        if not waits:
            self.moved()
        return time.monotonic() - self._since > STALL_TIMEOUT


def is_stuck(tasks: Sequence[Any], nodes: Sequence[int]) -> bool:
    """Return True if one of the waiting tasks could start, or already has its cores.

    Args:
        tasks: RADICAL-Pilot's open tasks that share the cores, oldest first.
        nodes: The number of cores of each node.
    """
    if any(task.state == PLACED for task in tasks):
        return True
    running = (task for task in tasks if task.state == AGENT_EXECUTING)
    free = sum(nodes) - sum(cores_taken(task.description) for task in running)
    waiting = (task for task in tasks if task.state in WAITING) if free > 0 else ()
    return any(_fits(task, free, len(nodes)) for task in waiting)


def _fits(task: Any, free: int, nodes: int) -> bool:
    """Return True if a task certainly fits, however the free cores are spread over the nodes."""
    words = task.description
    if words.get("named_env") not in (None, "", OWN_ENVIRONMENT) or any(map(words.get, SPECIAL)):
        return False
    # Each of the other nodes may have one free core less than a rank needs.
    scattered = (nodes - 1) * (int(words.get("cores_per_rank") or 1) - 1)
    return cores_taken(words) + scattered <= free
