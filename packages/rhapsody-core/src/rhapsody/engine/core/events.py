"""Reports of an engine: events for plugins, and failures that were never awaited."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, repeat
from typing import Any, TypeVar, get_args

from rhapsody._private import is_unseen, mark_seen
from rhapsody.aio import Clock
from rhapsody.engine.core.background import Background
from rhapsody.engine.core.error_messages import failure_in_event, failure_of_future
from rhapsody.engine.core.record import TaskRecord
from rhapsody.engine.core.task_calls import CallRows, described_resources
from rhapsody.engine.functions.task_function import CallKind
from rhapsody.errors import DependencyFailureError, Failure
from rhapsody.failures import FailureGroups
from rhapsody.plugins.manager import EngineHooks
from rhapsody.plugins.specs import AttemptFiles, ObservedEngine, TaskCall, TaskEvent
from rhapsody.states import TasksMainStates
from rhapsody.task import AttemptInfo, TaskDescription, TaskFuture


def accounts(backends: Mapping[str, Any], log: logging.Logger) -> dict[str, Mapping[str, Any]]:
    """Return the backends' reports about the run, by backend name, without the empty ones.

    Args:
        backends: The backends by name.
        log: The logger for errors that backends raise.
    """
    collected: dict[str, Mapping[str, Any]] = {}
    for name, backend in backends.items():
        try:
            collected[name] = getattr(backend, "account", dict)()
        except Exception:  # a fault of this backend must not hide the accounts of the others
            log.exception("backend %r: account() failed", name)
    return {name: account for name, account in collected.items() if account}


_ENDED = frozenset({TasksMainStates.DONE, TasksMainStates.FAILED, TasksMainStates.CANCELED})


class Observation:
    """Collector that passes calls and task events to the plugins in batches, on the loop.

    Until they are passed on, calls and events are stored as rows of values in flat lists. A wide
    fan-out produces tens of thousands of events, and creating an object for each would trigger the
    garbage collector. An event takes 1.2 to 1.5 µs this way (`benchmarks/observer.py`), and took
    3.7 µs as an instance of a frozen dataclass.

    Args:
        hooks: The plugins' hooks.
        engine: The engine object that is passed to hooks.
        background: The source of the clock, and the runner of calls on the loop.

    Attributes:
        when_called: Function that is called for each batch with calls, or `None`.
    """

    def __init__(self, hooks: EngineHooks, engine: ObservedEngine, background: Background) -> None:
        self._hooks = hooks
        self._engine = engine
        self._background = background
        self.use_clock(background.clock)
        self._epoch = 0.0  # the difference between times since the epoch and monotonic times
        self._calls = CallRows()
        self._rows: list[Any] = []
        self.when_called: Callable[[], None] | None = None

    def use_clock(self, clock: Clock) -> None:
        """Use another clock from now on."""
        self._clock = clock
        self._monotonic = clock.monotonic

    def now(self) -> float:
        """Return the time on the engine's clock."""
        return self._monotonic()

    def announce(self, record: TaskRecord, when: float) -> None:
        """Record that a task or block was called at a time on the engine's clock."""
        if not (self._calls or self._rows):
            self._begin()
        self._calls.add(record, self._epoch + when)

    def publish(
        self,
        record: TaskRecord,
        state: TasksMainStates,
        error: BaseException | None = None,
        *,
        retried: bool = False,
        when: float | None = None,
    ) -> None:
        """Record that a task entered a state.

        Args:
            record: The task or block.
            state: The state.
            error: The exception of a failed attempt, also if the fallback replaces it.
            retried: True if another attempt follows.
            when: The time on the engine's clock. Default: now.
        """
        rows, task, description = self._rows, record.call.task, record.attempt.description
        if not (rows or self._calls):
            self._begin()
        label = record.label
        if label is None:
            label = record.future_uid()
        if when is None:
            when = self._monotonic()
        last = _end(record, retried=retried) if state in _ENDED else _NO_END[task.kind]
        rows += (
            label, task.name, record.attempt.number or 1, state, record.native,
            record.submitted_to, self._epoch + when, when,
            description.get("worker"),
            record.call.scope, error,
            description.get("sandbox"),
        )  # fmt: skip
        rows += last
        if error is not None:
            rows[-1] = failure_in_event(record, error)
        record.native = None

    def trace(self, tasks: Sequence[TaskDescription]) -> None:
        """Let the plugins set the trace context of attempts that are about to be submitted."""
        if self._hooks.trace_tasks:
            self.flush()
            for hook in self._hooks.trace_tasks:
                self._hooks.call(hook, engine=self._engine, tasks=tasks)

    def _begin(self) -> None:
        """Begin a batch: read the time since the epoch once, and schedule the delivery."""
        self._epoch = self._clock.time() - self._clock.monotonic()
        self._background.soon(self.flush)

    def flush(self) -> None:
        """Pass the collected calls and events to the plugins."""
        rows, self._rows = self._rows, []
        hooks = self._hooks
        if self._calls and self.when_called is not None:
            self.when_called()
        for calls in _batches(TaskCall, self._calls.take()):
            for hook in hooks.task_calls:
                hooks.call(hook, engine=self._engine, calls=calls)
        for events in _batches(TaskEvent, rows):
            for hook in hooks.task_events:
                hooks.call(hook, engine=self._engine, events=events)


_BATCH = 500

_Item = TypeVar("_Item", TaskCall, TaskEvent)


def _batches(kind: type[_Item], rows: list[Any]) -> Iterator[tuple[_Item, ...]]:
    """Yield the objects for rows, in batches.

    The next batch is created only on request, because many new objects would trigger the garbage
    collector. No Python code runs for each object: `tuple.__new__` does the work of `kind._make`.

    Args:
        kind: The type of the objects.
        rows: The values of all rows, one after another.
    """
    values = zip(*[iter(rows)] * len(kind._fields), strict=True)
    made: Iterator[_Item] = map(tuple.__new__, repeat(kind), values)
    while batch := tuple(islice(made, _BATCH)):
        yield batch


_End = tuple[
    str | None, str | None, CallKind, int | None, Any, bool, AttemptFiles | None,
    Mapping[str, Any] | None, tuple[float, float] | None, Failure | None,
]  # fmt: skip
"""The last fields of an event, from `stdout` to `failure`, which is set later."""

_NO_END: dict[CallKind, _End] = {
    kind: (None, None, kind, None, None, False, None, None, None, None)
    for kind in get_args(CallKind)
}
"""The last fields of an event that does not end an attempt, by kind of task."""


def _end(record: TaskRecord, *, retried: bool) -> _End:
    """Return the last fields of the event for the end of an attempt."""
    task, attempt = record.call.task, record.attempt
    description, outcome = attempt.description, attempt.outcome
    files = resources = None
    if record.call.found is not None or (outcome is not None and task.settings.capture == "files"):
        files = _files(record, outcome)
    if description and (given := description.get("resources")) is not task.settings.resources:
        resources = described_resources(given)
    interval = description.get("interval")
    if outcome is None:
        return None, None, task.kind, None, None, retried, files, resources, interval, None
    captured = task.settings.capture is True
    return (
        outcome.stdout if captured else None,
        outcome.stderr if captured else None,
        task.kind, outcome.exit_code, outcome.usage, retried, files, resources, interval, None,
    )  # fmt: skip


def _files(record: TaskRecord, outcome: AttemptInfo | None) -> AttemptFiles | None:
    """Return the files of an attempt that has ended, or `None` if it has none."""
    outputs: dict[str, str] = {}
    stdout = stderr = None
    if outcome is not None:
        outputs = {name: outcome.files.path_of(name) for name in outcome.files.output_files}
        for name, (path, kind) in record.targets().items():
            if kind == "matches":
                found = outcome.files.matches.get(name, ())
                outputs.update({each: str(path / each) for each in found})
            elif name in outputs:
                outputs[name] = str(path)
        if record.call.task.settings.capture == "files":
            stdout, stderr = outcome.stdout, outcome.stderr
    inputs = record.input_paths()
    if not inputs and record.call.found is not None:
        inputs = {file.filename: None for file in record.call.found.inputs}
    if not (inputs or outputs or stdout or stderr):
        return None
    return AttemptFiles(inputs, outputs, stdout, stderr)


class Profiler:
    """Recorder of the program's own named events, which plugins receive; see the option `trace`.

    Methods may be called from any thread.

    Args:
        hooks: The plugins' hooks.
    """

    def __init__(self, hooks: EngineHooks) -> None:
        self._hooks = hooks

    @property
    def enabled(self) -> bool:
        """True if a plugin receives events."""
        return bool(self._hooks.program_event)

    def event(self, name: str, uid: str | None = None, **details: Any) -> None:
        """Write an event with the current time.

        Args:
            name: The event's name.
            uid: The uid of the event's task, if any.
            **details: Further values, which are written as JSON.
        """
        self._write(time.time(), name, uid, details)

    def prof(
        self,
        event: str,
        uid: str | None = None,
        state: str | None = None,
        msg: str | None = None,
        ts: float | None = None,
        comp: str | None = None,
    ) -> None:
        """Write an event. The parameters are those of the profiler in radical.utils.

        Args:
            event: The event's name.
            uid: The uid of the event's task, if any.
            state: The task's state, if any.
            msg: A message, if any.
            ts: The time in seconds since the epoch. Default: the current time.
            comp: The component, if any.
        """
        given = {"state": state, "msg": msg, "comp": comp}
        details = {name: value for name, value in given.items() if value is not None}
        self._write(time.time() if ts is None else ts, event, uid, details)

    def _write(self, when: float, event: str, uid: str | None, details: Mapping[str, Any]) -> None:
        for hook in self._hooks.program_event:
            self._hooks.call(hook, time=when, name=event, uid=uid, details=details)


_MARK = "_rhapsody_engine"


class Failures:
    """Failed tasks, and tasks that did not run because of them, for an engine with `keep_going`.

    Args:
        uid: The engine's uid.
    """

    def __init__(self, uid: str) -> None:
        self._uid = uid
        self._failed = FailureGroups()
        self._skipped: list[str] = []
        self._counts = [0, 0]

    def add(self, record: TaskRecord, error: BaseException) -> None:
        """Add a failure, and mark its exception as raised by one of the engine's tasks."""
        vars(error)[_MARK] = self._uid
        skipped = isinstance(error, DependencyFailureError)
        self._counts[skipped] += 1
        if not skipped:
            self._failed.add(failure_in_event(record, error))
        elif len(self._skipped) < _MAX_NAMES:
            self._skipped.append(f"{record.call.task.name!r} ({record.future.uid})")

    def include(self, error: BaseException) -> bool:
        """Return True if an exception was raised by one of the engine's tasks.

        For an exception group, this must be true of each exception in the group.
        """
        if isinstance(error, BaseExceptionGroup):
            return all(self.include(one) for one in error.exceptions)
        return bool(vars(error).get(_MARK) == self._uid)

    def __str__(self) -> str:
        failed, skipped = self._counts
        text = f"{failed} task{'s' * (failed != 1)} failed"
        if skipped:
            names = _listed(self._skipped, skipped)
            text += f"; {skipped} did not run because of them: {names}"
        return "\n".join([text, *(f"  {line}" for line in self._failed.lines())])


_MAX_NAMES = 10


def _listed(names: list[str], count: int) -> str:
    return ", ".join(names) + (f" and {count - len(names)} more" if count > len(names) else "")


class UnawaitedErrors:
    """Collector of failures that were never awaited, which logs them in a single record.

    Attributes:
        total: Number of these failures so far.
        quiet: True if another component reports the failures, so that this object logs nothing.
    """

    def __init__(self, log: logging.Logger, uid: str) -> None:
        self._log = log
        self._uid = uid
        # While the lock is held, this thread or one that makes a text may collect another future.
        # Its failure then waits for the holder of the lock.
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Failure, Sequence[Failure]]] = deque()
        self._held: weakref.WeakSet[TaskFuture[Any]] = weakref.WeakSet()
        self.total: int = 0
        self.quiet: bool = False
        self._count = 0
        self._failures = FailureGroups()
        self._skipped = 0
        self._first: set[str] = set()  # failed tasks that caused others to be skipped
        self._closed = False

    def add(self, future: TaskFuture[Any]) -> None:
        """Add a failed future that was deleted without being awaited. Thread-safe."""
        error = future._exception
        assert error is not None
        first = error._first if isinstance(error, DependencyFailureError) else ()
        self._waiting.append((failure_of_future(future, error), first))
        self._take()

    def _take(self) -> None:
        """Add the failures that wait, unless another call is doing this."""
        while self._waiting and self._lock.acquire(blocking=False):
            try:
                while self._waiting:
                    self._include(*self._waiting.popleft())
                report = self._closed and self._count > 0
            finally:
                self._lock.release()
            if report:
                self._report()

    def _include(self, failure: Failure, first: Sequence[Failure]) -> None:
        """Add a failure, or those that caused a task to be skipped if they are not added yet."""
        self.total += 1
        self._count += 1
        if self.quiet:
            return
        if not first:
            self._failures.add(failure)
            return
        self._skipped += 1
        for each in first:
            if each.uid not in self._first:
                self._first.add(each.uid)
                self._failures.add(each)

    def watch(self, future: TaskFuture[Any]) -> None:
        """Watch a failed future, so that `close` logs it if it has not been awaited by then."""
        self._held.add(future)

    def has_unseen(self) -> bool:
        """Return True if a failure has not been awaited so far."""
        return self.total > 0 or any(is_unseen(future) for future in tuple(self._held))

    def close(self) -> None:
        """Log the failures, including those of futures that still exist."""
        for future in sorted(self._held, key=lambda future: future.uid):
            if is_unseen(future):
                mark_seen(future)
                self.add(future)
        with self._lock:
            self._closed = True
        self._take()
        self._report()

    def _report(self) -> None:
        with self._lock:
            count, skipped, failures = self._count, self._skipped, self._failures
            failed = count - skipped + len(self._first)
            self._count, self._skipped, self._failures = 0, 0, FailureGroups()
            self._first.clear()
        self._take()
        if count and not self.quiet:
            self._log.error(
                "engine %s: %d failed task%s not awaited%s:\n%s",
                self._uid, failed, "" if failed == 1 else "s",
                f", and {skipped} that did not run because of them" if skipped else "",
                "\n".join(f"  {line}" for line in failures.lines()),
            )  # fmt: skip
