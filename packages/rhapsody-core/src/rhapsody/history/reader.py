"""Reader of records: returns what a run has recorded, also while the run is in progress.

A record is a file of JSON lines. A reader remembers how far it has read, so that following a run
costs only what is new. An incomplete last line is left for the next time. Lines that are damaged
are reported and skipped; unknown keys and events are ignored, because later versions may add some.

A record may contain hundreds of thousands of tasks. Their values are named tuples, which are
created in a third of the time of frozen dataclasses, and the garbage collector, which would
repeatedly traverse all of them, is off while they are created.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import IO, Any, Final, Literal, NamedTuple, cast

from rhapsody.data import OUTPUT_FILES
from rhapsody.errors import RhapsodyError, in_words, user_name
from rhapsody.fsutil import open_file, state_of
from rhapsody.history.outputs import Place
from rhapsody.identity import split_label, without_engine
from rhapsody.sdk.runs import BASE, LOCK, NAME, RECORD, runs_in
from rhapsody.states import TasksMainStates
from rhapsody.task import NodeSample, Usage

FORMAT: int = 1
"""Version of the format of records, increased by changes after which older readers would be wrong.
The first line of a record contains the version of the record. `RecordReader` raises `RecordError`
for a record with a higher version than this one."""

RunOutcome = Literal["done", "failed", "interrupted", "killed", "running", "unknown"]
"""Outcome of a run. `"unknown"`: the run has ended or was killed, but the record does not show it,
for example because the disk was full or because the run is on another host."""

TaskOutcome = Literal["waiting", "running", "done", "failed", "skipped", "canceled"]
"""Outcome of a task; `"waiting"` or `"running"` if it has not ended."""

PENDING, SUBMITTED, RUNNING = (
    TasksMainStates.PENDING,
    TasksMainStates.SUBMITTED,
    TasksMainStates.RUNNING,
)
DONE, FAILED, CANCELED = TasksMainStates.DONE, TasksMainStates.FAILED, TasksMainStates.CANCELED

FIRST: Final = 1 << 20
TAIL: Final = 1 << 16
"""Maximum number of bytes that are read of the first line, and of the end of a record, to list
runs."""

BLOCK: Final = 1 << 20
"""Approximate number of bytes that are read and parsed at once. Larger blocks do not fit into the
caches of a processor."""

PROBLEMS: Final = 100
"""Maximum number of damaged lines that are reported."""


_NONE: Mapping[str, Any] = MappingProxyType({})


class RecordError(RhapsodyError, ValueError):
    """A file is not a record of a run, is damaged, or was written by a newer version."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The run of a record.

    Attributes:
        path: The path of the record.
        name: The name of the run's directory, or the name of the file if it is elsewhere.
        outcome: The outcome.
        program: The path of the program; empty if it is unknown.
        arguments: The program's arguments.
        command: The command that started the process.
        cwd: The current directory at the start; `None` if it had been removed.
        host: The name of the host.
        user: The name of the user.
        pid: The id of the process.
        python: The version of Python.
        platform: The operating system and processor.
        packages: The versions of Rhapsody's distributions and of plugins, by name.
        profile: The name of the profile, if one was used.
        started: The start, in seconds since the epoch.
        ended: The end in the same form; `None` if the run has not ended properly.
        exit_code: The exit code of `rhapsody run`; `None` if it is not recorded.
        stats: The counters of all engines that have ended, as in `rhapsody.plugins.Stats`, without
            those that are 0.
        backends: The names of the backends.
        problem: The reason why the first line cannot be read; otherwise `None`.
    """

    path: Path
    name: str
    outcome: RunOutcome = "unknown"
    program: str = ""
    arguments: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    cwd: str | None = None
    host: str = ""
    user: str = ""
    pid: int = 0
    python: str = ""
    platform: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    profile: str | None = None
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    stats: Mapping[str, int] = field(default_factory=dict)
    backends: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def seconds(self) -> float | None:
        """Duration of the run; `None` if it has not ended."""
        if self.started is None or self.ended is None:
            return None
        return max(0.0, self.ended - self.started)

    @property
    def owner(self) -> str | None:
        """Name of the other user that owns the record; `None` if it is this user's own.

        `user`, in contrast, is the name that the record contains.
        """
        uid = other_owner(self.path)
        return None if uid is None else user_name(uid)

    @property
    def directory(self) -> Path | None:
        """The directory whose `.rhapsody` contains the run; `None` if the record is elsewhere."""
        path = Path(os.path.abspath(self.path))
        return path.parents[2] if path.parent.parent.name == BASE else None


@dataclass(frozen=True, slots=True)
class BackendRecord:
    """A backend of an engine.

    Attributes:
        name: The name.
        kind: The class, as `package.module.Class`.
        cores: The number of cores, if the backend reports it.
    """

    name: str
    kind: str = ""
    cores: float | None = None


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """An engine of a run.

    Attributes:
        uid: The uid.
        started: The start, in seconds since the epoch.
        backends: The backends, the default one first.
        options: The options that differ from their defaults.
        work_dir: The directory of the sandboxes.
        outcome: `"done"`, `"failed"` or `"interrupted"`; `None` if the engine has not ended.
        ended: The end, in seconds since the epoch, or `None`.
        seconds: The duration, or `None`.
        stats: The counters as in `rhapsody.plugins.Stats`, without those that are 0.
        unawaited: The number of failed tasks that were never awaited.
        cut_short: True if tasks were canceled because of failures.
        held_back: True if tasks were held back because their backend was about to end.
        still_running: The uids of tasks that could not be stopped.
        problems: Problems during the shutdown.
        accounts: The reports of the backends about the run, by name.
    """

    uid: str
    started: float | None = None
    backends: tuple[BackendRecord, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    work_dir: str | None = None
    outcome: Literal["done", "failed", "interrupted"] | None = None
    ended: float | None = None
    seconds: float | None = None
    stats: Mapping[str, int] = field(default_factory=dict)
    unawaited: int = 0
    cut_short: bool = False
    held_back: bool = False
    still_running: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    accounts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ErrorRecord:
    """The error of an attempt.

    Attributes:
        kind: The name of the exception's type.
        message: The text of the exception, without the task's name at its beginning.
        traceback: The last frames, as Python prints them.
        caused_by: For a task that did not run, the uids of the tasks that failed first.
        place: The last line of the user's code in the traceback, such as `stats.py:12`; `None` if
            it is unknown.
        stderr: The end of the standard error of a command.
        hints: What may have caused the failure, and what helps.
    """

    kind: str
    message: str
    traceback: tuple[str, ...] = ()
    caused_by: tuple[str, ...] = ()
    place: str | None = None
    stderr: str = ""
    hints: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [in_words(self.kind, self.message), *(f"hint: {each}" for each in self.hints)]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file or directory that an attempt has read or written.

    Attributes:
        name: The name.
        path: The path; `None` if it is unknown.
        size: The size in bytes; `None` for a directory, or if it is unknown.
    """

    name: str
    path: str | None = None
    size: int | None = None


class Attempt(NamedTuple):
    """An attempt at a task.

    Attributes:
        number: The number, counted from 1.
        state: SUBMITTED, RUNNING, DONE, FAILED or CANCELED.
        backend: The name of the backend, or `None` if the task was not submitted.
        worker: The worker or host.
        submitted: The time of the submission, in seconds since the epoch.
        started: The start of the work in the same form, if the backend reports it.
        ended: The end in the same form.
        reused: True if the result of an earlier run was used.
        retried: True if the attempt has failed and another one follows.
        skipped: True if the task did not run because a dependency failed.
        exit_code: The exit code of an executable.
        error: The error of a failed attempt.
        sandbox: The directory, which may have been removed.
        stdout: The end of the standard output, unless it is in a file.
        stderr: The same for standard error.
        stdout_path: The path of the file with the standard output, with `capture="files"`.
        stderr_path: The same for standard error.
        usage: The resources that were used, if the backend reports them.
        resources: The resources that a function requested for this attempt.
        inputs: The declared input files.
        outputs: The declared files that the attempt wrote.
        stdout_at: The place of the whole standard output, for `read_output`, if `stdout` is only
            its end.
        stderr_at: The same for standard error.
        fallback: True if the attempt has failed and the fallback is the result of the task, whose
            state is therefore DONE.
        waits_for: The reason for which the job of the attempt waits, if the backend reports it.
    """

    number: int = 1
    state: TasksMainStates = SUBMITTED
    backend: str | None = None
    worker: str | None = None
    submitted: float | None = None
    started: float | None = None
    ended: float | None = None
    reused: bool = False
    retried: bool = False
    skipped: bool = False
    exit_code: int | None = None
    error: ErrorRecord | None = None
    sandbox: str | None = None
    stdout: str | None = None
    stderr: str | None = None
    stdout_path: str | None = None
    stderr_path: str | None = None
    usage: Usage | None = None
    resources: Mapping[str, Any] | None = None
    inputs: tuple[FileRecord, ...] = ()
    outputs: tuple[FileRecord, ...] = ()
    stdout_at: Place | None = None
    stderr_at: Place | None = None
    fallback: bool = False
    waits_for: str | None = None

    @property
    def seconds(self) -> float | None:
        """Duration of the work, or `None` if it is unknown."""
        if self.started is None or self.ended is None:
            return None
        return max(0.0, self.ended - self.started)

    @property
    def waited(self) -> float | None:
        """Seconds from the submission to the start, or `None` if they are unknown."""
        if self.submitted is None or self.started is None:
            return None
        return max(0.0, self.started - self.submitted)

    def output_path(self, stream: Literal["stdout", "stderr"]) -> str | None:
        """Return the path of the file that contains an output stream, if there may be one.

        The file of an executable is in its sandbox from the start of the attempt until the sandbox
        is removed.
        """
        given = self.stdout_path if stream == "stdout" else self.stderr_path
        if given is not None or self.sandbox is None:
            return given
        return os.path.join(self.sandbox, OUTPUT_FILES[stream == "stderr"])


class TaskRun(NamedTuple):
    """A call of a task or block, with its attempts.

    Attributes:
        key: The key in `RunHistory.tasks`.
        uid: The uid in the engine.
        engine: The uid of the engine.
        name: The name.
        kind: `"function"`, `"executable"` or `"block"`.
        call: The call as Python code, with shortened arguments.
        time: The time of the call, in seconds since the epoch.
        block: The key of the block in which the call was made, or `None`.
        scope: The scope of the call, or `None`.
        dependencies: The keys of the tasks and blocks for which the call waits.
        resources: The requested resources that differ from the defaults.
        settings: The other settings that differ from their defaults.
        attempts: The attempts in order; empty before the first submission.
    """

    key: str
    uid: str
    engine: str
    name: str = ""
    kind: Literal["function", "executable", "block"] = "function"
    call: str = ""
    time: float = 0.0
    block: str | None = None
    scope: str | None = None
    dependencies: tuple[str, ...] = ()
    resources: Mapping[str, Any] = _NONE
    settings: Mapping[str, Any] = _NONE
    attempts: tuple[Attempt, ...] = ()

    @property
    def last(self) -> Attempt | None:
        """The last attempt, or `None` before the first one."""
        return self.attempts[-1] if self.attempts else None

    @property
    def is_service(self) -> bool:
        """True if the task is a service."""
        return self.settings.get("service") is True

    @property
    def state(self) -> TasksMainStates:
        """The state of the last attempt, or PENDING before the first or next one."""
        if not self.attempts or self.attempts[-1].retried:
            return PENDING
        return self.attempts[-1].state

    @property
    def outcome(self) -> TaskOutcome:
        """The outcome. Unlike the state, it distinguishes tasks that were skipped."""
        state = self.state
        if state is DONE:
            return "done"
        if state is FAILED:
            return "skipped" if self.skipped else "failed"
        if state is CANCELED:
            return "canceled"
        return "running" if state is RUNNING else "waiting"

    @property
    def ended(self) -> bool:
        """True if the task has ended."""
        return self.state not in (PENDING, SUBMITTED, RUNNING)

    @property
    def skipped(self) -> bool:
        """True if the task did not run because a dependency failed."""
        return bool(self.attempts) and self.attempts[-1].skipped

    @property
    def fallback(self) -> bool:
        """True if every attempt has failed and the fallback is the result."""
        return bool(self.attempts) and self.attempts[-1].fallback

    @property
    def reused(self) -> bool:
        """True if the result of an earlier run was used."""
        return bool(self.attempts) and self.attempts[-1].reused

    @property
    def number(self) -> str:
        """The number in the uid, `000001`."""
        return split_label(self.uid)[1]


@dataclass(frozen=True, slots=True)
class RunHistory:
    """The content of a record.

    Attributes:
        run: The run.
        engines: The engines by uid, in the order in which they started.
        tasks: The tasks and blocks, those of one engine in the order of their calls. The key of a
            task of the first engine is its uid, `task.000001`; that of another engine begins with
            the engine's uid, `engine.1a2b3c4d.task.000001`.
        problems: Descriptions of damaged lines, which are not part of the history.
        nodes: The load of the nodes over time, in the order of the times.
    """

    run: RunRecord
    engines: Mapping[str, EngineRecord]
    tasks: Mapping[str, TaskRun]
    problems: tuple[str, ...] = ()
    nodes: tuple[NodeSample, ...] = ()


def read_run(path: str | os.PathLike[str]) -> RunHistory:
    """Read a record.

    Args:
        path: The path of the record, or of the run's directory.

    Returns:
        The content of the record so far.

    Raises:
        RecordError: The file is not a record, or was written by a newer version.
        OSError: The file cannot be read.
    """
    reader = RecordReader(path)
    reader.update()
    return reader.history()


class RecordReader:
    """Reader of one record, which can be read again while the run continues.

    Args:
        path: The path of the record, or of the run's directory.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Path = record_path(path)
        self._forget()

    def _forget(self) -> None:
        self._offset = self._line = 0
        self._file: tuple[int, int] | None = None  # device and inode
        self._run: Mapping[str, Any] | None = None
        self._end: Mapping[str, Any] | None = None
        self._engines: dict[str, dict[str, Any]] = {}
        self._first = ""  # uid of the first engine
        self._open: dict[str, Mapping[str, Any]] = {}  # lines of attempts that have not ended
        self._calls: dict[str, Mapping[str, Any]] = {}  # lines that `_tasks` does not reflect yet
        self._ends: dict[str, list[Mapping[str, Any]]] = {}
        self._changed: dict[str, None] = {}  # keys of the tasks with such lines
        self._tasks: dict[str, TaskRun] = {}
        self._nodes: list[NodeSample] = []
        self._problems: list[str] = []

    def update(self) -> bool:
        """Read what was written since the last call.

        If another run has replaced the file, everything is read again.

        Returns:
            True if there was anything new.

        Raises:
            RecordError: The file is not a record, or was written by a newer version.
            OSError: The file cannot be read.
        """
        with open_file(self.path) as file:
            status = os.fstat(file.fileno())
            found = status.st_dev, status.st_ino
            if (self._file not in (None, found)) or status.st_size < self._offset:
                self._forget()
            self._file = found
            file.seek(self._offset)
            before = self._offset
            with no_collection():
                while block := file.read(BLOCK):
                    block += file.readline()
                    end = block.rfind(b"\n") + 1
                    if end:
                        self._take_block(block[:end])
                    if end < len(block):  # the last line is incomplete
                        break
        return self._offset > before

    def _take_block(self, block: bytes) -> None:
        """Take complete lines."""
        for number, line in self._parsed(block):
            self._take(number, line)
        self._offset += len(block)
        self._line += block.count(b"\n")

    def _parsed(self, block: bytes) -> Iterable[tuple[int, Any]]:
        """Parse lines, all of them at once if none is damaged."""
        try:
            found = _json(b"[" + block[:-1].replace(b"\n", b",") + b"]")
            if len(found) == block.count(b"\n"):
                return enumerate(found, self._line + 1)
        except ValueError:  # a line is damaged
            pass
        return self._parsed_singly(block[:-1].split(b"\n"))

    def _parsed_singly(self, lines: Sequence[bytes]) -> Iterator[tuple[int, Any]]:
        for number, line in enumerate(lines, self._line + 1):
            try:
                yield number, _json(line)
            except ValueError:
                self._problem(number, "it is not valid JSON")

    def _problem(self, line: int, why: str) -> None:
        if line == 1:
            raise RecordError(f"{self.path} is not a record of a run: line 1: {why}")
        if len(self._problems) < PROBLEMS:
            self._problems.append(f"line {line} is skipped: {why}")

    def _take(self, number: int, line: Any) -> None:
        if self._run is None:
            self._run = _checked(self.path, line)
            return
        try:
            event = line["event"]
            if event not in _OF_TASKS:
                self._take_other(event, line)
                return
            key, engine = line["uid"], line.get("engine")
            if type(key) is not str:
                raise TypeError(f"uid {key!r}")
            if engine is not None and engine != self._first:
                key = f"{engine}.{key}"
            if event == "end":
                self._ended(key, line)
            elif event == "call":
                self._calls[key] = line
            else:
                self._open[key] = line
            self._changed[key] = None
            self._end = None
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            self._problem(number, f"it is incomplete ({type(error).__name__}: {error})")

    def _ended(self, key: str, line: Mapping[str, Any]) -> None:
        if line["state"] not in _STATES:
            raise ValueError(f"state {line['state']!r}")
        ends = self._ends.get(key)
        if ends is None:
            self._ends[key] = [line]
        else:
            ends.append(line)
        self._open.pop(key, None)

    def _take_other(self, event: str, line: Mapping[str, Any]) -> None:
        """Take a line that does not belong to one task."""
        if event == "submit":
            engine = line.get("engine")
            prefix = "" if engine is None or engine == self._first else f"{engine}."
            names = {"backend": "backend", "time": "submitted", "reason": "waits_for"}
            submitted = {new: line.get(name) for name, new in names.items()}
            for uid in line["uids"]:
                self._open[f"{prefix}{uid}"] = submitted
                self._changed[f"{prefix}{uid}"] = None
        elif event in ("engine", "engine_end"):
            _require(line, _ENGINE)
            self._engines.setdefault(line["uid"], {}).update(_renamed(event, line))
            self._first = self._first or line["uid"]
        elif event == "node":
            self._nodes.append(_node(line))
        elif event == "run_end":
            _require(line, _RUN_END)
        if event != "engine_end":  # if anything follows `run_end`, the run continues
            self._end = line if event == "run_end" else None

    def history(self) -> RunHistory:
        """Return what has been read so far.

        Raises:
            RecordError: The file does not contain a complete line yet.
        """
        if self._run is None:
            raise RecordError(f"{self.path} is empty: the run has recorded nothing yet")
        changed, self._changed = self._changed, {}
        tasks = self._tasks
        with no_collection():
            for key in changed:
                try:
                    tasks[key] = _checked_task(self._task(key))
                except (TypeError, KeyError, ValueError, AttributeError) as error:
                    self._problems.append(f"{key} is skipped: its lines are malformed ({error!r})")
        engines = {uid: _engine(uid, found) for uid, found in self._engines.items()}
        run = _run(self.path, self._run, self._end, list(self._engines.values()))
        return RunHistory(run, engines, dict(tasks), tuple(self._problems), tuple(self._nodes))

    def _task(self, key: str) -> TaskRun:
        former, line = self._tasks.get(key), self._calls.pop(key, None)
        ends, unfinished = self._ends.pop(key, ()), self._open.get(key)
        attempts = [_attempt(each) for each in ends]
        if former is not None:
            attempts = [*(each for each in former.attempts if each.ended is not None), *attempts]
        if unfinished is not None:
            default = attempts[-1].number + 1 if attempts else 1
            attempts.append(_unfinished(unfinished, default))
        if line is None and former is not None:
            return former._replace(attempts=tuple(attempts))
        if line is None:  # it is damaged
            line = ends[-1] if ends else unfinished or {}
            uid = without_engine(key)
            return TaskRun(key, uid, line.get("engine") or self._first, attempts=tuple(attempts))
        get = line.get
        engine, block = get("engine"), get("block")
        dependencies: Sequence[str] = get("dependencies", ())
        if engine is None or engine == self._first:
            engine = self._first
        else:
            block = None if block is None else f"{engine}.{block}"
            dependencies = [f"{engine}.{each}" for each in dependencies]
        return TaskRun(
            key, line["uid"], engine, get("name", ""), get("kind", "function"), get("call", ""),
            get("time", 0.0), block, get("scope"), tuple(dependencies), get("resources") or {},
            get("settings") or {}, tuple(attempts),
        )  # fmt: skip


def _node(line: Mapping[str, Any]) -> NodeSample:
    """Return a sample of a node. Raise a `TypeError` or a `KeyError` if it is malformed."""
    numbers = ("seconds", "cpu", "memory", "memory_size", "read", "written", "received", "sent")
    found = {name: line.get(name, 0) for name in (*numbers, "time")}
    gpus = tuple(line.get("gpus", ()))
    if not (is_time(found["time"]) and isinstance(line["node"], str)):
        raise TypeError("the name of the node or the time is malformed")
    if not all(type(each) in (int, float) for each in (*found.values(), *gpus)):
        raise TypeError("a value is not a number")
    return NodeSample(line["node"], gpus=gpus, **found)


def _json(text: bytes) -> Any:
    """Return the value of JSON text. Raise a `ValueError` if it is damaged."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _checked_task(task: TaskRun) -> TaskRun:
    """Return a task. Raise a `TypeError` if its values have wrong types."""
    if not _is_sound(task):
        raise TypeError("values of wrong types")
    return task


def _is_sound(task: TaskRun) -> bool:
    """Return True if the values of a task have the right types."""
    texts = (task.name, task.kind, task.call, task.block or "", task.scope or "")
    return (
        {str}.issuperset(map(type, (*texts, *task.dependencies)))
        and _are_resources(task.resources)
        and isinstance(task.settings, Mapping)
        and task.time is not None
        and is_time(task.time)
        and all(_is_sound_attempt(attempt) for attempt in task.attempts)
    )


def _is_sound_attempt(attempt: Attempt) -> bool:
    texts = (
        attempt.backend, attempt.worker, attempt.sandbox, attempt.stdout, attempt.stderr,
        attempt.stdout_path, attempt.stderr_path,
    )  # fmt: skip
    files = (*attempt.inputs, *attempt.outputs)
    usage, resources = attempt.usage or {}, attempt.resources or {}
    flags = (attempt.reused, attempt.retried, attempt.skipped, attempt.fallback)
    return (
        {str, NoneType}.issuperset(map(type, texts))
        and isinstance(attempt.number, int)
        and {bool}.issuperset(map(type, flags))
        and isinstance(attempt.exit_code, int | None)
        and all(map(is_time, (attempt.submitted, attempt.started, attempt.ended)))
        and isinstance(usage, Mapping)
        and all(isinstance(each, int | float) for each in usage.values())
        and _are_resources(resources)
        and all(isinstance(each.name, str) for each in files)
        and all(each.path is None or isinstance(each.path, str) for each in files)
        and all(each.size is None or isinstance(each.size, int) for each in files)
        and (attempt.error is None or _is_sound_error(attempt.error))
    )


def _are_resources(value: object) -> bool:
    """Return True if a value is a mapping, and its quantities are numbers."""
    return isinstance(value, Mapping) and (
        not value
        or (
            isinstance(value.get("cores", 1), int | float)
            and isinstance(value.get("ranks", 1), int)
            and isinstance(value.get("memory"), int | float | None)
        )
    )


def _is_sound_error(error: ErrorRecord) -> bool:
    texts = (*error.traceback, *error.caused_by, *error.hints)
    return isinstance(error.place, str | None) and all(isinstance(each, str) for each in texts)


def is_time(value: object) -> bool:
    """Return True if a value is `None` or a time that can be shown as a date."""
    return value is None or (isinstance(value, int | float) and 0 <= value < MAX_TIME)


MAX_TIME = 4e9
"""Maximum time, in seconds since the epoch. Later times are treated as damage."""


_STATES = {str(state): state for state in TasksMainStates}
_OF_TASKS = frozenset({"call", "start", "end"})


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Turn off the garbage collector in a block that creates many objects."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _renamed(event: str, line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line about an engine, with `time` renamed to `started` or `ended`."""
    found = dict(line)
    found["started" if event == "engine" else "ended"] = found.pop("time", None)
    return found


def _attempt(line: Mapping[str, Any]) -> Attempt:
    get = line.get
    return Attempt(
        get("attempt", 1), _STATES[line["state"]], get("backend"), get("worker"),
        get("submitted"), get("started"), get("ended"), get("reused", False),
        get("retried", False), get("skipped", False), get("exit_code"), _error(get("error")),
        get("sandbox"), get("stdout"), get("stderr"), get("stdout_path"), get("stderr_path"),
        get("usage"), get("resources"), _files(get("inputs")), _files(get("outputs")),
        _output_place(get("stdout_at")), _output_place(get("stderr_at")),
        get("fallback", False),
    )  # fmt: skip


def _output_place(given: Sequence[int] | None) -> Place | None:
    if given is None:
        return None
    offset, size = given
    if not (isinstance(offset, int) and isinstance(size, int) and offset >= 0 and size >= 0):
        raise TypeError(f"place {given!r}")
    return offset, size


def _unfinished(line: Mapping[str, Any], default: int) -> Attempt:
    get, started = line.get, line.get("started")
    return Attempt(
        get("attempt", default),
        SUBMITTED if started is None else RUNNING,
        get("backend"),
        get("worker"),
        get("submitted"),
        started,
        sandbox=get("sandbox"),
        waits_for=get("waits_for"),
    )


def _error(given: Mapping[str, Any] | None) -> ErrorRecord | None:
    if not given:
        return None
    return ErrorRecord(
        str(given.get("type", "")),
        str(given.get("message", "")),
        tuple(given.get("traceback", ())),
        tuple(given.get("caused_by", ())),
        given.get("place"),
        str(given.get("stderr", "")),
        tuple(given.get("hints", ())),
    )


def _files(given: Sequence[Mapping[str, Any]] | None) -> tuple[FileRecord, ...]:
    if not given:
        return ()
    return tuple(FileRecord(each["name"], each.get("path"), each.get("size")) for each in given)


def _engine(uid: str, found: Mapping[str, Any]) -> EngineRecord:
    get = found.get
    backends = (
        BackendRecord(str(each.get("name")), str(each.get("class", "")), each.get("cores"))
        for each in get("backends", ())
    )
    return EngineRecord(
        uid=uid,
        started=get("started"),
        backends=tuple(backends),
        options=get("options") or {},
        work_dir=get("work_dir"),
        outcome=get("outcome"),
        ended=get("ended"),
        seconds=get("seconds"),
        stats=get("stats") or {},
        unawaited=get("unawaited", 0),
        cut_short=get("cut_short", False),
        held_back=get("held_back", False),
        still_running=tuple(get("still_running") or ()),
        problems=tuple(get("problems") or ()),
        accounts=get("accounts") or {},
    )


def _run(
    path: Path,
    line: Mapping[str, Any],
    end: Mapping[str, Any] | None,
    engines: Sequence[Mapping[str, Any]] = (),
) -> RunRecord:
    """Return the run.

    Args:
        path: The path of the record.
        line: Its first line.
        end: Its last line if the run has ended properly, otherwise `None`.
        engines: The lines of the engines, if they are known.
    """
    get, host = line.get, str(line.get("host", ""))
    outcome: RunOutcome
    if end is not None:
        stats: Mapping[str, int] = end.get("stats") or {}
        outcome, backends = end.get("outcome", "unknown"), tuple(end.get("backends", ()))
    else:
        outcome, stats = _outcome_without_end(path, host, get("pid", 0)), _sum(engines)
        named = (str(each.get("name")) for line in engines for each in line.get("backends", ()))
        backends = tuple(dict.fromkeys(named))
    return RunRecord(
        path=path,
        name=_name(path),
        outcome=outcome,
        program=str(get("program", "")),
        arguments=tuple(get("arguments", ())),
        command=tuple(get("command", ())),
        cwd=get("cwd"),
        host=host,
        user=str(get("user", "")),
        pid=get("pid", 0),
        python=str(get("python", "")),
        platform=str(get("platform", "")),
        packages=get("packages") or {},
        profile=get("profile"),
        started=get("started"),
        ended=None if end is None else end.get("time"),
        exit_code=None if end is None else end.get("exit_code"),
        stats=stats,
        backends=backends,
    )


def _sum(engines: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for line in engines:
        for name, count in (line.get("stats") or {}).items():
            total[name] = total.get(name, 0) + count
    return total


def _name(path: Path) -> str:
    return path.parent.name if _in_run(path) else path.name


def other_owner(record: Path) -> int | None:
    """Return the user that owns a record, or `None` if it is this user or is unknown."""
    for path in (record.parent, record) if _in_run(record) else (record,):
        with contextlib.suppress(OSError):  # it was removed, or is not readable
            uid = os.lstat(path).st_uid
            if uid != os.geteuid():
                return uid
    return None


def open_recorded(path: str, record: Path) -> IO[bytes]:
    """Return the open file with the output of a task, whose path is in a record.

    Raises:
        OSError: The file cannot be opened.
        PermissionError: The record belongs to another user, and the file does not: others must not
            choose which of this user's files are shown.
    """
    owner = other_owner(record)
    file = open_file(path)
    if owner is not None and os.fstat(file.fileno()).st_uid != owner:
        file.close()
        raise PermissionError(
            errno.EACCES, f"it does not belong to {user_name(owner)}, as the record does", path
        )
    return file


def _in_run(path: Path) -> bool:
    return path.name == RECORD and NAME.fullmatch(path.parent.name) is not None


def _outcome_without_end(path: Path, host: str, pid: int) -> RunOutcome:
    """Return the outcome of a run whose end is not recorded: the run is active, or was killed."""
    if _in_run(path):
        outcomes: Mapping[str, RunOutcome] = {"held": "running", "left": "killed"}
        return outcomes.get(state_of(path.parent / LOCK), "unknown")
    locked = _is_locked(path)
    if locked:
        return "running"
    if host != socket.gethostname():
        return "unknown"
    if locked is None and pid > 0 and _exists(pid):  # the file system has no locks
        return "running"
    return "killed"


def _exists(pid: int) -> bool:
    """Return True if there is a process with this id on this host."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True


def _is_locked(path: Path) -> bool | None:
    """Return True if a process is writing a record, or `None` if this cannot be determined."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(file)
    return False


def _checked(path: Path, line: Any) -> Mapping[str, Any]:
    """Return the first line of a record.

    Raises:
        RecordError: It is not the first line of a record, is damaged, or a newer version has
            written it.
    """
    if not isinstance(line, Mapping) or line.get("event") != "run":
        raise RecordError(f"{path} is not a record of a run: its first line describes no run")
    version = line.get("format")
    if not isinstance(version, int):
        raise RecordError(f"{path} is not a record of a run: its first line has no format")
    if version > FORMAT:
        raise RecordError(
            f"{path} has format {version}, but this version of rhapsody-core reads formats up to "
            f"{FORMAT}; upgrade rhapsody-core"
        )
    try:
        _require(line, _RUN)
    except TypeError as error:
        raise RecordError(f"{path} is damaged: its first line is malformed ({error})") from None
    return line


def _require(line: Mapping[str, Any], checks: Mapping[str, Callable[[Any], bool]]) -> None:
    """Raise a `TypeError` if a value of a line is malformed. Values may be missing."""
    for name, is_valid in checks.items():
        value = line.get(name)
        if value is not None and not is_valid(value):
            raise TypeError(f"{name} is {value!r}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_int(value: Any) -> bool:
    return isinstance(value, int)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _are_mappings(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_mapping, value))


def _are_counts(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_is_int, value.values()))


_RUN = {
    "arguments": _are_texts,
    "command": _are_texts,
    "cwd": _is_text,
    "pid": _is_int,
    "packages": _is_mapping,
    "profile": _is_text,
    "started": is_time,
}
_ENGINE = {
    "uid": _is_text,
    "time": is_time,
    "backends": _are_mappings,
    "options": _is_mapping,
    "work_dir": _is_text,
    "outcome": _is_text,
    "seconds": is_time,
    "stats": _are_counts,
    "unawaited": _is_int,
    "still_running": _are_texts,
    "problems": _are_texts,
    "accounts": _is_mapping,
}
_RUN_END = {
    "time": is_time,
    "outcome": _is_text,
    "exit_code": _is_int,
    "stats": _are_counts,
    "backends": _are_texts,
}
"""Checks of the values of lines that do not belong to one task."""


def record_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a record, given that path or the path of the run's directory."""
    found = Path(path)
    return found / RECORD if os.path.isdir(found) else found


def list_runs(base: Path) -> list[RunRecord]:
    """Return the recorded runs in a `.rhapsody` directory, newest first.

    Only the beginning and the end of each record are read. If the first line of a record is
    damaged, the run is listed with a `problem`.
    """
    found = []
    for name in reversed(runs_in(base)):
        path = base / name / RECORD
        with contextlib.suppress(FileNotFoundError):  # not recorded, or removed meanwhile
            found.append(describe_run(path))
    return found


def describe_run(path: Path) -> RunRecord:
    """Return the run of a record. Only the beginning and the end of the record are read.

    The `stats` and `backends` of a run that has not ended are not read.

    Raises:
        FileNotFoundError: There is no record at this path.
    """
    try:
        with open_file(path) as file:
            first = file.readline(FIRST)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            tail = file.read()
        run = _checked(path, _json(first))
        return _run(path, run, _last(tail))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError, AttributeError) as error:
        outcome = _outcome_without_end(path, "", 0)
        return RunRecord(path, _name(path), outcome, problem=" ".join(str(error).split()))


def _last(tail: bytes) -> Mapping[str, Any] | None:
    """Return the last line of a record if it ends the run, otherwise `None`.

    Raises:
        RecordError: The line is malformed.
    """
    lines = tail.rsplit(b"\n", 2)
    if len(lines) < 2 or lines[-1]:  # the last line is incomplete
        return None
    try:
        found = _json(lines[-2])
    except ValueError:
        return None
    if isinstance(found, Mapping) and found.get("event") == "run_end":
        try:
            _require(found, _RUN_END)
        except TypeError as error:
            raise RecordError(f"its last line is malformed ({error})") from None
        return cast("Mapping[str, Any]", found)
    return None
