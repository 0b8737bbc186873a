"""Hook specifications, and the values that plugins and the engine exchange.

Hooks declare and observe; behavior lives in backend classes. They are synchronous, and called in
batches where many calls would come together. `rhapsody.plugins.manager` calls them and isolates
their errors.
"""

from __future__ import annotations

import asyncio
import keyword
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import pluggy

from rhapsody.capabilities import Capabilities
from rhapsody.data import SavedFile
from rhapsody.errors import RhapsodyError
from rhapsody.states import TasksMainStates
from rhapsody.task import TaskDescription

if TYPE_CHECKING:
    import argparse

__all__ = [
    "API_VERSION",
    "PROJECT",
    "BackendSpec",
    "CommandLine",
    "LookupTask",
    "ObservedEngine",
    "Record",
    "Recorded",
    "Stats",
    "Summary",
    "TaskEvent",
    "TaskFiles",
    "UsageError",
    "hookimpl",
    "hookspec",
    "rhapsody_backends",
    "rhapsody_commands",
    "rhapsody_lookup_results",
    "rhapsody_prepare_task",
    "rhapsody_record_results",
    "rhapsody_select_backend",
    "rhapsody_task_events",
    "rhapsody_workflow_finished",
    "rhapsody_workflow_started",
    "split_import_path",
]

PROJECT: str = "rhapsody"
hookspec: pluggy.HookspecMarker = pluggy.HookspecMarker(PROJECT)
hookimpl: pluggy.HookimplMarker = pluggy.HookimplMarker(PROJECT)
"""Marks a function or method as the implementation of the hook of its name."""

API_VERSION: int = 1
"""The version of the plugin interface: these hooks and the backend classes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSpec:
    """A plugin's declaration of one backend. Cheap to create: it imports no library.

    Attributes:
        name: The backend's name, equal to its entry point's. Names are compared without case,
            and `-` and `_` are the same.
        import_path: `"package.module:Class"`, imported when the class is requested.
        summary: One line for tables.
        api_version: The version of the plugin interface that it was written for.
        requires: Distribution requirements (`"distributed>=2024.1"`) that must be installed for
            the backend to be usable; checked by metadata.
        capabilities: The backend's capabilities; `None` if only an instance knows them.
        install_hint: The command that installs what is missing.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: The name is empty or the import path malformed.
    """

    name: str
    import_path: str
    summary: str = ""
    api_version: int = API_VERSION
    requires: Sequence[str] = ()
    capabilities: Capabilities | None = None
    install_hint: str = ""

    def __post_init__(self) -> None:
        for name, kind, words in (
            ("name", str, "a string"),
            ("import_path", str, "a string"),
            ("summary", str, "a string"),
            ("api_version", int, "a number"),
            ("requires", Sequence, "a list of strings"),
            ("capabilities", Capabilities | None, "a Capabilities or None"),
            ("install_hint", str, "a string"),
        ):
            value = getattr(self, name)
            fits = isinstance(value, kind)
            if fits and name == "requires":
                fits = not isinstance(value, str) and all(isinstance(one, str) for one in value)
            if not fits:
                raise TypeError(f"BackendSpec({name}={value!r}): {words} is needed")
        if not self.name.strip():
            raise ValueError("BackendSpec(name=''): a name is needed")
        split_import_path(self.import_path)


def split_import_path(path: str) -> tuple[str, str]:
    """Split `"package.module:Class"` into the module and the qualified class name.

    Args:
        path: With a colon, or with dots only; then the last part is the class.

    Raises:
        ValueError: The path is malformed.
    """
    module, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    parts = [*module.split("."), *name.split(".")]
    if all(part.isidentifier() and not keyword.iskeyword(part) for part in parts):
        return module, name
    raise ValueError(
        f"import path {path!r} is malformed: write 'package.module:Class' or 'package.module.Class'"
    )


@dataclass(slots=True)
class Stats:
    """Counters of one engine since it was made.

    Attributes:
        tasks: Calls of tasks and blocks.
        done: Futures that got a result.
        failed: Futures that got an exception.
        cancelled: Futures that were cancelled.
        recorded: Results that a plugin had recorded earlier; the tasks did not run.
        retried: Attempts that failed and were followed by another.
        lost: Attempts that the infrastructure lost, and values that backends kept and lost.
        late: Updates that came too late or out of order, and ends that came twice; none of
            them was applied.
        unknown: Updates of tasks or states that nobody knows.
        skipped: Those of `failed` that did not run, because one that they depend on has failed.
    """

    tasks: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    recorded: int = 0
    retried: int = 0
    lost: int = 0
    late: int = 0
    unknown: int = 0
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended; given to `rhapsody_workflow_finished`.

    Attributes:
        uid: The engine's uid.
        stats: Its counters.
        seconds: From its start to its end, by the wall clock.
        still_running: Uids of tasks whose work could not be stopped.
        problems: What went wrong while shutting down, in words.
        graph: For a dry run: each call's uid, name and the uids it depends on.
        unawaited: How many failed tasks and blocks nobody awaited.
        backends: By each backend's name what it tells of its life, see `account` of
            `ManagedBackend`; those that tell nothing are left out.
        results: Files that tasks made and that are there now.
        stale: Files of an earlier run at the destinations of results that this run did not
            produce, because their tasks failed, were skipped or were cancelled.
        disk_use: Bytes in the directory of the runs (`.rhapsody`, or `work_dir`), 0 if this run has
            left nothing there. Counting stops after half a second.
        cut_short: Whether so many tasks failed that all others were cancelled, see `fail_fast` and
            `max_failures` of `WorkflowEngine.create`.
        held_back: Whether tasks were held back for the next run, as their backend was about to
            end.
    """

    uid: str
    stats: Stats
    seconds: float
    still_running: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    graph: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    unawaited: int = 0
    backends: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    results: tuple[SavedFile, ...] = ()
    stale: tuple[SavedFile, ...] = ()
    disk_use: int = 0
    cut_short: bool = False
    held_back: bool = False


class ObservedEngine(Protocol):
    """What a plugin may read of the engine that calls its hooks: a `WorkflowEngine`'s views.

    All of it is to be read on the engine's loop, and none of it to be changed.
    """

    @property
    def uid(self) -> str:
        """The beginning of every uid that its backends get."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that it lives on, and on which hooks are called."""

    @property
    def log(self) -> logging.Logger:
        """Its logger."""

    @property
    def work_dir(self) -> Path:
        """Where sandboxes are made, an absolute path."""

    @property
    def dry_run(self) -> bool:
        """Whether nothing is really run."""

    @property
    def stats(self) -> Stats:
        """Its counters."""

    @property
    def summary(self) -> Summary | None:
        """How the run ended, `None` before it has."""

    @property
    def backends(self) -> Mapping[str, Any]:
        """The attached backends by their names, the default one first."""

    @property
    def dependencies(self) -> Mapping[str, tuple[str, ...]]:
        """Each unfinished task and block by uid: the uids of what it depends on."""

    @property
    def queue(self) -> tuple[str, ...]:
        """Uids of tasks that are ready and not yet handed to a backend."""

    @property
    def running(self) -> tuple[str, ...]:
        """Uids of tasks and blocks that are running now, services included."""


class TaskEvent(NamedTuple):
    """One change of one task or block. Immutable; shared by all observers.

    Attributes:
        uid: The uid in the engine, `task.000001`.
        name: The task's name.
        attempt: Counted from 1.
        state: The canonical state that was entered.
        native: The backend's word for it, `"reused"` for a task that a plugin had the result of,
            `None` where the engine decided.
        backend: The backend's name, `None` before one was chosen.
        time: Seconds since the epoch.
        monotonic: The engine clock's seconds, for durations.
        worker: The worker or host, where the backend says.
        scope: The scope the task was made in.
        error: The exception of an attempt that failed; there may be another one after it.
        sandbox: The directory the attempt runs in, where it has one.
        stdout: What an attempt that has ended wrote to standard output; `None` where that was
            not kept, or only in files.
        stderr: The same of standard error.
        kind: What was called: `"function"`, `"executable"` or `"block"`.
    """

    uid: str
    name: str
    attempt: int
    state: TasksMainStates
    native: str | None
    backend: str | None
    time: float
    monotonic: float
    worker: str | None = None
    scope: str | None = None
    error: BaseException | None = None
    sandbox: str | None = None
    stdout: str | None = None
    stderr: str | None = None
    kind: Literal["function", "executable", "block"] = "function"


@dataclass(frozen=True, slots=True)
class TaskFiles:
    """The files and directories that a task made.

    Attributes:
        sandbox: The directory it ran in, on the file system of the backend that ran it.
        paths: Where each is that it declared, by its name.
        matches: Which of the names match each pattern that it declared.
        places: Where files were saved, by the name: see `OutputFile`.
        shared: Whether it declared none, and dependents see all that is in the sandbox.
        stays: Whether the sandbox stays on disk, as `keep_sandboxes` or the result says.
        gone: Of a recorded task: names of files that are not there. It runs again when a task
            that runs reads one, or one is to be saved.
    """

    sandbox: str
    paths: Mapping[str, str]
    matches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    shared: bool = False
    stays: bool = False
    gone: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Recorded:
    """A result that a plugin found for a task: the task is not run.

    Attributes:
        value: The result, which may be `None`.
        files: What the task made: its dependents read it from `paths`, and what is not at its
            place of this run yet, by `places`, is copied there.
        stdout: What it wrote to standard output, or the file that holds it, for its future.
        stderr: The same of standard error.
        exit_code: An executable's exit code.
    """

    value: Any
    files: TaskFiles | None = None
    stdout: str | None = None
    stderr: str | None = None
    exit_code: int | None = None


class Record(NamedTuple):
    """A completed task, given to `rhapsody_record_results` before its future is set.

    Attributes:
        uid: The uid in the engine, `task.000001`.
        task: The attempt's description, with what the backend left in it.
        value: What the future will hold.
        settings: The task's `cache` and `version` settings.
        inputs: The paths of its input files by their names, as in `LookupTask`.
        files: What it made, where it had a sandbox. The files that it declared are there until
            the engine ends, and after that where the run did not end well.
        stdout: What it wrote to standard output, or the file that holds it.
        stderr: The same of standard error.
        exit_code: An executable's exit code.
        texts: As in `LookupTask`.
        makes_again: The `uid` of the `LookupTask` for which a plugin had a result whose files are
            gone, where the task ran for those alone; its value is not seen.
        made_for: The uids of the tasks that have requested these files so far; for tasks that are
            repeated themselves, the former uid, as in `makes_again`.
    """

    uid: str
    task: TaskDescription
    value: Any
    settings: Mapping[str, Any] = MappingProxyType({})
    inputs: Mapping[str, str | None] = MappingProxyType({})
    files: TaskFiles | None = None
    stdout: str | None = None
    stderr: str | None = None
    exit_code: int | None = None
    texts: Sequence[str] = ()
    makes_again: str | None = None
    made_for: Sequence[str] = ()


class LookupTask(TaskDescription):
    """A task whose result is looked for: its description, as a mapping, and five keys more.

    A service among the arguments is told by `("service", name, function, (args, kwargs))`, for what
    it says when it is ready, as a port, differs in each run. Of a command those are the `args`, and
    in its words numbers between zero bytes stand for what the services said.

    Attributes:
        settings: The task's `cache` and `version` settings.
        inputs: The paths of its input files by their names, those it reads from disk, from
            other tasks and from URLs alike; they are not in its sandbox yet. `None` for
            one that cannot be read from here. Not to be changed.
        implicit: The sandboxes of dependencies that declare no output files, all of which it
            sees, see `implicit_data` of `WorkflowEngine.create`.
        texts: The strings and paths among the arguments of an executable, which may name files.
        shares_memory: Whether its backend runs functions in the program's own process.
    """

    settings: Mapping[str, Any]
    inputs: Mapping[str, str | None]
    implicit: Sequence[str]
    texts: Sequence[str]
    shares_memory: bool


class UsageError(RhapsodyError, ValueError):
    """Invalid argument of a command: shown without a traceback, exit code 2."""


class CommandLine(Protocol):
    """What `rhapsody_commands` gets: the command line, to which commands are added."""

    def add_command(
        self,
        name: str,
        help: str,
        configure: Callable[[argparse.ArgumentParser], object] | None,
        run: Callable[[argparse.Namespace], int | None],
    ) -> None:
        """Adds a command, called as `rhapsody NAME ...`.

        Args:
            name: The command's name.
            help: One line for the list of commands.
            configure: Called with the command's own parser, to add its arguments;
                only when the command is used or its help is asked for.
            run: Called with the parsed arguments; returns the exit code, `None` for 0.
                A `RhapsodyError` is shown without a traceback, with the exit code 2 for a
                `UsageError` and 1 for all others.

        Raises:
            ValueError: There is a command of that name already.
        """
        ...


@hookspec
def rhapsody_backends() -> BackendSpec | Iterable[BackendSpec]:
    """Declares the backends of a plugin.

    Called when the registry needs the declaration, once per process as a rule,
    from any thread. It must be quick and import no library: the class behind
    `import_path` is imported when somebody asks for it. Every backend that is
    declared needs an entry point of its name in the group `rhapsody.backends`,
    which names the module (or object) with this hook.

    Returns:
        One `BackendSpec`, or several where several entry points name this module.
    """
    raise NotImplementedError  # a specification is never called


@hookspec
def rhapsody_workflow_started(engine: ObservedEngine) -> None:
    """Tells that an engine was made and its backends were started.

    Called once per engine, on its loop, before any task is made.

    Args:
        engine: The engine, whose attributes may be read.
    """


@hookspec
def rhapsody_workflow_finished(engine: ObservedEngine, summary: Summary) -> None:
    """Tells that an engine was shut down: no event of it comes after this.

    Called once per engine, on its loop, also where the workflow failed.

    Args:
        engine: The engine.
        summary: What happened: counters in `stats`, `seconds`, and what could not be stopped.
    """


@hookspec
def rhapsody_task_events(engine: ObservedEngine, events: Sequence[TaskEvent]) -> None:
    """Tells what happened to tasks and blocks.

    Called on the engine's loop with what happened since the last call, in order
    and in batches. It must be quick: the loop waits for it.

    Args:
        engine: The engine.
        events: The changes; shared with other plugins and not to be changed.
    """


@hookspec
def rhapsody_prepare_task(engine: ObservedEngine, task: TaskDescription) -> None:
    """May change a task's description before anything else looks at it.

    Called on the engine's loop, once per attempt, when the task's dependencies
    have their values and no backend has been chosen. An exception fails the task
    with it.

    Args:
        engine: The engine.
        task: The description, to be changed in place; not its `uid`.
    """


@hookspec
def rhapsody_select_backend(
    engine: ObservedEngine, task: TaskDescription, candidates: Sequence[str]
) -> str | None:
    """Chooses the backend for a task that names none, where several are attached.

    Called on the engine's loop after `rhapsody_prepare_task`. Plugins are asked in
    turn until one answers; not for a task that has gone on to one of its `other_backends`.

    Args:
        engine: The engine.
        task: The description.
        candidates: The names of the attached backends that can run the task, and do not end
            before it would, the default one first.

    Returns:
        One of the candidates, or `None` to leave the choice to others and, in the
        end, to the engine, which takes the default backend.
    """


@hookspec
def rhapsody_lookup_results(
    engine: ObservedEngine, tasks: Sequence[LookupTask]
) -> Sequence[Recorded | None] | Awaitable[Sequence[Recorded | None] | None] | None:
    """Finds results of tasks that need not run again.

    Called on the engine's loop with a batch of tasks that are about to be
    submitted: their input files are found and not linked yet. Plugins are asked in
    turn for the tasks that have no result yet. Services, tasks with `cache=False` and
    attempts after the first are not looked up.

    Args:
        engine: The engine.
        tasks: Copies of the descriptions, each with the task's settings and inputs.

    Returns:
        For each task `Recorded(value)` where there is a result, which may be
        `None` itself, else `None`; or `None` alone where there is no result for any.
        Or an awaitable of that, such as where files are read off the loop: these
        tasks wait until it is done, while the loop and all other tasks go on.
    """


@hookspec
def rhapsody_record_results(
    engine: ObservedEngine, records: Sequence[Record]
) -> Awaitable[Sequence[Exception | None] | None] | None:
    """Record results before their futures are set.

    Called on the engine's loop with a batch of tasks that succeeded, before their
    futures are set.

    Args:
        engine: The engine.
        records: The tasks and their results.

    Returns:
        `None`, or an awaitable: the futures of this batch are held until it is
        done, while the loop and all other tasks go on. It may return an exception or `None`
        for each record: the task fails with the exception.
    """


@hookspec
def rhapsody_commands(cli: CommandLine) -> None:
    """Adds commands to the command line.

    Called when the command `rhapsody` starts, before arguments are read; it must
    be quick.

    Args:
        cli: Where commands are added.
    """
