"""`rhapsody status`: shows the tasks of a run that are running, are waiting or have failed."""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rhapsody.cli.lookup import LISTED, open_record, readable, run_json
from rhapsody.cli.output import (
    DONE,
    flush_stdout,
    say,
    say_json,
    say_lines,
    shortened,
    styled,
    table,
    terminal_width,
)
from rhapsody.history.values import (
    OUTCOMES,
    RUN_HELP,
    call_of,
    clock,
    counts_of,
    counts_text,
    duration,
    may_run,
    printable,
    program_of,
    where,
)
from rhapsody.sdk.runs import jobs_left

if TYPE_CHECKING:
    from rhapsody.history.reader import RecordReader, RunHistory, TaskRun


POLL = 1.0
"""Seconds between two checks of the record with `--watch`."""

SUMMARIZED = 3
"""Maximum number of names of the tasks for which others wait, and of uids of failures alike."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("run", nargs="?", metavar="RUN", help=RUN_HELP)
    text = "show the status until the run ends"
    parser.add_argument("-w", "--watch", action="store_true", help=text)
    parser.add_argument("--all", action="store_true", help="list all tasks")
    text = "print JSON; with --watch, one line for each change"
    parser.add_argument("--json", action="store_true", help=text)


def run(arguments: argparse.Namespace) -> int:
    """Print the status of a run, with `--watch` until it ends.

    Returns:
        The exit code.
    """
    reader, history = open_record(arguments.run)
    if arguments.watch and arguments.json:
        for history in _changes(reader):
            say(json.dumps(Status.of(history).json()))
            flush_stdout()
        return DONE
    if arguments.watch:
        history = _watch(reader, arguments.all)
    status = Status.of(history)
    if arguments.json:
        say_json(status.json())
    else:
        say_lines(status.lines(arguments.all))
    return DONE


# Following a run.


def _changes(reader: RecordReader, *, always: bool = False) -> Iterator[RunHistory]:
    """Yield the history at first, after each change, and after the end of the run.

    Args:
        reader: The reader of the run's record.
        always: True to yield the history every `POLL` seconds, even without a change.
    """
    history = reader.history()
    yield history
    while may_run(history.run):
        time.sleep(POLL)
        with readable(reader.path):
            changed = reader.update()
        history = reader.history()
        if changed or always or not may_run(history.run):
            yield history


def _watch(reader: RecordReader, everything: bool) -> RunHistory:
    """Show the status until the run ends: in place on a terminal, otherwise one line per change.

    Returns:
        The history at the end.
    """
    if terminal_width() is None:
        for history in _changes(reader):
            say(f"{time.strftime('%H:%M:%S')}  {counts_text(counts_of(history))}")
            flush_stdout()
        return history
    from rich.live import Live

    with Live(screen=True, auto_refresh=False) as live:
        for history in _changes(reader, always=True):
            live.update(styled(Status.of(history).lines(everything)), refresh=True)
    return history


# The status of a run.


@dataclass(frozen=True, slots=True)
class WaitReason:
    """Reason why a task is waiting.

    Attributes:
        reason: `"dependencies"`; `"resources"`: it was submitted to the backend; `"retry"`: an
            attempt has failed and the next one has not been submitted; or `"engine"`: it was not
            submitted, because of a limit, or because it is being prepared.
        tasks: The dependencies that have not ended.
        backend: The backend to which the task was submitted.
        since: The time at which this wait began.
        detail: The batch system's reason for which the task's job waits, if the backend reports it.
    """

    reason: str
    tasks: tuple[TaskRun, ...] = ()
    backend: str | None = None
    since: float | None = None
    detail: str | None = None

    @classmethod
    def of(cls, task: TaskRun, history: RunHistory) -> WaitReason:
        """Return the reason why a task is waiting."""
        last = task.last
        if last is not None and last.retried:
            return cls("retry", since=last.ended)
        known = (history.tasks.get(key) for key in task.dependencies)
        before = [each for each in known if each is not None]
        missing = tuple(each for each in before if not each.ended)
        if missing:  # the backend may manage the dependencies of a submitted task
            return cls("dependencies", missing, since=task.time)
        if last is not None:
            return cls("resources", (), last.backend, last.submitted, last.waits_for)
        ends = (each.last.ended for each in before if each.last is not None)
        return cls("engine", since=max([task.time, *(end for end in ends if end is not None)]))

    @property
    def text(self) -> str:
        """The reason as text."""
        if self.reason == "dependencies" and len(self.tasks) == 1:
            (task,) = self.tasks
            return f"{task.key} {call_of(task)} ({task.outcome})"
        return self.summary

    @property
    def summary(self) -> str:
        """The reason as text, with the names of other tasks instead of their uids."""
        if self.reason == "dependencies":
            counts = Counter(task.name for task in self.tasks)
            named = counts.most_common(SUMMARIZED)
            parts = [f"{count} {printable(name)}" for name, count in named]
            rest = len(self.tasks) - sum(count for _, count in named)
            return ", ".join(parts + [f"{rest} more"] * (rest > 0))
        detail = "" if self.detail is None else f" ({printable(self.detail)})"
        return {
            "resources": f"free resources of {self.backend}{detail}",
            "retry": "its next attempt",
        }.get(self.reason, "its submission")


@dataclass(slots=True)
class Status:
    """Status of a run.

    Attributes:
        history: The history of the run.
        now: The time to which durations extend.
        names: The counts of tasks by name and outcome.
        running: The tasks that are running, in the order of their starts. Blocks are not listed.
        waiting: The tasks that are waiting, with the reasons.
        failed: The tasks that have failed, except those that were skipped.
        fallbacks: The tasks that have failed and whose result is the fallback.
        jobs: The tasks of a run that has ended whose jobs may continue, with the ids of the jobs.
    """

    history: RunHistory
    now: float
    names: dict[str, Counter[str]] = field(default_factory=dict)
    running: list[TaskRun] = field(default_factory=list)
    waiting: list[tuple[TaskRun, WaitReason]] = field(default_factory=list)
    failed: list[TaskRun] = field(default_factory=list)
    fallbacks: list[TaskRun] = field(default_factory=list)
    jobs: list[tuple[TaskRun, str]] = field(default_factory=list)

    @classmethod
    def of(cls, history: RunHistory) -> Status:
        """Return the status that a history shows."""
        status = cls(history, time.time())
        for task in history.tasks.values():
            outcome = task.outcome
            name = f"{task.name} (block)" if task.kind == "block" else task.name or task.key
            counts = status.names.setdefault(name, Counter())
            counts[outcome] += 1
            if outcome == "failed":
                status.failed.append(task)
            elif task.fallback:
                status.fallbacks.append(task)
            elif outcome == "running" and task.kind != "block":
                status.running.append(task)
            elif outcome == "waiting":
                status.waiting.append((task, WaitReason.of(task, history)))
        status.running.sort(key=_started)
        left = {} if may_run(history.run) else jobs_left(history.run.path.parent)
        for task in history.tasks.values() if left else ():
            job = left.get(f"{task.engine}.{task.uid}")
            # A signal cancels tasks, but a backend may have left their jobs running.
            if job is not None and task.outcome not in ("done", "failed"):
                status.jobs.append((task, job))
        return status

    def json(self) -> dict[str, Any]:
        """Return the status as JSON."""
        return {
            "run": {
                **run_json(self.history.run),
                "counts": counts_of(self.history),
                "held_back": any(engine.held_back for engine in self.history.engines.values()),
            },
            "names": [
                {"name": name, **{outcome: counts[outcome] for outcome in OUTCOMES}}
                for name, counts in self.names.items()
            ],
            "running": [
                {
                    **_task(task),
                    "attempt": task.attempts[-1].number,
                    "backend": task.attempts[-1].backend,
                    "worker": task.attempts[-1].worker,
                    "started": task.attempts[-1].started,
                }
                for task in self.running
            ],
            "waiting": [
                {
                    **_task(task),
                    "reason": waiting.reason,
                    "tasks": [each.key for each in waiting.tasks],
                    "backend": waiting.backend,
                    "since": waiting.since,
                    "detail": waiting.detail,
                }
                for task, waiting in self.waiting
            ],
            "failed": [{**_task(task), "error": _error(task)} for task in self.failed],
            "fallbacks": [{**_task(task), "error": _error(task)} for task in self.fallbacks],
            "jobs": [{**_task(task), "job": job} for task, job in self.jobs],
        }

    def lines(self, everything: bool) -> list[str]:
        """Return the status as lines of text.

        Args:
            everything: True to list all tasks.
        """
        limit = None if everything else LISTED
        lines = [*self._title(), *self._names(limit)]
        if self.running:
            lines += ["", f"{self._word('running', 'running at the end')} ({len(self.running)}):"]
            lines += self._running(limit)
        if self.waiting:
            lines += ["", f"{self._word('waiting', 'not started')} ({len(self.waiting)}):"]
            lines += self._waiting(limit)
        if self.jobs:
            lines += ["", f"jobs that may continue ({len(self.jobs)}):", *self._jobs(limit)]
        if self.fallbacks:
            lines += ["", f"done by fallback ({len(self.fallbacks)}) after:"]
            lines += self._failed(self.fallbacks, limit)
        if self.failed:
            lines += ["", f"failed ({len(self.failed)}):", *self._failed(self.failed, limit)]
            run, key = self.history.run, self.failed[0].key
            lines += ["", f"details: rhapsody show {run.name} {key}"]
        return lines

    def _word(self, active: str, ended: str) -> str:
        return active if may_run(self.history.run) else ended

    def _title(self) -> list[str]:
        run, counts = self.history.run, counts_of(self.history)
        backends = ", ".join(map(str, run.backends)) or "no backend"
        place = f"process {run.pid} on {run.host}, {backends}"
        if run.outcome == "unknown" and may_run(run):
            how = f"may be running on {run.host}"
        else:
            how = "ended without a record of its end" if run.outcome == "unknown" else run.outcome
        if may_run(run) and run.started is not None:
            how += f" for {duration(max(0.0, self.now - run.started))}"
        elif run.seconds is not None:
            how += f" in {duration(run.seconds)}"
        if run.exit_code:
            how += f", exit code {run.exit_code}"
        return [
            f"{program_of(run)}, run {run.name}",
            f"{how}: {counts_text(counts)}",
            f"started {clock(run.started)}, {place}",
        ]

    def _names(self, limit: int | None) -> list[str]:
        """Return the table of counts by name; names with active or failed tasks are first.

        Outcomes that do not occur have a column if they are expected.
        """
        if not self.names:
            return []
        always = ["done", "failed"]
        if may_run(self.history.run):
            always += ["waiting", "running"]
        used = [
            outcome
            for outcome in OUTCOMES
            if outcome in always or any(counts[outcome] for counts in self.names.values())
        ]
        names = list(self.names.items())
        if limit is not None and len(names) > limit:
            names.sort(key=lambda item: not (item[1]["running"] or item[1]["failed"]))
        rows = [(name, *(str(counts[each]) for each in used)) for name, counts in names[:limit]]
        header = ("NAME", *(outcome.upper() for outcome in used))
        lines = ["", *table(header, rows, numbers=header[1:], flexible=("NAME",))]
        return lines + _more(len(names), limit)

    def _running(self, limit: int | None) -> list[str]:
        active = may_run(self.history.run)
        rows = []
        for task in self.running[:limit]:
            last, started = task.attempts[-1], _started(task)
            took = duration(max(0.0, self.now - started)) if active else "-"
            rows.append((task.key, clock(started), took, where(last), call_of(task)))
        header = ("TASK", "SINCE", "FOR", "ON", "CALL")
        lines = table(header, rows, numbers=("FOR",), flexible=("CALL", "ON", "TASK"))
        return lines + _more(len(self.running), limit)

    def _waiting(self, limit: int | None) -> list[str]:
        """Return a table of waiting tasks; if there are many, by name and reason."""
        if limit is None or len(self.waiting) <= limit:
            rows = [
                (task.key, clock(waiting.since), call_of(task), waiting.text)
                for task, waiting in self.waiting
            ]
            header = ("TASK", "SINCE", "CALL", "WAITS FOR")
            return table(header, rows, flexible=("CALL", "WAITS FOR", "TASK"))
        groups: dict[tuple[str | None, ...], list[WaitReason]] = {}
        for task, waiting in self.waiting:
            key = (task.name, waiting.reason, waiting.backend, waiting.detail)
            groups.setdefault(key, []).append(waiting)
        rows = []
        for (name, *_), found in list(groups.items())[:limit]:
            since = min((each.since for each in found if each.since is not None), default=None)
            every = {task.key: task for each in found for task in each.tasks}
            reason = replace(found[0], tasks=tuple(every.values())).summary
            rows.append((str(len(found)), str(name), clock(since), reason))
        header = ("COUNT", "NAME", "SINCE", "WAITS FOR")
        lines = table(header, rows, numbers=("COUNT",), flexible=("NAME", "WAITS FOR"))
        return lines + _more(len(groups), limit)

    def _jobs(self, limit: int | None) -> list[str]:
        rows = [(task.key, job, call_of(task)) for task, job in self.jobs[:limit]]
        lines = table(("TASK", "JOB", "CALL"), rows, flexible=("CALL", "TASK"))
        hint = "the next run of the program takes over their results"
        return [*lines, *_more(len(self.jobs), limit), hint]

    def _failed(self, tasks: Iterable[TaskRun], limit: int | None) -> list[str]:
        """Return lines about tasks that failed; of many, one entry for failures alike."""
        from rhapsody.history.statistics import failure_key

        width = terminal_width()
        groups: dict[Any, list[TaskRun]] = {}
        for task in tasks:
            groups.setdefault(task.key if limit is None else failure_key(task), []).append(task)
        lines = []
        for first, *others in list(groups.values())[:limit]:
            found = [f"{first.key}  {call_of(first)}", *(f"  {line}" for line in _ends(first))]
            if others:
                keys = ", ".join(task.key for task in others[:SUMMARIZED])
                more = ", ..." if len(others) > SUMMARIZED else ""
                found.append(f"  and {len(others)} more like this: {keys}{more}")
            lines += [shortened(line, width) for line in found]
        return lines + _more(len(groups), limit)


def _started(task: TaskRun) -> float:
    return task.attempts[-1].started or 0.0


def _more(count: int, limit: int | None) -> list[str]:
    if limit is None or count <= limit:
        return []
    return [f"and {count - limit} more; --all lists them"]


def _task(task: TaskRun) -> dict[str, Any]:
    return {"task": task.key, "name": task.name, "call": task.call}


def _error(task: TaskRun) -> dict[str, str] | None:
    error = task.attempts[-1].error
    return None if error is None else {"type": error.kind, "message": error.message}


def _ends(task: TaskRun) -> list[str]:
    """Return the first and the last line of a task's error.

    The last line of the error of an executable is a hint, or the end of its standard error.
    """
    error = task.attempts[-1].error
    if error is None:
        return ["no error is recorded"]
    first, *more = str(error).strip().splitlines()
    if not error.hints:
        more += error.stderr.strip().splitlines()
    return [printable(first), *map(printable, more[-1:])]
