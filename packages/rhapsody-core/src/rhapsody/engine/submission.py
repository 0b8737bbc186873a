"""Submission of calls: each becomes a future for the user and a task for the scheduler."""

from __future__ import annotations

import asyncio
import builtins
import contextvars
import dataclasses
import os
import threading
from asyncio import _get_running_loop as running_loop
from collections.abc import Iterable, Mapping
from functools import partial
from operator import methodcaller
from typing import Any

from rhapsody.aio import on_loop
from rhapsody.engine.arguments import PLAIN, ArgumentScan, search
from rhapsody.engine.backend_handles import BackendHandle, find
from rhapsody.engine.blocks import BlockFuture, calls_tasks, enclosing_block
from rhapsody.engine.events import UnawaitedErrors
from rhapsody.engine.promises import Producers, Promises
from rhapsody.engine.pushdown import PushDown, RemoteFuture
from rhapsody.engine.record import BlockRecord, Repetition, TaskRecord
from rhapsody.engine.scheduler import Scheduler
from rhapsody.engine.settings import Settings
from rhapsody.engine.states import FutureState
from rhapsody.engine.task_function import TaskFunction
from rhapsody.errors import describe_error
from rhapsody.staging.files import Stager
from rhapsody.task import TaskFuture

current_scope: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "rhapsody_scope", default=None
)

_loop_of = methodcaller("get_loop")
_all_plain = PLAIN.issuperset


class Submission:
    """The engine as its task functions see it (`rhapsody.engine.task_function.Caller`).

    Args:
        uid: The engine's uid.
        loop: Its event loop.
        scheduler: Receives the tasks.
        backends: The attached backends; may grow.
        unawaited: Counts failures that were never awaited.
        pushdown: Has the class of new futures.
        stager: The engine's files.
        here: The current directory when the engine was created, `None` if it was removed.
        keep: Keep the calls, for the graph of a dry run.

    Attributes:
        promises: Files that calls have declared as outputs.
        made: Uid, name and uids of dependencies of each call, if they are kept.
        failure: Fault in the engine itself, if there was one.
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
        *,
        here: str | None,
        keep: bool,
    ) -> None:
        self.uid: str = uid
        self.loop: asyncio.AbstractEventLoop = loop
        self._scheduler = scheduler
        self._backends = backends
        self._pushdown = pushdown
        self._here = here
        self._numbers = {"task": 0, "block": 0}
        self.promises: Promises = Promises(stager)
        self._keep = keep
        self._unawaited = unawaited
        self.made: list[tuple[str, str, tuple[str, ...]]] = []
        self.failure: BaseException | None = None

    @property
    def tasks_called(self) -> int:
        """Number of tasks that have been called, which is the number of the last one."""
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
        """Accept a call and return its future.

        Args:
            task: The function or block that is called.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            specific: Settings in the backend's own words, for this call.
            repeats: The recorded call that this one repeats. Such a call promises nothing new.

        Raises:
            RuntimeError: The engine is shut down, or a future in the arguments
                belongs to another loop or to a block around this call.
            ValueError: A container in the arguments holds itself.
        """
        scheduler = self._scheduler
        if scheduler.closing:
            raise self.closed_error(task.name)
        found = None
        if kwargs or not _all_plain(map(type, args)):
            found = search(args, kwargs)
        parent = enclosing_block.get()
        if parent is not None and parent.state.future is FutureState.CANCELLED:
            raise asyncio.CancelledError(f"block {parent.task.name!r} has been cancelled")
        elif parent is not None and parent.state.future is not FutureState.PENDING:
            parent = None  # it has ended, and left something behind that goes on
        dependencies: tuple[asyncio.Future[Any], ...] = ()
        if found is not None or task.settings.after:
            dependencies = self._dependencies(task, found, parent, repeats)
        if found is not None:
            args, kwargs = found.copy(args, kwargs)

        number = self._numbers[task.prefix] = self._numbers[task.prefix] + 1
        future: TaskFuture[Any]
        if task.prefix == "block" or (dependencies and BlockFuture in map(type, dependencies)):
            future = BlockFuture(loop=self.loop)
        else:
            future = (RemoteFuture if self._pushdown.possible else TaskFuture)(loop=self.loop)
        kind = BlockRecord if task.prefix == "block" else TaskRecord
        record = kind(
            scheduler, task, future, number, args, kwargs or None, specific, dependencies, found,
            current_scope.get(), repeats,
        )  # fmt: skip
        future._node = record
        future._definition = task
        future._number = number
        future._uid = None
        future._backend = None
        future._outcome = None
        if found is not None and found.outputs and repeats is None and task.prefix == "task":
            self.promises.promise(future, found.outputs)
        if found is not None and found.producers:
            self.promises.read(future, found.inputs, found.producers)
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
        """Return what a call has to wait for, and note the producers of its input files."""
        dependencies = tuple(found.futures) if found is not None else ()
        if task.settings.after:
            dependencies = tuple(dict.fromkeys((*dependencies, *task.settings.after)))
        if found is not None and found.inputs and task.prefix == "task":
            if repeats is None:
                producers: Producers = self.promises.producers(found.inputs, dependencies)
            else:
                producers = repeats.producers
            found.producers = producers
            dependencies = tuple(dict.fromkeys((*dependencies, *producers.values())))
        if not {self.loop}.issuperset(map(_loop_of, dependencies)):
            foreign = next(each for each in dependencies if each.get_loop() is not self.loop)
            raise RuntimeError(
                f"task {task.name!r} got a future of another event loop: {foreign!r}; "
                "await it there, and pass its result"
            )
        around = parent
        while around is not None:
            if around.future in dependencies:
                raise RuntimeError(
                    f"task {task.name!r} is called inside block {around.task.name!r} and got "
                    "that block's own future: it would wait for ever"
                )
            around = around.parent
        return dependencies

    def call_elsewhere(
        self, task: TaskFunction[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> TaskFuture[Any]:
        """Accept a call on another thread than the loop's, which is an error outside of blocks."""
        if self._scheduler.closing:
            raise self.closed_error(task.name)
        if running_loop() is not None:
            raise self.foreign_loop_error(f"task {task.name!r} was called on")
        if not self.loop.is_running():
            hint = "call tasks inside the coroutine that asyncio.run() or run_until_complete() runs"
            if hasattr(builtins, "__IPYTHON__"):  # its prompt runs the loop only for such input
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
                "tasks are called on the thread of the engine's event loop, or inside a "
                "synchronous @flow.block"
            )
        return on_loop(self.loop, partial(task, *args, **kwargs))

    def unawaited(self, future: TaskFuture[Any]) -> None:
        """Count a failed future that was collected without being awaited. Any thread."""
        self._unawaited.add(future)

    def declare(self, settings: Settings) -> Settings:
        """Check the settings of a definition against the engine's backends and named limits.

        Raises:
            ValueError: No backend of that name is attached, a limit is known with another
                size, or there is no directory that `cwd` could be relative to.
        """
        if settings.backend is not None:
            name = find(self._backends, settings.backend).name
            settings = dataclasses.replace(settings, backend=name)
        if settings.other_backends:
            names = tuple(find(self._backends, name).name for name in settings.other_backends)
            settings = dataclasses.replace(settings, other_backends=names)
        if settings.cwd is not None:
            settings = dataclasses.replace(settings, cwd=self._absolute(settings.cwd))
        self._scheduler.limits.declare(settings.limit)
        return settings

    def _absolute(self, cwd: str) -> str:
        if self._here is None and not os.path.isabs(cwd):
            raise ValueError(
                f"cwd={cwd!r} would be relative to the directory that the engine was made in, "
                "which had been removed; give an absolute path"
            )
        return os.path.normpath(os.path.join(self._here or "/", cwd))

    def foreign_loop_error(self, what: str) -> RuntimeError:
        """Return the error for a call on another event loop than the engine's."""
        return RuntimeError(
            f"{what} another event loop than that of engine {self.uid}: an engine belongs to the "
            "loop it was made on; make one here with `await WorkflowEngine.create(...)`"
        )

    def closed_error(self, name: str) -> RuntimeError:
        """Return the error for a call after the end."""
        if self.failure is not None:
            return RuntimeError(
                f"task {name!r} was called after engine {self.uid} had failed: "
                f"{describe_error(self.failure)}"
            )
        return RuntimeError(
            f"task {name!r} was called after engine {self.uid} was shut down: "
            "make a new one with `await WorkflowEngine.create(...)`"
        )


def dependency_uids(dependencies: Iterable[asyncio.Future[Any]]) -> tuple[str, ...]:
    """Return the uids of those dependencies that are tasks or blocks."""
    return tuple(future.uid for future in dependencies if isinstance(future, TaskFuture))


def current_directory() -> str | None:
    """Return the current directory, or `None` if it was removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None
