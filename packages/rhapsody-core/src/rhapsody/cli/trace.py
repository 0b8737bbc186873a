"""`rhapsody trace`: writes the timeline of a run as a trace for Perfetto and Chrome.

The format is the JSON Object Format of the Trace Event Format: a process per backend, a thread per
lane, and a complete event per attempt. Perfetto requires that the events of a thread do not
overlap, and finds the thread of a name by its id alone, so the ids of threads are unique.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rhapsody.cli.lookup import read_record
from rhapsody.cli.output import note
from rhapsody.history.files import new_file
from rhapsody.history.values import RUN_HELP

if TYPE_CHECKING:
    from rhapsody.history.reader import RunHistory
    from rhapsody.history.timeline import Lane, Slice


Event = dict[str, Any]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("run", nargs="?", metavar="RUN", help=RUN_HELP)
    text = "the file; - for standard output (default: RUN.trace.json)"
    parser.add_argument("-o", "--output", metavar="FILE", help=text)
    text = "include an arrow from each task to those that depend on it"
    parser.add_argument("--dependencies", action="store_true", help=text)


def run(arguments: argparse.Namespace) -> None:
    """Write the trace.

    Raises:
        RhapsodyError: The record cannot be read, or the file cannot be written.
    """
    history = read_record(arguments.run)
    pieces = trace(history, dependencies=arguments.dependencies)
    if arguments.output == "-":
        sys.stdout.writelines(pieces)
        return
    path = Path(arguments.output or f"{history.run.name}.trace.json")
    with new_file(path) as new, open(new, "w", encoding="ascii") as file:
        file.writelines(pieces)
    note(f"wrote {path}; open it at https://ui.perfetto.dev")


def trace(history: RunHistory, *, dependencies: bool = False) -> Iterator[str]:
    """Yield the text of a trace, one event per line."""
    from rhapsody.history.timeline import lanes

    run = history.run
    found = lanes(history, time.time() if run.outcome == "running" else None)
    about = {
        "run": run.name,
        "program": os.path.basename(run.program),
        "outcome": run.outcome,
        "host": run.host,
        "started": run.started,
    }
    head = json.dumps({"displayTimeUnit": "ms", "otherData": about})
    yield f'{head[:-1]}, "traceEvents": ['
    separator = "\n"
    for event in _events(history, found, dependencies=dependencies):
        yield separator + json.dumps(event)
        separator = ",\n"
    yield "\n]}\n"


def _events(history: RunHistory, lanes: list[Lane], *, dependencies: bool) -> Iterator[Event]:
    """Yield the events: the names of processes and threads, and the attempts by time."""
    processes = {group: pid for pid, group in enumerate(dict.fromkeys(x.group for x in lanes), 1)}
    threads = [(processes[lane.group], len(processes) + tid) for tid, lane in enumerate(lanes, 1)]
    for group, pid in processes.items():
        yield _metadata("process_name", pid, pid, {"name": group})
        yield _metadata("process_sort_index", pid, pid, {"sort_index": pid})
    for lane, (pid, tid) in zip(lanes, threads, strict=True):
        yield _metadata("thread_name", pid, tid, {"name": lane.name})
        yield _metadata("thread_sort_index", pid, tid, {"sort_index": tid})
    placed = [
        (each, place) for lane, place in zip(lanes, threads, strict=True) for each in lane.slices
    ]
    events = [_complete(each, *place) for each, place in placed]
    for lane, place in zip(lanes, threads, strict=True):
        events += _builds(lane, *place)
    if dependencies:
        events += _arrows(history, placed)
    yield from sorted(events, key=lambda event: event["ts"])  # stable: arrows follow attempts


def _metadata(name: str, pid: int, tid: int, arguments: Event) -> Event:
    return {"ph": "M", "pid": pid, "tid": tid, "ts": 0, "name": name, "args": arguments}


def _complete(each: Slice, pid: int, tid: int) -> Event:
    """Return the event for an attempt. Trace viewers show the arguments of a selected event."""
    task, attempt = each.task, each.attempt
    usage = attempt.usage or {}
    arguments = {
        "uid": task.uid,
        "call": task.call,
        "attempt": attempt.number,
        "state": str(attempt.state),
        "worker": attempt.worker,
        "seconds": attempt.seconds,
        "waited": attempt.waited,
        "exit_code": attempt.exit_code,
        "error": None if attempt.error is None else str(attempt.error),
        **usage,
    }
    return {
        "ph": "X",
        "pid": pid,
        "tid": tid,
        "ts": each.start,
        "dur": each.end - each.start,
        "name": task.name or task.uid,
        "cat": str(attempt.state).lower(),
        "args": {key: value for key, value in arguments.items() if value is not None},
    }


def _builds(lane: Lane, pid: int, tid: int) -> Iterator[Event]:
    """Yield the events for the building of worker values, each before the attempt of a lane."""
    free = 0
    for each in lane.slices:
        built = (each.attempt.usage or {}).get("build_seconds", 0.0)
        begin = max(free, each.start - int(built * 1e6))
        if begin < each.start:
            yield {
                "ph": "X",
                "pid": pid,
                "tid": tid,
                "ts": begin,
                "dur": each.start - begin,
                "name": "build worker values",
                "cat": "building",
                "args": {"uid": each.task.uid},
            }
        free = each.end


def _arrows(
    history: RunHistory, placed: Iterable[tuple[Slice, tuple[int, int]]]
) -> Iterator[Event]:
    """Yield two flow events per dependency: in the last attempt, and in the first one after it.

    Both are inside the events that they connect. Arrows that would point backwards, because clocks
    differ, are omitted.
    """
    first: dict[str, tuple[Slice, tuple[int, int]]] = {}
    last: dict[str, tuple[Slice, tuple[int, int]]] = {}
    for each in sorted(placed, key=lambda each: each[0].start):
        first.setdefault(each[0].task.key, each)
        last[each[0].task.key] = each
    number = 0
    for key, (target, (pid, tid)) in first.items():
        for before in history.tasks[key].dependencies:
            if before not in last or last[before][0].start > target.start:
                continue
            source, (source_pid, source_tid) = last[before]
            number += 1
            shared = {"name": "dependency", "cat": "dependency", "id": number}
            at = min(source.end - 1, target.start)
            yield {"ph": "s", "pid": source_pid, "tid": source_tid, "ts": at, **shared}
            yield {"ph": "f", "bp": "e", "pid": pid, "tid": tid, "ts": target.start, **shared}
