"""Content of the report: the values that each section shows.

All figures are those of `rhapsody.history`. Runs with more than `LIMIT` attempts are shown as
aggregates, and lists are shortened, so that the page stays small enough for a browser.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rhapsody.history import (
    BLOCKS,
    by_name,
    call_of,
    clock,
    counts_from,
    counts_of,
    counts_text,
    critical_path,
    duration,
    failure_key,
    graph_of,
    lanes,
    last_time,
    may_run,
    most_unused_memory,
    origin,
    resources_text,
    time_shares,
    utilization,
)
from rhapsody_report import charts
from rhapsody_report.layout import drawing

if TYPE_CHECKING:
    from rhapsody.history import (
        Attempt,
        Busy,
        Graph,
        Lane,
        NameStatistics,
        RunHistory,
        Step,
        TaskRun,
        TimeShares,
    )
    from rhapsody.plugins import NodeSample

LIMIT = 20_000
"""Maximum number of attempts, and of nodes or arrows of a full graph, that are drawn one by one."""

LISTED = 200
"""Maximum number of rows of a table."""

DRAWN = 150
"""Maximum number of groups, and of arrows between them, in the drawing of the graph."""

NAMED = 20
"""Maximum number of groups of tasks that a cell of a table names."""

GROUPS = 10
"""Maximum number of groups of failures that are shown in full."""

EXAMPLES = 3
"""Maximum number of failures of a group that are shown in full."""

MAX_TEXT = 4000
"""Maximum number of characters of an error or of an output; the end is shown."""

PARTS = 200
"""Number of parts of the run in the chart of the utilization."""

ROWS = 20
"""Number of rows in the table of the utilization."""


def contents(history: RunHistory, now: float | None) -> dict[str, Any]:
    """Return the values that the templates of the sections show, by name.

    Args:
        history: The content of the run's record.
        now: The time until which unfinished attempts have run, or `None` for the last time in the
            record.
    """
    run = history.run
    counts = counts_of(history) if run.ended is None else counts_from(run.stats)
    statistics = sorted(by_name(history), key=_total, reverse=True)
    until = last_time(history) if now is None else now
    end = max(1.0, (until - origin(history)) * 1e6)
    found = lanes(history, now)
    attempts = sum(len(lane.slices) for lane in found)
    path = critical_path(history, now)
    graph = graph_of(history)
    shares = time_shares(history, now)
    return {
        "history": history,
        "run": run,
        "now": now,
        "counts": counts,
        "counts_text": counts_text(counts),
        "seconds": None if run.started is None else max(0.0, until - run.started),
        "notices": list(_notices(history, until, attempts)),
        "statistics": statistics,
        "failures": failure_groups(history),
        "timeline": _timeline(found, end, attempts, path, active=may_run(run)),
        "load": _load(history, end),
        "utilization": _utilization(history, found, end),
        "path": _path(path, end),
        "shares": shares,
        "limited_by": _limited_by(history, shares),
        "durations": charts.durations(statistics),
        "resources": _resources(history, statistics),
        "graph": _graph(history, graph),
        "listed": LISTED,
        "shown": GROUPS,
        "colors": charts.COLORS,
    }


def _total(each: NameStatistics) -> float:
    """Return the sum of durations; blocks, which contain other tasks, are sorted last."""
    return -1.0 if each.kind == "block" or each.durations is None else each.durations.total


def _notices(history: RunHistory, until: float, attempts: int) -> Iterator[str]:
    """Yield notes on a report that is incomplete or shows aggregates.

    Args:
        history: The content of the run's record.
        until: The time at which the report shows a run in progress.
        attempts: The number of attempts.
    """
    run = history.run
    if may_run(run):
        yield (
            f"The run is in progress: this page shows its state at {clock(until, day=True)}."
            if run.outcome == "running"
            else f"The run may be in progress on {run.host}; its record has no end yet."
        )
    elif run.outcome == "killed":
        yield (
            "The process of the run was killed. The report shows what was recorded until then; "
            "tasks that had not ended are shown as unfinished."
        )
    elif run.outcome == "unknown":
        yield "The record has no end, so the outcome of the run is unknown."
    if history.problems:
        count = len(history.problems)
        yield (
            f"The record is damaged: {count} {'entry is' if count == 1 else 'entries are'} not "
            "part of this report. The section Environment lists them."
        )
    if attempts > LIMIT:
        yield (
            f"The run has {attempts:,} attempts. More than {LIMIT:,} are not shown one by one: the "
            "charts show aggregates."
        )


# Failures.


@dataclass(slots=True)
class FailureRow:
    """Tasks that failed alike, as `rhapsody status` groups them.

    Attributes:
        name: The name of the tasks.
        kind: The type of the error, or the exit code.
        text: The first line of the error, if it is the same for all tasks.
        tasks: The tasks.
        skipped: The number of tasks that did not run because these failed.
        fallback: True if the results of the tasks are their fallbacks.
    """

    name: str
    kind: str
    text: str | None
    tasks: list[TaskRun] = field(default_factory=list)
    skipped: int = 0
    fallback: bool = False

    @property
    def examples(self) -> list[FailureExample]:
        """The first failures in full."""
        return [FailureExample(task, task.attempts[-1]) for task in self.tasks[:EXAMPLES]]

    @property
    def others(self) -> list[str]:
        """The keys of the next failures."""
        return [task.key for task in self.tasks[EXAMPLES : EXAMPLES + LISTED]]


@dataclass(frozen=True, slots=True)
class FailureExample:
    """Failed task.

    Attributes:
        task: The task.
        attempt: Its last attempt.
    """

    task: TaskRun
    attempt: Attempt

    @property
    def message(self) -> str:
        """The error."""
        error = self.attempt.error
        return "no error is recorded" if error is None else tail(str(error))

    @property
    def outputs(self) -> dict[str, str]:
        """The end of the output streams, by title."""
        error, stderr = self.attempt.error, self.attempt.stderr
        if not stderr and error is not None:
            stderr = error.stderr
        found = {"standard output": self.attempt.stdout, "standard error": stderr}
        return {title: tail(text) for title, text in found.items() if text and text.strip()}


def tail(text: str) -> str:
    """Return a text, or the end of a long text."""
    text = text.rstrip()
    return text if len(text) <= MAX_TEXT else f"...{text[-MAX_TEXT:]}"


def failure_groups(history: RunHistory) -> list[FailureRow]:
    """Return the groups of failures; those that caused the most skipped tasks are first."""
    groups: dict[tuple[object, ...], FailureRow] = {}
    group_of: dict[tuple[str, str], FailureRow] = {}
    skipped: list[TaskRun] = []
    for task in history.tasks.values():
        outcome = task.outcome
        if outcome == "skipped":
            skipped.append(task)
        if outcome != "failed" and not task.fallback:
            continue
        error, code = task.attempts[-1].error, task.attempts[-1].exit_code
        kind = f"exit code {code}" if code else "unknown error" if error is None else error.kind
        text = "" if error is None else (error.message.strip().splitlines() or [""])[0]
        key = (task.fallback, *failure_key(task))
        new = FailureRow(task.name, kind, text, fallback=task.fallback)
        group = groups.setdefault(key, new)
        group.tasks.append(task)
        if group.text != text:
            group.text = None
        group_of[task.engine, task.uid] = group
    for task in skipped:
        error = task.attempts[-1].error
        causes = () if error is None else error.caused_by
        found = (group_of.get((task.engine, uid)) for uid in causes)
        for group in {id(each): each for each in found if each is not None}.values():
            group.skipped += 1
    return sorted(groups.values(), key=lambda each: (-each.skipped, -len(each.tasks)))


# Timeline and utilization.


def _timeline(
    found: list[Lane], end: float, attempts: int, path: list[Step], *, active: bool
) -> dict[str, Any]:
    critical = {step.task.key for step in path}
    aggregated = attempts > LIMIT
    if aggregated:
        chart = charts.timeline_aggregated(found, end)
    else:
        chart = charts.timeline(found, end, critical, active)
    rows = []
    for lane in found[:LISTED]:
        busy = sum(each.end - each.start for each in lane.slices)
        rows.append(
            {
                "group": lane.group,
                "name": lane.name,
                "attempts": len(lane.slices),
                "failed": sum(
                    str(each.attempt.state) == "FAILED" or each.attempt.fallback
                    for each in lane.slices
                ),
                "busy": busy / 1e6,
                "share": busy / end,
            }
        )
    slots = [lane for lane in found if not lane.group.startswith(BLOCKS)]
    return {
        "chart": chart,
        "rows": rows,
        "lanes": len(found),
        "several": len(found) > charts.CELLS,
        "slots": len(slots),
        "workers": len({(lane.group, _SLOT.sub("", lane.name)) for lane in slots}),
        "attempts": attempts,
        "aggregated": aggregated,
    }


def _load(history: RunHistory, end: float) -> dict[str, Any]:
    """Return the load of the nodes: the chart, and the values of each node for the table."""
    nodes: dict[str, list[NodeSample]] = {}
    for sample in history.nodes:
        nodes.setdefault(sample.node, []).append(sample)
    rows = []
    for name, samples in list(nodes.items())[:LISTED]:
        seconds = sum(each.seconds for each in samples) or 1.0
        mean = {
            field: sum(getattr(each, field) * each.seconds for each in samples) / seconds
            for field in ("cpu", "read", "written", "received", "sent")
        }
        peak = max(samples, key=lambda each: each.memory * each.memory_size)
        rows.append(
            {**mean, "node": name, "most": max(each.cpu for each in samples), "memory": peak.memory,
             "size": peak.memory_size}
        )  # fmt: skip
    return {
        "chart": charts.load(history.nodes, origin(history), end),
        "rows": rows,
        "nodes": len(nodes),
        "several": len(nodes) > charts.MAX_NAMES,
    }


_SLOT = re.compile(r" \(\d+\)$")


def _utilization(history: RunHistory, found: list[Lane], end: float) -> dict[str, Any]:
    workers = [
        lane
        for lane in found
        if not (lane.group.startswith(BLOCKS) or all(each.task.is_service for each in lane.slices))
    ]
    parts = utilization(workers, end, PARTS)
    attempts = [each.attempts for each in parts]
    known = _known_cores(history)
    return {
        "chart": charts.utilization(parts, known or None) if workers else None,
        "rows": utilization(workers, end, ROWS),
        "mean": sum(attempts) / len(parts),
        "max": max(attempts),
        "lanes": len(workers),
        "share": _share(parts, len(workers), known),
        "cores": known or None,
    }


def _known_cores(history: RunHistory) -> float | None:
    """Return the number of cores of the only backend, if it is known."""
    cores = [backend.cores for engine in history.engines.values() for backend in engine.backends]
    return cores[0] if len(cores) == 1 else None


def _share(parts: Sequence[Busy], slots: int, cores: float | None) -> float | None:
    """Return the share of the backend's cores in use or, if they are unknown, of its slots."""
    if not slots:
        return None
    if cores:
        return sum(each.cores for each in parts) / len(parts) / cores
    return sum(each.attempts for each in parts) / len(parts) / slots


# Critical path.


MOST = 0.75
"""Share of the duration of a run from which a lower bound of it is its limit."""


def _limited_by(history: RunHistory, found: TimeShares | None) -> str | None:
    """Return what determined the duration of a run that has ended, as text."""
    if found is None or history.run.ended is None or not found.total:
        return None
    cores = _known_cores(history)
    bound = found.core_seconds / cores if cores else 0.0
    if bound >= MOST * found.total and bound > found.chain:
        return (
            f"cores: the tasks need at least {duration(bound)} on {cores:g} "
            f"core{'s' * (cores != 1)}, and {duration(found.chain)} with any number"
        )
    if found.chain >= MOST * found.total:
        return (
            f"dependencies: the longest chain of tasks runs for {duration(found.chain)}, with any "
            "number of cores"
        )
    causes = {
        "waiting for a core, a worker or a batch system": found.queued,
        "limits and other delays before the submission": found.held,
        "the program, while no task was ready": found.program,
    }
    cause = max(causes, key=causes.__getitem__)
    return (
        f"{cause}, {duration(causes[cause])} of {duration(found.total)}; the tasks need at least "
        f"{duration(max(bound, found.chain))}"
    )


def _path(path: list[Step], end: float) -> dict[str, Any]:
    total = sum(step.seconds for step in path)
    longest = sorted(path, key=lambda step: step.seconds, reverse=True)[:LISTED]
    keys = {step.task.key for step in longest}
    listed = [step for step in path if step.task.key in keys]
    return {
        "chart": charts.critical_path(path),
        "steps": [(step, call_of(step.task)) for step in listed],
        "count": len(path),
        "total": total,
        "waited": sum(step.waited for step in path),
        "share": total / (end / 1e6),
        "rest": total - sum(step.seconds for step in listed),
    }


# Resources.


def _resources(history: RunHistory, statistics: Sequence[NameStatistics]) -> dict[str, Any]:
    requested: dict[tuple[str, bool], str] = {}
    for task in history.tasks.values():
        if task.resources:
            key = task.name, task.kind == "block"
            requested.setdefault(key, resources_text(task.resources))
    rows = [
        (each, requested.get((each.name, each.kind == "block"), ""))
        for each in statistics
        if each.kind != "block"
    ]
    measured = any(
        each.cpu_seconds is not None or each.peak_memory is not None for each in statistics
    )
    return {
        "rows": rows if measured or requested else [],
        "chart": charts.memory(statistics),
        "worst": most_unused_memory(statistics),
        "measured": measured,
        "memory": any(
            each.peak_memory is not None or each.requested_memory is not None for each, _ in rows
        ),
        "requested": bool(requested),
    }


# Graph.


def _graph(history: RunHistory, graph: Graph) -> dict[str, Any]:
    tasks = len(history.tasks)
    arrows = len(graph.arrows) + len(graph.members)
    full = graph_of(history, full=True) if 0 < tasks <= LIMIT else None
    if full is not None and len(full.arrows) + len(full.members) > 2 * LIMIT:
        full = None
    needs: list[list[str]] = [[] for _ in graph.nodes]
    for (source, target), count in graph.arrows.items():
        needs[target].append(f"{graph.nodes[source].name} ({count})")
    for source, target in graph.members:
        needs[target].append(f"{graph.nodes[source].name} (inside)")
    return {
        "nodes": graph.nodes,
        "rows": [(node, _listed(found)) for node, found in zip(graph.nodes, needs, strict=True)],
        "drawing": drawing(graph)
        if graph.nodes and max(len(graph.nodes), arrows) <= DRAWN
        else None,
        "full": None if full is None else charts.graph(full),
        "blocks": any(node.block for node in graph.nodes),
        "tasks": tasks,
    }


def _listed(names: Sequence[str]) -> str:
    """Return names as text, or the first of many names."""
    more = len(names) - NAMED
    return ", ".join([*names[:NAMED], *([f"and {more} more"] if more > 0 else [])])
