"""Graph of a run: its tasks, or groups of tasks with the same name, and their dependencies."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from rhapsody.history.reader import RunHistory, TaskRun

OUTCOMES = (
    "failed",
    "skipped",
    "canceled",
    "unfinished",
    "running",
    "waiting",
    "done",
    "reused",
)
"""Outcomes of tasks. A group has the color of the first one that occurs."""


@dataclass(frozen=True, slots=True)
class Node:
    """Task or group of tasks.

    Attributes:
        name: The name of the tasks.
        key: The key of a single task; `None` for a group.
        block: True for blocks.
        counts: The number of tasks by outcome, in the order of `OUTCOMES`.
    """

    name: str
    key: str | None
    block: bool
    counts: dict[str, int]

    @property
    def outcome(self) -> str:
        """The outcome that determines the color."""
        return next(iter(self.counts))


@dataclass(frozen=True, slots=True)
class Graph:
    """Graph of a run.

    Attributes:
        nodes: The nodes, in the order of the calls.
        arrows: The number of dependencies by the indices of two nodes: the second one waits for the
            first one.
        members: The same for tasks in a block and the block, which ends after them.
    """

    nodes: list[Node] = field(default_factory=list)
    arrows: Counter[tuple[int, int]] = field(default_factory=Counter)
    members: Counter[tuple[int, int]] = field(default_factory=Counter)


def outcome_of(task: TaskRun, *, running: bool) -> str:
    """Return the outcome of a task.

    Args:
        task: The task.
        running: True if the run is in progress.
    """
    outcome = task.outcome
    if not running and outcome in ("running", "waiting"):
        return "unfinished"
    return "reused" if outcome == "done" and task.reused else outcome


def graph_of(history: RunHistory, *, full: bool = False) -> Graph:
    """Return the graph of a run.

    Args:
        history: The history.
        full: True for a node per task, False for a node per name. Blocks have separate nodes.
    """
    running, graph = history.run.outcome == "running", Graph()
    index: dict[object, int] = {}  # of the node of a group
    node_of: dict[str, int] = {}  # of the node of a task, by its key
    counts: list[Counter[str]] = []
    first: list[TaskRun] = []  # task of each node
    for key, task in history.tasks.items():
        group = key if full else (task.name, task.kind == "block")
        node = node_of[key] = index.setdefault(group, len(index))
        if node == len(first):
            first.append(task)
            counts.append(Counter())
        counts[node][outcome_of(task, running=running)] += 1
    for task, found in zip(first, counts, strict=True):
        ordered = {outcome: found[outcome] for outcome in OUTCOMES if found[outcome]}
        single = task.key if full else None
        graph.nodes.append(Node(task.name or "unnamed", single, task.kind == "block", ordered))
    for task in history.tasks.values():
        node = node_of[task.key]
        for before in task.dependencies:
            if before in node_of:
                graph.arrows[node_of[before], node] += 1
        if task.block in node_of:
            graph.members[node, node_of[task.block]] += 1
    return graph
