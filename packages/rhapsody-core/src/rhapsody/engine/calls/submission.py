"""Submission of calls: each call becomes a future for the user and a task for the scheduler.

A call declares its output files, and depends on the earlier calls that declared its input files. An
output is identified by its destination and, if that was given separately or not at all, by its
name. `DeclaredFiles` decides which output an input stands for. The decision is made at the call: if
a later call declares the same output again, only calls made after it read the new version.
"""

from __future__ import annotations

import asyncio
import builtins
import contextvars
import dataclasses
import os
import threading
from asyncio import _get_running_loop as running_loop
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from itertools import chain
from operator import methodcaller
from pathlib import Path
from typing import Any

from rhapsody.aio import on_loop
from rhapsody.context import running_task
from rhapsody.data import InputFile, Output, OutputDir, SavedFile, given_path, output_name
from rhapsody.engine.calls.blocks import BlockFuture, calls_tasks, enclosing_block
from rhapsody.engine.calls.loop_objects import captured_loop_object, passed_loop_object
from rhapsody.engine.calls.sequences import Sequences
from rhapsody.engine.configuration.settings import Settings, TaskDefaults
from rhapsody.engine.core.backend_handles import BackendHandle, find
from rhapsody.engine.core.events import UnawaitedErrors
from rhapsody.engine.core.pushdown import PushDown, RemoteFuture
from rhapsody.engine.core.record import BlockRecord, Call, Repetition, TaskRecord
from rhapsody.engine.core.scheduler import Scheduler
from rhapsody.engine.core.states import FutureState
from rhapsody.engine.functions.arguments import PLAIN, ArgumentScan, search
from rhapsody.engine.functions.task_function import TaskFunction
from rhapsody.environments import SETTINGS, is_path
from rhapsody.errors import DataError, describe_error
from rhapsody.fsutil import RealPaths
from rhapsody.staging.inputs import states_at_call
from rhapsody.staging.stager import Stager
from rhapsody.task import Declaration, TaskFuture, facts_of, finished

current_scope: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "rhapsody_scope", default=None
)

Producer = TaskFuture[Any]
Producers = Mapping[int, Declaration]
"""Declared outputs that a call's inputs stand for, by the `id` of each input."""

_MAX_NAMES = 5
"""Maximum number of tasks that a message names."""

_loop_of = methodcaller("get_loop")
_all_plain = PLAIN.issuperset
_all_safe = (PLAIN | {TaskFuture}).issuperset  # on any event loop


class Submission:
    """Receiver of the calls of task functions, which creates a task for each call.

    Implements `rhapsody.engine.functions.task_function.Caller`.

    Args:
        uid: The engine's uid.
        loop: The engine's event loop.
        scheduler: The scheduler, which receives the tasks.
        backends: The attached backends; backends may be added later.
        unawaited: The counter of failures that were never awaited.
        pushdown: The handler of values that stay with a backend. If values may stay with a backend,
            new futures are instances of `RemoteFuture`.
        stager: Stager of the engine's files.
        task_defaults: The settings of tasks from the engine's profile.
        implicit_data: True if tasks receive files that dependencies left in their sandboxes.
        keep: True to store each call in `made`, for the graph of a dry run.

    Attributes:
        declared: Files that calls have declared as outputs.
        made: Uid, name and dependencies' uids of each call, if `keep` is true.
        failure: The internal error that ended the engine, or `None`.
        refused: Number of calls that were refused because the engine was shut down.
    """

    def __init__(
        self,
        uid: str,
        loop: asyncio.AbstractEventLoop,
        scheduler: Scheduler,
        backends: Mapping[str, BackendHandle],
        unawaited: UnawaitedErrors,
        pushdown: PushDown,
        stager: Stager,
        task_defaults: TaskDefaults,
        *,
        implicit_data: bool,
        keep: bool,
    ) -> None:
        self.uid: str = uid
        self.loop: asyncio.AbstractEventLoop = loop
        self._scheduler = scheduler
        self._backends = backends
        self._pushdown = pushdown
        self.task_defaults: TaskDefaults = task_defaults
        self._implicit_data = implicit_data
        self._numbers = {"task": 0, "block": 0}
        self._stager = stager
        self.declared: DeclaredFiles = DeclaredFiles(stager)
        self._keep = keep
        self._unawaited = unawaited
        self.made: list[tuple[str, str, tuple[str, ...]]] = []
        self.failure: BaseException | None = None
        self.refused: int = 0
        self._copies_contexts = False

    def attach(self, backend: BackendHandle) -> None:
        """Update the treatment of calls for a newly attached backend."""
        self._copies_contexts |= backend.here and not backend.dry

    @property
    def tasks_called(self) -> int:
        """Number of tasks that have been called; also the number of the last one."""
        return self._numbers["task"]

    def call(
        self,
        task: TaskFunction[Any, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        specific: Mapping[str, Any] | None,
        *,
        repeats: Repetition | None = None,
    ) -> TaskFuture[Any]:
        """Create a task or block for a call, and pass it to the scheduler.

        Args:
            task: The function or block that is called.
            args: The positional arguments of the call.
            kwargs: The keyword arguments of the call.
            specific: Backend-specific settings of this call; `None` to use those of `task`.
            repeats: The recorded call that this call repeats, or `None`. A repeating call declares
                no files.

        Returns:
            The future.

        Raises:
            RuntimeError: The engine is shut down, a future in the arguments belongs to another
                loop or to a block around this call, or a coroutine function uses an object of the
                program's loop.
            TypeError: A future is in a part of the arguments that is not searched for futures.
            ValueError: A container in the arguments contains itself, or containers are nested too
                deeply.
            DataError: An input is a temporary file that was removed, or could stand for several
                files; or two outputs have the same name.
            asyncio.CancelledError: The block that makes the call was canceled.
        """
        scheduler, is_block = self._scheduler, task.kind == "block"
        if scheduler.closing:
            raise self.closed_error(task.name)
        found, plain = None, not kwargs and _all_plain(map(type, args))
        if not plain:
            found = search(args, kwargs)
        if task.on_other_loop and not (
            task.searched and (plain or (not kwargs and _all_safe(map(type, args))))
        ):
            _require_own_loop_objects(task, args, kwargs)
        parent = enclosing_block.get()
        if parent is not None and parent.state.future is not FutureState.PENDING:
            if parent.state.future is FutureState.CANCELLED:
                raise asyncio.CancelledError(
                    f"block {parent.call.task.name!r} ({parent.future.uid}) was canceled"
                )
            parent = None  # the block has ended, but a thread or coroutine it started has not
        dependencies: tuple[asyncio.Future[Any], ...] = ()
        replaces = found is not None and found.replaces
        if replaces or task.settings.after:
            dependencies = self._dependencies(task, found, parent, repeats)
        if found is not None and (replaces or not found.is_flat):
            if found.outputs and not is_block:
                _require_distinct(task.name, found.outputs)
            if found.inputs and not (dependencies or is_block or task.settings.service):
                found.states = states_at_call(found.inputs, str(self._stager.directory))
            args, kwargs = found.copy(args, kwargs)

        number = self._numbers[task.prefix] = self._numbers[task.prefix] + 1
        future: TaskFuture[Any]
        if is_block or (dependencies and BlockFuture in map(type, dependencies)):
            future = BlockFuture(loop=self.loop)
        else:
            future = (RemoteFuture if self._pushdown.possible else TaskFuture)(loop=self.loop)
        called = task.at_call() if task.has_closure else task
        context: contextvars.Context | None = None
        if self._copies_contexts and not is_block:
            context = contextvars.copy_context()
            if enclosing_block.get() is not None or calls_tasks.get():
                context.run(_leave_block)
        call = Call(
            task, called, number, args, kwargs or None, specific, dependencies, found,
            current_scope.get(), repeats, context,
        )  # fmt: skip
        record = (BlockRecord if is_block else TaskRecord)(scheduler, call, future)
        if found is not None:
            if found.outputs and repeats is None and not is_block:
                found.destinations = self.declared.add(future, number, found.outputs)
            if found.producers:
                self.declared.read(future, found.inputs, found.producers)
        if self._keep:
            self.made.append((future.uid, task.name, dependency_uids(dependencies)))
        scheduler.add(record, parent)
        return future

    def _dependencies(
        self,
        task: TaskFunction[Any, Any],
        found: ArgumentScan | None,
        parent: TaskRecord | None,
        repeats: Repetition | None,
    ) -> tuple[asyncio.Future[Any], ...]:
        """Return the futures that a call waits for.

        Also store the producers of the call's input files in `found.producers`.

        Args:
            task: The function or block that is called.
            found: The futures and files in the arguments, or `None` if there are none.
            parent: The block in which the call is made, or `None`.
            repeats: The recorded call that this call repeats, or `None`.

        Raises:
            RuntimeError: A future belongs to another loop, or to a block around this call.
            DataError: See `DeclaredFiles.producers`.
        """
        dependencies = tuple(found.futures) if found is not None else ()
        if task.settings.after:
            dependencies = tuple(dict.fromkeys((*dependencies, *task.settings.after)))
        if found is not None and found.inputs and task.prefix == "task":
            if repeats is None:
                found.producers = self.declared.producers(task.name, found.inputs, dependencies)
            else:
                found.producers = repeats.producers
            writers = chain.from_iterable(each.futures for each in found.producers.values())
            dependencies = tuple(dict.fromkeys((*dependencies, *writers)))
        if not {self.loop}.issuperset(map(_loop_of, dependencies)):
            foreign = next(each for each in dependencies if each.get_loop() is not self.loop)
            raise RuntimeError(
                f"task {task.name!r} received a future of another event loop: {foreign!r}; "
                "await it there and pass its result"
            )
        around = parent
        while around is not None:
            if around.future in dependencies:
                raise RuntimeError(
                    f"task {task.name!r} was called inside block {around.call.task.name!r} with "
                    "that block's own future, so it would wait forever"
                )
            around = around.parent
        return dependencies

    def call_elsewhere(
        self, task: TaskFunction[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> TaskFuture[Any]:
        """Accept a call on the thread of a synchronous block or `main`; raise on other threads."""
        if self._scheduler.closing:
            raise self.closed_error(task.name)
        around = running_task()
        if around is not None and enclosing_block.get() is None and not calls_tasks.get():
            raise RuntimeError(
                f"task {task.name!r} was called in function task {around.name!r} ({around.uid}); "
                f"only the program and blocks call tasks: make {around.name!r} a block with "
                "@flow.block"
            )
        if running_loop() is not None:
            remedy = "create an engine on this loop with `await WorkflowEngine.create(...)`"
            raise self.foreign_loop_error(f"task {task.name!r}", remedy)
        if not self.loop.is_running():
            hint = "call tasks inside the coroutine that asyncio.run() or run_until_complete() runs"
            if hasattr(builtins, "__IPYTHON__"):  # its prompt runs the loop only to await
                hint = (
                    "put `await` into the same input, as in `await asyncio.gather(*flow.map(task, "
                    "items))`, or put the calls into `async def main(): ...` and `await main()`"
                )
            raise RuntimeError(
                f"task {task.name!r} was called, but its engine's event loop is not running: {hint}"
            )
        if enclosing_block.get() is None and not calls_tasks.get():
            raise RuntimeError(
                f"task {task.name!r} was called on thread {threading.current_thread().name!r}; "
                "call tasks on the thread of the engine's event loop or in a synchronous "
                "@flow.block"
            )
        future: TaskFuture[Any] = on_loop(self.loop, partial(task, *args, **kwargs))
        self.declared.called_on_thread(future)
        return future

    def unawaited(self, future: TaskFuture[Any]) -> None:
        """Count a failed future that was deleted without being awaited. Thread-safe."""
        self._unawaited.add(future)

    def declare(self, settings: Settings) -> Settings:
        """Check the settings of a definition against the engine's backends and named limits.

        Returns:
            The settings, with the names of attached backends and absolute paths.

        Raises:
            ValueError: No backend with this name is attached, a limit has another size in this
                engine, `implicit_data` is true but not that of the engine.
        """
        if settings.implicit_data and not self._implicit_data:
            raise ValueError(
                "implicit_data=True of a task has no effect in an engine with implicit_data=False; "
                "set implicit_data=False for the other tasks instead of for the engine"
            )
        if settings.backend is not None:
            name = find(self._backends, settings.backend).name
            settings = dataclasses.replace(settings, backend=name)
        if settings.other_backends:
            names = tuple(find(self._backends, name).name for name in settings.other_backends)
            settings = dataclasses.replace(settings, other_backends=names)
        paths: dict[str, Any] = {
            name: os.path.normpath(os.path.join(self._stager.directory, value))
            for name in ("cwd", *SETTINGS)
            if (value := getattr(settings, name)) and is_path(name, value)
        }
        if paths:
            settings = dataclasses.replace(settings, **paths)
        self._scheduler.limits.declare(settings.limit)
        return settings

    def foreign_loop_error(self, what: str, remedy: str) -> RuntimeError:
        """Return the error for a call on an event loop other than the engine's.

        Args:
            what: The call, for the message.
            remedy: The advice at the end of the message.
        """
        return RuntimeError(
            f"{what} of engine {self.uid} was called on a different event loop; {remedy}"
        )

    def closed_error(self, name: str) -> RuntimeError:
        """Return the error for a call after the engine has failed or was shut down."""
        if self.failure is not None:
            return RuntimeError(
                f"task {name!r} was called after engine {self.uid} had failed: "
                f"{describe_error(self.failure)}"
            )
        self.refused += 1
        return RuntimeError(
            f"task {name!r} was called after engine {self.uid} was shut down; await the coroutine "
            "that calls it before `async with` or `main` ends, for example with `asyncio.gather` "
            "or in a `TaskGroup`, or create a new engine"
        )


def dependency_uids(dependencies: Iterable[asyncio.Future[Any]]) -> tuple[str, ...]:
    """Return the uids of those dependencies that are tasks or blocks."""
    return tuple(future.uid for future in dependencies if isinstance(future, TaskFuture))


def _leave_block() -> None:
    """Change a copied context into that of a function task, which calls no tasks."""
    enclosing_block.set(None)
    calls_tasks.set(False)


def _require_own_loop_objects(
    task: TaskFunction[Any, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Raise a `RuntimeError` if a coroutine function would use an object of the program's loop."""
    found = passed_loop_object(task.function, args, kwargs)
    if found is None and not task.searched:
        found = captured_loop_object(task.function)
        task.searched = found is None
    if found is None:
        return
    what, value = found
    kind = f"an asyncio {type(value).__name__}"
    cure = f"make {task.name!r} a block with @flow.block, or create the object in the function"
    if isinstance(value, asyncio.Future):
        kind = "a future"
        cure = f"pass the future as an argument, or make {task.name!r} a block with @flow.block"
    elif isinstance(value, asyncio.Lock | asyncio.Semaphore):
        cure += "; limit= sets how many tasks run at the same time"
    raise RuntimeError(
        f"task {task.name!r}: {what} is {kind} of the program, but the coroutine runs on another "
        f"event loop, on which it may wait forever; {cure}"
    )


def _require_distinct(task: str, outputs: Sequence[Output]) -> None:
    names = [output.filename for output in outputs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"task {task!r} has two output files named {twice!r}; rename one of them")


@dataclasses.dataclass(slots=True)
class _Temporary:
    """Status of a temporary file.

    Attributes:
        unfinished: Number of tasks that read the file and have not ended.
        needed: True if the next run needs the file, because a reader failed or was canceled.
        removed: True if the file has been removed.
    """

    unfinished: int = 0
    needed: bool = False
    removed: bool = False


class DeclaredFiles:
    """Files that the calls of one engine have declared as outputs so far.

    Args:
        stager: The stager, which provides the base directory of destinations and removes temporary
            files.
    """

    def __init__(self, stager: Stager) -> None:
        self._stager = stager
        self._directory = stager.results.directory
        self._bases = tuple(dict.fromkeys((str(self._directory), str(stager.directory))))
        self._real = RealPaths()
        self._calls: dict[str, dict[int, Producer]] = {}  # by destination or name, then by number
        self._sequences = Sequences()
        self._temporary: dict[tuple[int, str], _Temporary] = {}  # by task and name

    def add(
        self, future: Producer, number: int, outputs: Iterable[Output]
    ) -> dict[str, str | None]:
        """Add the files that a call declares as outputs, and return their destinations by name."""
        declared: dict[str, str | None] = {}
        keys = []
        for output in outputs:
            place = declared[output.filename] = self._place(output)
            if not output.many:  # several calls may declare the same pattern
                if place:
                    keys.append(place)
                if not place or output._plain:
                    keys.append(output.filename)
                else:
                    self._stager.destinations[output.filename] = self._shown(place)
            if output.temporary:
                self._temporary[number, output.filename] = _Temporary()
        for key in keys:
            self._calls.setdefault(key, {})[number] = future
        self._sequences.add(number, keys)
        future.add_done_callback(self._ended)
        return declared

    def called_on_thread(self, future: Producer) -> None:
        """Let the sequence of this thread continue after a call, which was made on the loop."""
        facts = facts_of(future)
        if facts.destinations:
            self._sequences.continue_at(facts.number)

    def _place(self, output: Output) -> str | None:
        if not output.save:
            return None
        path = os.path.join(self._directory, output.save)
        if isinstance(output, OutputDir) or path.endswith("/") or os.path.isdir(path):
            path = os.path.join(path, output.filename)
        return self._real.of(os.path.normpath(path))

    def _shown(self, place: str) -> str:
        """Return a destination as an `InputFile` may name it, relative to a base if possible."""
        for base in self._bases:
            below = os.path.join(self._real.of(base), "")
            if place.startswith(below):
                return place.removeprefix(below)
        return place

    def _ended(self, future: Producer) -> None:
        """Replace a finished call's future with a copy without its result, to free the memory."""
        if future.cancelled() or future._exception is not None:  # readers must fail with it
            return
        facts = facts_of(future)
        number, destinations = facts.number, facts.destinations
        outcome = facts.outcome
        if outcome is not None:
            files = outcome.files
            if files.reference is not None:
                files = dataclasses.replace(files, reference=None)
            outcome = dataclasses.replace(outcome, stdout=None, stderr=None, files=files)
        stub = finished(future.get_loop(), facts.with_outcome(outcome))
        for name, place in destinations.items():
            for key in (name, place):
                calls = self._calls.get(key, {}) if key else {}
                if calls.get(number) is future:
                    calls[number] = stub

    def stale(self, saved: Iterable[SavedFile]) -> list[SavedFile]:
        """Return files of earlier runs at the destinations of tasks that failed or were canceled.

        Args:
            saved: The files that this run has saved, which are excluded.
        """
        fresh = {str(file.path) for file in saved}
        found = []
        for place, calls in self._calls.items():
            future = next(reversed(calls.values()))
            failed = future.cancelled() or (future.done() and future._exception is not None)
            if failed and os.path.isabs(place) and os.path.lexists(place) and place not in fresh:
                found.append(SavedFile(Path(place), future.name, future.uid))
        return found

    def producers(
        self, task: str, inputs: Iterable[InputFile], dependencies: Iterable[asyncio.Future[Any]]
    ) -> dict[int, Declaration]:
        """Return the declared outputs that a new call's inputs stand for, by `id` of each input.

        An output of a dependency that the user passes takes precedence over those of other calls.

        Args:
            task: The name of the task that is called.
            inputs: The input files of the call.
            dependencies: The dependencies that the user passes.

        Raises:
            DataError: An input is a temporary file that was removed, or could stand for several
                files.
        """
        passed: dict[str, Declaration] | None = None
        found: dict[int, Declaration] = {}
        for file in inputs:
            declared: Declaration | None = None
            if file._producer is not None:
                declared = Declaration((file._producer,), given_path(file), bound=True)
            elif file.remote_url is None:
                if passed is None:
                    passed = _declared_by(dependencies)
                if passed or self._calls:
                    declared = self._declaration(task, file, passed)
            if declared is not None:
                found[id(file)] = declared
                for producer in declared.futures:
                    self._require_present(producer, declared.name)
        return found

    def _require_present(self, producer: Producer, name: str) -> None:
        if not self._temporary:
            return
        temporary = self._temporary.get((facts_of(producer).number, name))
        if temporary is not None and temporary.removed:
            raise DataError(
                f"temporary file {name!r} of {producer.name!r} ({producer.uid}) "
                "was removed after its last reader had finished; call all tasks that read "
                "it before you await one of them, or omit temporary=True"
            )

    def read(self, reader: Producer, inputs: Iterable[InputFile], made_by: Producers) -> None:
        """Register a new call as a reader of the temporary files among its inputs.

        Args:
            reader: The future of the call.
            inputs: The input files of the call.
            made_by: The producers of the inputs; see `producers`.
        """
        for file in inputs if self._temporary else ():
            futures, name, _ = made_by.get(id(file), ((), "", True))
            for producer in futures:
                temporary = self._temporary.get((facts_of(producer).number, name))
                if temporary is not None:
                    temporary.unfinished += 1
                    done = partial(self._has_read, temporary, producer, name)
                    reader.add_done_callback(done)

    def _has_read(
        self, temporary: _Temporary, producer: Producer, name: str, reader: Producer
    ) -> None:
        temporary.unfinished -= 1
        if reader.cancelled() or reader._exception is not None:
            temporary.needed = True  # the next run may run this reader
        outcome = facts_of(producer).outcome
        if not (temporary.unfinished or temporary.needed) and outcome is not None:
            temporary.removed = (
                self._stager.discard(outcome.files.path_of(name)) or temporary.removed
            )

    def _declaration(
        self, task: str, file: InputFile, passed: Mapping[str, Declaration]
    ) -> Declaration | None:
        """Return the declared output that an input stands for, or `None` if there is none."""
        given, plain = given_path(file), output_name(file)
        keys = [self._real.of(os.path.normpath(os.path.join(b, given))) for b in self._bases]
        if plain is not None:
            keys.insert(0, plain)
        for key in keys:
            if key in passed:
                return passed[key]._replace(bound=plain is None)
        known = {key: calls for key in keys if (calls := self._calls.get(key))}
        if not known:
            return None
        number = None if plain is None else self._sequences.latest(known)
        if number is None:
            latest = {next(reversed(calls)) for calls in known.values()}
            number = max(latest)
            if plain is not None:
                on_disk = os.path.join(self._stager.directory, plain)
                several = len(latest.union(known.get(plain, ()))) > 1
                if several or (self._real.of(on_disk) not in known and os.path.exists(on_disk)):
                    if any(fnmatchcase(plain, key) for key in passed):
                        return None  # the dependency may have written it
                    raise self._ambiguous(task, plain, known, "" if several else on_disk)
        key = next(key for key, calls in known.items() if number in calls)
        future = known[key][number]
        declared = facts_of(future).destinations
        name = next(name for name, place in declared.items() if key in (name, place))
        return Declaration((future,), name, bound=plain is None)

    def _ambiguous(
        self, task: str, name: str, known: Mapping[str, Mapping[int, Producer]], on_disk: str
    ) -> DataError:
        futures = {number: future for calls in known.values() for number, future in calls.items()}
        names = [f"{future.name!r} ({future.uid})" for _, future in sorted(futures.items())]
        if on_disk:
            return DataError(
                f"task {task!r}: input file {name!r} is ambiguous: {names[0]}, a call of another "
                f"coroutine, block or thread, declared it, and there is a file {on_disk!r}; pass "
                f"future.file({name!r}) of that task, or InputFile('./{name}') for the file on disk"
            )
        more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
        return DataError(
            f"task {task!r}: input file {name!r} is ambiguous: {len(names)} calls of other "
            f"coroutines, blocks or threads declared it, {', '.join(names[:_MAX_NAMES])}{more}; "
            f"pass future.file({name!r}) of one of them, or InputFile('./{name}') for the file on "
            "disk"
        )


def _declared_by(dependencies: Iterable[asyncio.Future[Any]]) -> dict[str, Declaration]:
    """Return the outputs that dependencies declare, by name and by destination."""
    found: dict[str, Declaration] = {}
    for future in dependencies:
        if not isinstance(future, TaskFuture):
            continue
        for name, place in facts_of(future).destinations.items():
            for key in (name,) if place is None else (name, place):
                others: Sequence[Producer] = found[key].futures if key in found else ()
                found[key] = Declaration((*others, future), name, bound=False)
    return found
