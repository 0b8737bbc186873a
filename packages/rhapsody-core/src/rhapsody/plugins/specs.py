"""Hook specifications, and the values that plugins and the engine exchange.

Hooks declare backends, and observe and change tasks; backend classes define how tasks run. Hooks
are synchronous, and receive batches where there would be many calls. `rhapsody.plugins.manager`
calls the hooks and isolates their errors.

To add a hook, write a function here, add a decorator to `rhapsody.plugins.hooks` and an attribute
to `rhapsody.plugins.manager.EngineHooks`, and call the hook in the engine.
"""

from __future__ import annotations

import asyncio
import keyword
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NotRequired, Protocol, get_origin

import pluggy

from rhapsody.capabilities import Capabilities
from rhapsody.cards import BAD, GOOD, Card
from rhapsody.data import SavedFile
from rhapsody.errors import Failure, UsageError
from rhapsody.masking import MIN_SECRET_LENGTH, mask, merged, secrets_of
from rhapsody.plugins.options import BackendOption
from rhapsody.states import TasksMainStates
from rhapsody.task import NodeSample, TaskDescription, Usage

if TYPE_CHECKING:
    import argparse

    from rich.table import Table

__all__ = [
    "API_VERSION",
    "PROJECT",
    "AttemptFiles",
    "BackendSpec",
    "CommandLine",
    "CommandOption",
    "LookupTask",
    "ObservedEngine",
    "Record",
    "Recorded",
    "StartedRun",
    "Stats",
    "Summary",
    "TaskCall",
    "TaskEvent",
    "TaskFiles",
    "UsageError",
    "hookimpl",
    "hookspec",
    "rhapsody_backends",
    "rhapsody_commands",
    "rhapsody_lookup_results",
    "rhapsody_node_samples",
    "rhapsody_observers",
    "rhapsody_prepare_task",
    "rhapsody_record_results",
    "rhapsody_run_options",
    "rhapsody_run_started",
    "rhapsody_select_backend",
    "rhapsody_task_calls",
    "rhapsody_task_events",
    "rhapsody_trace_tasks",
    "rhapsody_workflow_finished",
    "rhapsody_workflow_started",
    "split_import_path",
]

PROJECT: str = "rhapsody"
hookspec: pluggy.HookspecMarker = pluggy.HookspecMarker(PROJECT)
hookimpl: pluggy.HookimplMarker = pluggy.HookimplMarker(PROJECT)
"""Decorator that marks a function or method as the implementation of the hook of the same name."""

API_VERSION: int = 1
"""The version of the plugin interface: these hooks and the backend classes.

A plugin that was written for another version is not used. A backend declares its version in
`BackendSpec.api_version`, and a plugin in the group `rhapsody.plugins` in the attribute
`rhapsody_api_version` of its module or object. Without a declaration, it is version 1.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSpec:
    """A plugin's declaration of one backend. Cheap to create: it imports no library.

    Attributes:
        name: The backend's name, which must equal the name of its entry point. Names are
            case-insensitive, and `-` and `_` are equivalent.
        import_path: The class to import when the backend is requested, as `"package.module:Class"`.
        summary: A one-line summary, for tables.
        api_version: The version of the plugin interface that the plugin was written for. The
            default is 1, not the installed version: a plugin that does not say it fits no other.
        requires: Distribution requirements (`"distributed>=2024.1"`) that must be installed for
            the backend to be usable. The metadata of the installed distributions is checked;
            nothing is imported.
        capabilities: The backend's capabilities; `None` if they depend on the instance.
        install_hint: The command that installs missing requirements.
        options: The options that the backend accepts, as arguments of its class or as keys of its
            argument `resources`. They document the backend, and settings in profiles are checked
            against them without importing the class. If there are none, every name is accepted.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: The name is empty, the import path is malformed, or two options have the same
            name.
    """

    name: str
    import_path: str
    summary: str = ""
    api_version: int = 1
    requires: Sequence[str] = ()
    capabilities: Capabilities | None = None
    install_hint: str = ""
    options: Sequence[BackendOption] = ()

    def __post_init__(self) -> None:
        for name, kind, words in (
            ("name", str, "a string"),
            ("import_path", str, "a string"),
            ("summary", str, "a string"),
            ("api_version", int, "a number"),
            ("requires", Sequence, "a list of strings"),
            ("capabilities", Capabilities | None, "a Capabilities or None"),
            ("install_hint", str, "a string"),
            ("options", Sequence, "a list of BackendOptions"),
        ):
            value = getattr(self, name)
            fits = isinstance(value, kind)
            if fits and name in ("requires", "options"):
                item = str if name == "requires" else BackendOption
                fits = not isinstance(value, str) and all(isinstance(one, item) for one in value)
            if not fits:
                raise TypeError(f"BackendSpec: {name} must be {words}, got {value!r}")
        if not self.name.strip():
            raise ValueError("BackendSpec: name must not be empty")
        names: set[str] = set()
        for option in self.options:
            if option.name in names:
                raise ValueError(f"BackendSpec: two options are named {option.name!r}")
            names.add(option.name)
        split_import_path(self.import_path)


def split_import_path(path: str) -> tuple[str, str]:
    """Split `"package.module:Class"` into the module and the qualified class name.

    Args:
        path: The path; without a colon, the part after the last dot is the class.

    Returns:
        The module and the class name.

    Raises:
        ValueError: The path is malformed.
    """
    module, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    parts = [*module.split("."), *name.split(".")]
    if all(part.isidentifier() and not keyword.iskeyword(part) for part in parts):
        return module, name
    raise ValueError(
        f"import path must be 'package.module:Class' or 'package.module.Class', got {path!r}"
    )


@dataclass(slots=True)
class Stats:
    """Counters of one engine since its creation.

    Attributes:
        tasks: Number of tasks and blocks that were called.
        done: Number of futures with a result.
        failed: Number of futures with an exception.
        cancelled: Number of futures that were canceled.
        recorded: Number of tasks that did not run because a plugin had recorded their results.
        retried: Number of failed attempts that were followed by another attempt.
        lost: Number of attempts that were lost because of the infrastructure, plus the number of
            values that backends held and lost.
        late: Number of state updates that were ignored because they arrived too late, out of order
            or twice.
        unknown: Number of state updates that were ignored because the task or the state is unknown.
        skipped: Number of futures in `failed` whose tasks did not run because a dependency failed.
        fallbacks: Number of futures in `done` whose result is the fallback, because every attempt
            has failed.
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
    fallbacks: int = 0

    def __str__(self) -> str:
        """Return the counts of tasks by outcome, without zeros except for `done`."""
        counts = {
            "failed": self.failed - self.skipped,
            "skipped": self.skipped,
            "canceled": self.cancelled,
            "unfinished": self.tasks - self.done - self.failed - self.cancelled,
            "retried": self.retried,
        }
        parts = [f"{self.recorded} of them reused"] if self.recorded else []
        parts += [f"{self.fallbacks} by fallback"] if self.fallbacks else []
        how = f" ({', '.join(parts)})" if parts else ""
        words = [f"{number} {word}" for word, number in counts.items() if number]
        return ", ".join([f"{self.done} done{how}", *words])


Outcome = Literal["done", "failed", "interrupted"]
"""Outcome of an engine, or of a call of `rhapsody run`."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Summary of a run, passed to `rhapsody_workflow_finished`.

    Attributes:
        uid: The engine's uid.
        stats: The engine's counters.
        seconds: Wall-clock time from the start of the engine, including its backends, to its end.
        still_running: Uids of tasks whose work could not be stopped.
        problems: Descriptions of problems during the shutdown.
        graph: For a dry run, the uid and name of each call, and the uids of its dependencies;
            otherwise empty.
        unawaited: Number of failed tasks and blocks that were never awaited.
        backends: The result of each backend's `ManagedBackend.account` by backend name; empty
            results are omitted.
        results: Files that tasks created and that still exist.
        stale: Files of an earlier run at the destinations of results that this run did not
            produce, because their tasks failed, were skipped or were canceled.
        missing: Output files of reused tasks that no longer exist, for example because
            `rhapsody clean` has removed them. Files with a destination, and files that other tasks
            read, are not included.
        disk_use: Bytes in the directory of the runs (`.rhapsody`, or `work_dir`), or 0 if this run
            has left nothing there. Counting stops after half a second, so the number may be too
            small.
        cut_short: True if the remaining tasks were canceled because of failures; see `fail_fast`
            and `max_failures` of `WorkflowEngine.create`.
        held_back: True if tasks were held back for the next run because their backend was about to
            end.
        outcome: `"interrupted"` after a signal, or if the reader of standard output has exited;
            `"failed"` if a failure was never awaited, any other exception left the `async with`
            block, or tasks were held back or canceled because of failures; otherwise `"done"`.
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
    missing: tuple[SavedFile, ...] = ()
    disk_use: int = 0
    cut_short: bool = False
    held_back: bool = False
    outcome: Outcome = "done"

    def _repr_html_(self) -> str:
        """Return the summary as a notebook shows it."""
        return self._card().html()

    def __rich__(self) -> Table:
        """Return the summary as rich shows it."""
        return self._card().rich()

    def _card(self) -> Card:
        from datetime import timedelta

        whole = timedelta(seconds=round(self.seconds))
        rows = {
            "outcome": self.outcome,
            "tasks": str(self.stats),
            "time": f"{self.seconds:.1f} s" if self.seconds < 60 else str(whole),
            "results": _few([str(file.path) for file in self.results]),
            "stale results": _few([str(file.path) for file in self.stale]),
            "missing results": _few([str(file.path) for file in self.missing]),
            "still running": _few(self.still_running),
            "problems": _few(self.problems),
        }
        return Card(f"Summary of {self.uid}", GOOD if self.outcome == "done" else BAD, rows)


def _few(texts: Sequence[str]) -> str:
    """Return the first texts, one per line, and the number of the others."""
    more = [f"and {len(texts) - 3} more"] if len(texts) > 3 else []
    return "\n".join([*texts[:3], *more])


class ObservedEngine(Protocol):
    """Attributes of a `WorkflowEngine` that hooks may read, on the engine's loop only."""

    @property
    def uid(self) -> str:
        """The engine's uid, which is the prefix of all task uids that it passes to its backends."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The engine's event loop, on which hooks are called."""

    @property
    def log(self) -> logging.Logger:
        """The engine's logger."""

    @property
    def work_dir(self) -> Path:
        """The absolute path of the engine's directory, which contains the sandboxes."""

    @property
    def dry_run(self) -> bool:
        """True if tasks are not run."""

    @property
    def options(self) -> Mapping[str, Any]:
        """The options of the engine that differ from their defaults, by name."""

    @property
    def stats(self) -> Stats:
        """The engine's counters."""

    @property
    def summary(self) -> Summary | None:
        """The summary of the run, or `None` before its end."""

    @property
    def backends(self) -> Mapping[str, Any]:
        """The attached backends by name, the default one first."""

    @property
    def dependencies(self) -> Mapping[str, tuple[Mapping[str, str], ...]]:
        """The `uid` and `name` of each dependency of each unfinished task and block, by uid."""

    @property
    def queue(self) -> tuple[str, ...]:
        """Uids of tasks that are ready and not yet submitted."""

    @property
    def running(self) -> tuple[str, ...]:
        """Uids of tasks and blocks that are running, including services."""


class TaskCall(NamedTuple):
    """One call of a task or block. Immutable; shared by all observers.

    Attributes:
        uid: The uid in the engine, `task.000001`.
        name: The task's name.
        kind: `"function"`, `"executable"` or `"block"`.
        call: The call as Python code, with shortened arguments and without secrets, such as
            `align('reads_07.fq', threads=2)`.
        time: Seconds since the epoch.
        block: The uid of the block in which the call was made, or `None`.
        scope: The scope in which the call was made, or `None`.
        dependencies: The uids of the tasks and blocks for which the call waits.
        resources: The requested resources that differ from the defaults of `Resources`, by name.
            Empty if they are the defaults, or are chosen for each attempt by a function.
        settings: The other settings that differ from their defaults, by the names of
            `rhapsody.TaskSettings`, as values that JSON can represent. Only the names of variables
            in `environment` are included, and functions are represented by their names.
        secrets: The values of the variables in `environment` with their names, for `masked`.
    """

    uid: str
    name: str
    kind: Literal["function", "executable", "block"]
    call: str
    time: float
    block: str | None = None
    scope: str | None = None
    dependencies: tuple[str, ...] = ()
    resources: Mapping[str, Any] = MappingProxyType({})
    settings: Mapping[str, Any] = MappingProxyType({})
    secrets: tuple[tuple[str, str], ...] = ()

    def masked(self, text: str) -> str:
        """Return text about the task, such as its output, without secrets.

        The values of the task's `environment`, and of variables of this process whose names look
        secret, are replaced with the variables' names.
        """
        if len(text) < MIN_SECRET_LENGTH:
            return text
        return mask(text, merged(self.secrets, secrets_of()))


class AttemptFiles(NamedTuple):
    """The files of an attempt that has ended. Immutable.

    Attributes:
        inputs: The paths of the declared input files, by name; `None` for a file that the engine
            cannot read.
        outputs: The paths of the declared files and directories that the attempt wrote, by name:
            the destination of each saved one, and the path in the sandbox of the others.
        stdout: The path of the file with the standard output if `capture="files"` is set.
        stderr: The same for standard error.
    """

    inputs: Mapping[str, str | None] = MappingProxyType({})
    outputs: Mapping[str, str] = MappingProxyType({})
    stdout: str | None = None
    stderr: str | None = None


class TaskEvent(NamedTuple):
    """One change of one task or block. Immutable; shared by all observers.

    Attributes:
        uid: The uid of the task or block in the engine, such as `task.000001`.
        name: The name of the task or block.
        attempt: The attempt's number, counted from 1.
        state: The canonical state that was entered.
        native: The backend's name for the state, `"reused"` if a plugin has found the task's
            result, `"fallback"` if every attempt has failed and the fallback is the result, or
            `None` if the engine itself changed the state.
        backend: The backend's name, or `None` before a backend is chosen.
        time: Seconds since the epoch.
        monotonic: Seconds on the engine's monotonic clock, to compute durations.
        worker: The worker or host, if the backend reports it.
        scope: The scope in which the task was called.
        error: The exception of an attempt that failed; another attempt may follow. The state is
            DONE if the fallback is the result.
        sandbox: The attempt's directory; `None` if it has none.
        stdout: The standard output of an attempt that has ended; `None` if it was not captured, or
            was written only to files.
        stderr: The same for standard error.
        kind: `"function"`, `"executable"` or `"block"`.
        exit_code: The exit code of an executable that has ended.
        usage: The resources that an attempt has used, if its backend reports them.
        retried: True if the attempt has failed and another one follows.
        files: The files of an attempt that has ended; `None` if it has none.
        resources: The resources of an attempt that has ended, as in `TaskCall`, if a function has
            chosen them for this attempt; otherwise `None`.
        interval: The times, in seconds since the epoch, between which an attempt has run, if its
            backend reports them. Otherwise, use the times of the events.
        failure: What is known about the failure, as data without secrets, if `error` is set.
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
    exit_code: int | None = None
    usage: Usage | None = None
    retried: bool = False
    files: AttemptFiles | None = None
    resources: Mapping[str, Any] | None = None
    interval: tuple[float, float] | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class TaskFiles:
    """The files and directories that a task created.

    Attributes:
        sandbox: The task's directory, on the file system of the backend that ran it.
        paths: The path of each declared file, by name.
        matches: The names of the files that match each declared pattern, by pattern.
        places: The destination of each saved file by name; see `OutputFile`.
        shared: True if the task declared no files, so that dependents receive all of its files.
        stays: True if the sandbox stays on disk, because of `keep_sandboxes` or because the result
            is a path in it.
        missing: Names of a recorded task's files that no longer exist. The recorded task runs again
            if a task that must run reads one of these files, or if one of them must be saved.
        has_content: Function that returns True if the file or directory at a path has the recorded
            content of one of a recorded task's files. It takes the file's name and the path.
    """

    sandbox: str
    paths: Mapping[str, str]
    matches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    shared: bool = False
    stays: bool = False
    missing: frozenset[str] = frozenset()
    has_content: Callable[[str, str], Awaitable[bool]] | None = None


@dataclass(frozen=True, slots=True)
class Recorded:
    """Earlier result that a plugin has found for a task, so that the task does not run.

    Attributes:
        value: The result, which may be `None`.
        files: The files that the task created, or `None`. Dependents read the files at
            `files.paths`. The files are also copied to their destinations in this run, except those
            whose copies in `files.places` are already there.
        stdout: The standard output that the task's future reports, or the path of the file that
            contains it.
        stderr: The same for standard error.
        exit_code: An executable's exit code.
        computed: Time at which the run that computed the result began, in seconds since the epoch;
            see `LookupTask.after`.
    """

    value: Any
    files: TaskFiles | None = None
    stdout: str | None = None
    stderr: str | None = None
    exit_code: int | None = None
    computed: float | None = None


class Record(NamedTuple):
    """A completed task, passed to `rhapsody_record_results` before its future is set.

    Attributes:
        uid: The task's uid in the engine, such as `task.000001`.
        task: The attempt's description, with the values that the backend has added.
        value: The future's result.
        settings: The task's `cache` and `version` settings.
        inputs: The paths of the task's input files by name, as in `LookupTask`.
        files: The files that the task created, or `None` if the task had no sandbox. Declared files
            are kept until the engine ends, or longer if the run failed.
        stdout: The task's standard output, or the path of the file that contains it.
        stderr: The same for standard error.
        exit_code: An executable's exit code.
        texts: The strings and paths among the arguments of an executable, as in `LookupTask`.
        makes_again: `None` for an ordinary task. If the task ran only to recreate missing files of
            a recorded result: the `uid` of the `LookupTask` to which a plugin returned this result.
            The `value` of such a task is not used.
        made_for: The tasks that have requested the recreated files so far. A task is listed by its
            `makes_again` or, if that is `None`, by its uid.
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
    """Description of a task whose result is looked up: a mapping with additional keys.

    The plugin that records the task's result may set `identity` and `watch`, which backends then
    receive.

    A service among the arguments is replaced with `("service", name, index)`, where `index` is its
    index in `services`, because its readiness information, such as a port, differs from run to run.
    For an executable, `args` contains these tuples, and each piece of readiness information in the
    command is replaced with its index between two NUL characters.

    A service is looked up before it starts, so that a plugin can examine what the service depends
    on. It always runs. If it is an executable, `function` is the function that returns its command,
    `args` and `kwargs` are the arguments of this function, `opened` contains the files that it
    opened in any directory, and `interval` begins with the call of this function.

    Attributes:
        settings: The task's `cache` and `version` settings.
        inputs: The paths of the task's input files by name. The files come from disk, other tasks
            and URLs, and are not in the task's sandbox yet. The path is `None` for a file that
            cannot be read on the engine's host. The mapping must not be modified.
        implicit: The sandboxes of dependencies that declare no output files, and whose files the
            task receives; see `implicit_data` of `WorkflowEngine.create`.
        texts: The strings and paths among the arguments of an executable, which may name files.
        shares_memory: True if the task's backend runs functions in the process of the engine.
        services: The uids of the services that the task, or a block that it was called in, depends
            on. These services have been looked up before.
        addresses: The readiness information of each service of the engine that was looked up and
            has become ready: the values of its first start and of its restarts, by the uid of its
            first attempt. The engine updates the mapping during the run; it must not be modified.
            There is no such key before the first service was looked up.
        result_settings: The keys in `task_backend_specific_kwargs` that may change the result; see
            `Capabilities.result_settings`. There is no such key if there are no backend-specific
            settings.
        after: The names of the tasks and blocks that the task comes after (`after=` of the task, or
            of a block that it was called in), except services. The value is the latest
            `Recorded.computed` of the tasks with this name; infinite if one of them has run in this
            run or its result has no such time. For a block, the tasks that it has called or waited
            for before it began count, and the value is 0 if there are none. A future of asyncio has
            the name `asyncio future` and the value infinity.
        destinations: The paths to which outputs will be saved, and to which this run has not saved
            anything so far, by name of the output; for a pattern, the directory of the files that
            match it. See `OutputFile`.
    """

    settings: Mapping[str, Any]
    inputs: Mapping[str, str | None]
    given: Sequence[str]
    implicit: Sequence[str]
    texts: Sequence[str]
    shares_memory: bool
    services: Sequence[str]
    addresses: NotRequired[Mapping[str, Sequence[Any]]]
    result_settings: NotRequired[Collection[str]]
    after: Mapping[str, float]
    destinations: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOption:
    """Option of `WorkflowEngine.create` that a plugin implements.

    Attributes:
        name: The name, which is an argument of `WorkflowEngine.create`.
        default: The value if the option is not set.
        help: A description.
        check: Function that returns the value to use, or raises a `TypeError`, `ValueError` or
            `OSError`; `None` to accept all values. The default is not checked.
        is_path: True if the value may be a path. In a profile, `~` and variables in it are
            replaced, and a relative path starts at the directory of the file.
        in_runs: The value under `rhapsody run`, except in a dry run, if nothing else sets one;
            `None` for `default`.
        instead_of_flag: The alternative, if `rhapsody run -e` does not accept the option.
        instead_of_key: The alternative, if profiles do not accept the option.
    """

    name: str
    default: Any = None
    help: str = ""
    check: Callable[[Any], Any] | None = None
    is_path: bool = False
    in_runs: Any = None
    instead_of_flag: str = ""
    instead_of_key: str = ""


@dataclass(frozen=True, slots=True)
class CommandOption:
    """Option of a plugin, or of one of its export formats.

    Attributes:
        name: The name, an identifier. The option on the command line is `--` with this name, in
            which `-` replaces `_`. In a profile, the name is a key of the plugin's table.
        type: The type of the value: `str`, `int`, `float`, `pathlib.Path`, a `Literal` of strings,
            `list[str]` for an option that may be repeated, or `bool` for an option without a value.
            The value is `None`, or `False` for `bool`, if the option is not given. In a path, `~`
            is replaced; in a profile, a relative path starts at the directory of the file.
        help: A description.
        metavar: The name of the value in the help.
        group: The name of a group of options that exclude each other on the command line.
        in_profiles: False if the option is only on the command line.

    Raises:
        TypeError: The name is not an identifier, or the type is none of the types above.
    """

    name: str
    type: Any = str
    help: str = ""
    metavar: str = ""
    group: str = ""
    in_profiles: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise TypeError(f"CommandOption: name must be an identifier, got {self.name!r}")
        types = (str, int, float, bool, Path, list[str])
        if self.type not in types and get_origin(self.type) is not Literal:
            raise TypeError(f"CommandOption {self.name!r}: unsupported type {self.type!r}")

    @property
    def default(self) -> bool | None:
        """The value of an option that is not given, `False` for `bool` and `None` for others."""
        return False if self.type is bool else None

    @property
    def flag(self) -> str:
        """The option on the command line, such as `--dashboard-port`."""
        return f"--{self.name.replace('_', '-')}"


@dataclass(frozen=True, slots=True)
class StartedRun:
    """Call of `rhapsody run`, passed to `rhapsody_run_started`.

    Attributes:
        program: The script or module, as on the command line.
        dry_run: True if tasks are not run.
        options: The values of the options that the plugin has declared, by name, from the command
            line or the profile.
        arguments: The script's own arguments.
        quiet: True if neither progress nor the summary is shown.
        path: The path of the script's file.
        is_module: True if `program` is a module.
        function: The name of the function that is called with an engine, if the command line names
            one.
        calls_function: True if a function is called with an engine, and False if the script creates
            its engines.
        note: Function that prints a line on standard error.
    """

    program: str
    dry_run: bool
    options: Mapping[str, Any]
    arguments: tuple[str, ...] = ()
    quiet: bool = False
    path: str = ""
    is_module: bool = False
    function: str | None = None
    calls_function: bool = False
    note: Callable[[str], None] = print


class CommandLine(Protocol):
    """Command line, passed to `rhapsody_commands` so that plugins can add commands and formats."""

    def add_command(
        self,
        name: str,
        help: str,
        configure: Callable[[argparse.ArgumentParser], object] | None,
        run: Callable[[argparse.Namespace], int | None],
    ) -> None:
        """Add a command, called as `rhapsody NAME ...`.

        Args:
            name: The command's name.
            help: A one-line description, for the list of commands.
            configure: Callable that receives the command's parser and adds arguments to it; called
                when the command or its help is used. `None` if the command takes no arguments.
            run: Callable that receives the parsed arguments, and returns the exit code or `None`
                for exit code 0. If it raises a `RhapsodyError`, the error is shown without a
                traceback, and the exit code is 2 for a `UsageError` and 1 for all others.

        Raises:
            ValueError: The name is invalid, or a command with this name exists.
        """
        ...

    def add_export_format(
        self,
        name: str,
        suffix: str,
        write: Callable[..., str | None],
        options: Sequence[CommandOption] = (),
    ) -> None:
        """Add a format, written by `rhapsody export RUN --format NAME`.

        Args:
            name: The format's name.
            suffix: The end of the default file name, such as `".json"`; the rest is the run's name.
            write: Callable that receives the path of the run's record and the path to write, which
                does not exist, and the values of the options as keyword arguments. It may return a
                description of what it has written. `rhapsody.history` reads the record. If `write`
                raises a `RhapsodyError` or an `OSError`, the error is shown without a traceback,
                and the exit code is 1.
            options: Options of `rhapsody export` that only this format has.

        Raises:
            ValueError: The name is invalid, or a format with this name exists.
        """
        ...


@hookspec
def rhapsody_backends() -> BackendSpec | Iterable[BackendSpec]:
    """Declare the backends of a plugin.

    Called when the registry needs the declaration, normally once per process, from any thread. The
    hook must be quick and import no library: the class of `import_path` is imported when the
    backend is requested. For every declared backend, the group `rhapsody.backends` must contain an
    entry point with the backend's name whose value is the module (or object) with this hook.

    Returns:
        One `BackendSpec`, or several if several entry points name this module.
    """
    raise NotImplementedError  # a specification is never called


@hookspec
def rhapsody_engine_options() -> Iterable[EngineOption] | None:
    """Declare options of `WorkflowEngine.create` that the plugin implements.

    Called when an engine is created, and for commands that use profiles or engine options. The hook
    must be quick. The arguments of `WorkflowEngine.create` are those in its signature, so that type
    checkers know them; another plugin declares its options with `rhapsody_run_options`, and takes
    further arguments in its observer.

    Returns:
        The options, whose values `rhapsody_observers` receives.
    """


@hookspec
def rhapsody_observers(
    observers: Sequence[object],
    options: Mapping[str, Any],
    engine_options: Mapping[str, Any],
    sources: Mapping[str, str],
) -> Sequence[object] | None:
    """Add observers to an engine that is being created.

    Called once per engine. Use this hook if a plugin has a state for each engine, or has something
    to do only for some engines: its other hooks then cost nothing for the others. If the hook
    raises a `RhapsodyError`, the engine is not created.

    An observer may have these attributes: `shows_output`, if it shows the output of tasks;
    `shows_failures`, if it lists failures at the end; and `journal`, the path of a file with which
    later runs continue the work of this one.

    Args:
        observers: The observers that were passed to the engine.
        options: The values of the options that the plugin has declared, by name; see
            `rhapsody_run_options`.
        engine_options: The values of all options of the engine, by name.
        sources: Where these values come from, for those that are not defaults: `"program"`,
            `"command line"` or `"profile"`.

    Returns:
        Objects or modules whose functions are marked with `hookimpl`. They are called as if they
        were part of the plugin. `None` if there is none.
    """


@hookspec
def rhapsody_workflow_not_started() -> None:
    """Release what an observer holds, because its engine could not be started.

    Called instead of `rhapsody_workflow_finished`, on the engine's loop.
    """


@hookspec
def rhapsody_workflow_started(engine: ObservedEngine) -> None:
    """Observe that an engine has been created and its backends have been started.

    Called once per engine, on its loop, before any task is called. If the hook raises a
    `UsageError`, the engine is shut down and the error is raised.

    Args:
        engine: The engine, whose attributes may be read.
    """


@hookspec
def rhapsody_workflow_finished(
    engine: ObservedEngine, summary: Summary
) -> Awaitable[object] | None:
    """Observe that an engine has been shut down; the engine reports no further events.

    Called once per engine, on its loop, even if the workflow failed.

    Args:
        engine: The engine.
        summary: The summary of the run.

    Returns:
        `None`, or an awaitable, for example of a request to a server. The end of `async with` and
        `shutdown()` wait for it for at most 10 seconds; then it is canceled.
    """


@hookspec
def rhapsody_task_calls(engine: ObservedEngine, calls: Sequence[TaskCall]) -> None:
    """Observe calls of tasks and blocks.

    Called on the engine's loop with a batch of calls, in order, before the first events of these
    tasks. The hook must be quick: the loop waits for it.

    Args:
        engine: The engine.
        calls: The calls, which are shared with other plugins and must not be modified.
    """


@hookspec
def rhapsody_task_events(engine: ObservedEngine, events: Sequence[TaskEvent]) -> None:
    """Observe changes of tasks and blocks.

    Called on the engine's loop with a batch of changes, in order. The hook must be quick: the loop
    waits for it.

    Args:
        engine: The engine.
        events: The changes, which are shared with other plugins and must not be modified.
    """


@hookspec
def rhapsody_node_samples(engine: ObservedEngine, samples: Sequence[NodeSample]) -> None:
    """Observe the load of nodes: that of the program, and those on which a backend runs tasks.

    Called on the engine's loop every few seconds, and once before `rhapsody_workflow_finished`. The
    hook must be quick: the loop waits for it. Nodes are only sampled if a plugin implements this
    hook, where psutil is installed, and by backends that implement `watch_nodes`.

    Args:
        engine: The engine.
        samples: The loads since the last sample of each node.
    """


@hookspec
def rhapsody_program_event(
    time: float, name: str, uid: str | None, details: Mapping[str, Any]
) -> None:
    """Observe an event of the program itself, or the start or end of the engine.

    Called on any thread, when the program calls a method of `WorkflowEngine.prof`.

    Args:
        time: Seconds since the epoch.
        name: The event's name.
        uid: The uid of the event's task, if any.
        details: Further values.
    """


@hookspec
def rhapsody_trace_tasks(engine: ObservedEngine, tasks: Sequence[TaskDescription]) -> None:
    """Set the trace context of attempts that are about to be submitted.

    Called on the engine's loop with a batch of descriptions for one backend, when the calls and
    events of these tasks so far have been reported. Tasks with recorded results are not submitted.
    The hook must be quick: the loop waits for it.

    Args:
        engine: The engine.
        tasks: The descriptions. The hook may set the key `trace_context` of each, and nothing else.
    """


@hookspec
def rhapsody_prepare_task(engine: ObservedEngine, task: TaskDescription) -> None:
    """Change a task's description before it is used.

    Called on the engine's loop, once per attempt, when the dependencies have finished and before a
    backend is chosen. If the hook raises an exception, the task fails with a `PluginError`.

    A function without declared files has no `sandbox` yet. If a hook sets one, that sandbox
    contains no files of the function's dependencies: `implicit_data` applies only to tasks that had
    a sandbox before.

    Args:
        engine: The engine.
        task: The description, to be modified in place, except for its `uid`.
    """


@hookspec
def rhapsody_select_backend(
    engine: ObservedEngine, task: TaskDescription, candidates: Sequence[str]
) -> str | None:
    """Choose the backend of a task that names none, if several backends are attached.

    Called on the engine's loop after `rhapsody_prepare_task`. Plugins are called one after the
    other until one chooses a backend. The hook is not called for a task that was moved to one of
    its `other_backends`.

    Args:
        engine: The engine.
        task: The description.
        candidates: The names of the attached backends that can run the task and have enough time
            left for it, the default one first.

    Returns:
        One of the candidates, or `None` for no choice. If no plugin chooses one, the engine uses
        the default backend.
    """


@hookspec
def rhapsody_lookup_results(
    engine: ObservedEngine, tasks: Sequence[LookupTask]
) -> Sequence[Recorded | None] | Awaitable[Sequence[Recorded | None] | None] | None:
    """Find results of tasks that need not run again.

    Called on the engine's loop with a batch of tasks that are about to be submitted; their input
    files are known but not linked yet. Each plugin receives only the tasks for which the plugins
    before it have found no result. Tasks with `cache=False` and attempts after the first are not
    looked up. What is found for a service is ignored; see `LookupTask`.

    A plugin that does this work on one thread may have a true attribute `looks_up_in_turn`: tasks
    that are called during a lookup are then looked up in one batch after it.

    Args:
        engine: The engine.
        tasks: Copies of the descriptions, each with the task's settings and inputs.

    Returns:
        A sequence with a `Recorded` for each task that has a result and `None` for each other task;
        or `None` if no task has a result. The hook may also return an awaitable of either, for
        example to read files on a thread; only the tasks of this batch wait for it.
    """


@hookspec
def rhapsody_preview_results(
    tasks: Sequence[LookupTask],
) -> Awaitable[Sequence[tuple[Recorded | None, str]] | None] | None:
    """Find results as `rhapsody_lookup_results` does, in a dry run, and explain what is found.

    Called for the objects that `rhapsody_run_started` adds, on the engine's loop.

    Args:
        tasks: Copies of the descriptions.

    Returns:
        An awaitable of the result of each task, or `None` if the task would run, and a phrase that
        says why. `None`, or an awaitable of `None`, if no result can be found.
    """
    raise NotImplementedError  # a specification is never called


@hookspec
def rhapsody_record_results(
    engine: ObservedEngine, records: Sequence[Record]
) -> Awaitable[Sequence[Exception | None] | None] | None:
    """Record results before their futures are set.

    Called on the engine's loop with a batch of tasks that succeeded.

    Args:
        engine: The engine.
        records: The tasks and their results.

    Returns:
        `None`, or an awaitable; only the futures of this batch wait for it. The awaitable may
        return a sequence with an exception or `None` for each record. A task with an exception in
        this sequence fails with that exception.
    """


@hookspec
def rhapsody_commands(cli: CommandLine) -> None:
    """Add commands to the command line.

    Called if the command line needs the commands or export formats of plugins: for a command that
    is not built in, for `rhapsody export`, and for `--plugins`. The hook must be quick, and import
    modules that it needs itself: every engine imports the module with the hook.

    Args:
        cli: The command line.
    """


@hookspec
def rhapsody_run_options() -> Iterable[CommandOption] | None:
    """Declare options of the plugin.

    An option is set by a flag of `rhapsody run`, or in a profile in the table
    `[plugins.DISTRIBUTION]` with the name of the plugin's distribution. The flag takes precedence.

    Called when the command line is parsed, and when an engine is created. The hook must be quick.

    Returns:
        The options, whose values `rhapsody_run_started` and `rhapsody_observers` receive.
    """


@hookspec
def rhapsody_run_started(run: StartedRun) -> AbstractContextManager[object] | None:
    """Take part in a call of `rhapsody run`.

    Called once, before the script starts. If the hook raises a `RhapsodyError`, the script does not
    start: the error is shown without a traceback, and the exit code is 2 for a `UsageError` and 1
    for all others.

    Args:
        run: The call with the values of the options.

    Returns:
        A context manager, or `None`. It is entered before the script starts, and left when the run
        has ended, also after an error, and its record is complete. If entering it returns an object
        other than `None`, the hooks of this object observe each engine of the run. An error when it
        is entered is treated as one of the hook.
    """


@hookspec
def rhapsody_run_ended(run: StartedRun, outcome: Outcome, exit_code: int) -> None:
    """Observe the end of a call of `rhapsody run`.

    Called once, before the context managers of plugins are left, for plugins whose hook
    `rhapsody_run_started` was called.

    Args:
        run: The call, as in `rhapsody_run_started`.
        outcome: `"done"`, `"failed"` or `"interrupted"`.
        exit_code: The exit code of the command.
    """
