"""Preparation of ready tasks: the steps that build the descriptions for backends.

`STEPS` at the end of this module lists them in order. Most tasks pass all steps in one call of
`advance`. A step returns `None` if the task continues, `Wait` if the task leaves its dispatcher's
queue until some work has ended, and `Move` if it continues in the queue of another backend. A step
refuses a task by raising an exception.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import inspect
import logging
import os
import pickle
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from rhapsody.data import File, InputFile, InputFiles, moved, not_an_option
from rhapsody.engine.attempts.memoization import Memoization
from rhapsody.engine.calls.services import ArgumentValues, Services
from rhapsody.engine.configuration.options import EngineOptions
from rhapsody.engine.core import error_messages
from rhapsody.engine.core.backend_handles import BackendHandle, find
from rhapsody.engine.core.background import Background
from rhapsody.engine.core.pushdown import PushDown
from rhapsody.engine.core.record import AttemptRecord, Command, TaskRecord, attempt_uids
from rhapsody.engine.core.scheduler import Scheduler
from rhapsody.engine.core.states import READY
from rhapsody.engine.functions.arguments import (
    IMMUTABLE,
    KeptArguments,
    kept_arguments,
    may_be_consumed,
    search,
    texts_in,
)
from rhapsody.engine.functions.task_function import TaskFunction
from rhapsody.environments import wrap_command
from rhapsody.errors import (
    CapabilityError,
    InsufficientWalltimeError,
    PluginError,
    add_note,
    describe_error,
)
from rhapsody.identity import AttemptId, attempt_text
from rhapsody.plugins.manager import EngineHooks
from rhapsody.plugins.specs import ObservedEngine
from rhapsody.resources import Resources, seconds, time_needed
from rhapsody.sdk.calls import argument_name
from rhapsody.sdk.generators import (
    arguments_with_code,
    captured_generators,
    contents,
    is_generator,
    names_attribute,
)
from rhapsody.sdk.runner import watching
from rhapsody.sdk.value_handles import TaskValues, with_values
from rhapsody.shells import stops_reading
from rhapsody.staging.flow import FileFlow
from rhapsody.staging.inputs import outcomes
from rhapsody.staging.stager import Stager
from rhapsody.task import AttemptInfo, TaskDescription, TaskFuture, facts_of

log: logging.Logger = logging.getLogger("rhapsody.engine")

builds_command: contextvars.ContextVar[TaskRecord | None] = contextvars.ContextVar(
    "rhapsody_builds_command", default=None
)
"""The task whose command the current coroutine builds."""

MAX_GENERATORS = 1000
"""Number of generators of random numbers that are remembered after they were sent to a worker."""

_KEYS = TaskDescription.__required_keys__


class Wait(NamedTuple):
    """Result of a step after which the task leaves the queue until `work` has ended.

    Attributes:
        work: Function that starts the work, whose exception fails the task. `None` if other
            code queues the task again.
        by_user: True if the work runs a coroutine of the user: it starts at once, is canceled with
            the task, and any exception fails only the task.
        then: The step with which the task continues; `None` for the one that follows.
    """

    work: Callable[[], Coroutine[Any, Any, None]] | None = None
    by_user: bool = False
    then: Step | None = None


_QUEUED_AGAIN = Wait()
"""Result of a step after which other code queues the task again."""


class Move(NamedTuple):
    """Result of a step after which the task continues in the queue of another backend.

    Attributes:
        backend: The other backend.
        then: See `Wait`.
    """

    backend: BackendHandle
    then: Step | None = None


Step = Callable[["TaskBuilder", TaskRecord, BackendHandle], Wait | Move | None]
"""Step of the preparation of a task for a backend."""

Steps = tuple[Step, ...]


class TaskBuilder:
    """Builder of the descriptions of one engine's tasks.

    Args:
        uid: The engine's uid.
        scheduler: The scheduler, which contains the named limits, and fails or requeues tasks.
        background: The runner of the steps that wait.
        memoization: The lookup of recorded results.
        pushdown: The source of references to values that stay with a backend.
        services: The services, which hold back tasks that wait for a restarted service.
        values: The object that replaces futures and files in arguments.
        stager: The stager, which places sandboxes.
        hooks: The plugins' hooks.
        engine: The engine, passed to hooks.
        backends: The attached backends; backends may be added later.
        options: Options of the engine.
        quiet: True if workers do not show the output of functions.
    """

    def __init__(
        self,
        uid: str,
        scheduler: Scheduler,
        background: Background,
        memoization: Memoization,
        pushdown: PushDown,
        services: Services,
        values: ArgumentValues,
        stager: Stager,
        hooks: EngineHooks,
        engine: ObservedEngine,
        backends: Mapping[str, BackendHandle],
        options: EngineOptions,
        *,
        quiet: bool,
    ) -> None:
        self._uid = uid
        self._scheduler = scheduler
        self._background = background
        self._memoization = memoization
        self._pushdown = pushdown
        self._services = services
        self._values = values
        self._stager = stager
        self._hooks = hooks
        self._engine = engine
        self._backends = backends
        self._timeout = options.timeout
        self._retries = options.retries
        self._lost_retries = options.lost_retries
        self._implicit_data = options.implicit_data
        self._shell = options.shell
        self._quiet = quiet
        self._steps_of_functions = _needed_steps(hooks, {*OF_COMMANDS, *OF_FILES})
        self._steps_with_files = _needed_steps(hooks, OF_COMMANDS)
        self._steps_of_commands = _needed_steps(hooks, OF_FUNCTIONS)
        self._readers: WeakKeyDictionary[TaskFuture[Any], str] = WeakKeyDictionary()
        self._generators: dict[int, tuple[Any, bytes]] = {}  # those sent and their states, by id
        self._restored: set[str] = set()  # names of tasks whose restored arguments were logged
        self._unsafe: set[str] = set()  # names of tasks with a reported condition
        self._held_back: set[str] = set()  # backends for which a held-back task was logged
        self._builds_always: set[str] = set()  # backends for which worker values were logged

    def advance(self, record: TaskRecord, backend: BackendHandle) -> bool:
        """Prepare a task as far as possible; return True if it can then be submitted."""
        prepared = record.attempt.prepared
        try:
            if prepared is None:
                if self._services.any and self._services.hold_back(record):
                    return False  # the services queue it again
                call, task = record.call, record.call.task
                limits = task.settings.limit
                if limits and not self._scheduler.limits.take(record, limits):
                    return False  # the limits queue it again
                self._describe(record, backend)
                if task.direct is backend and record.files is None and call.specific is None:
                    if not backend.dry:
                        self._check_arguments(record, backend)
                        self._insert_values(record, backend)
                    return True
                prepared = 0
            steps = self._steps_of(record)
            for number in range(prepared, len(steps)):
                paused = steps[number](self, record, backend)
                if paused is not None:
                    after = number + 1 if paused.then is None else steps.index(paused.then)
                    record.attempt.prepared = after
                    self._pause(record, backend, paused)
                    return False
            record.attempt.prepared = len(steps)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # of a builder or plugin: only its task fails
            self._scheduler.refuse(record, error)
            return False
        return True

    def _steps_of(self, record: TaskRecord) -> Steps:
        if record.call.task.kind == "executable":
            return self._steps_of_commands
        return self._steps_of_functions if record.files is None else self._steps_with_files

    def _pause(self, record: TaskRecord, backend: BackendHandle, paused: Wait | Move) -> None:
        if isinstance(paused, Move):
            self._scheduler.requeue(record, paused.backend)
        elif paused.work is not None:
            continuing = self._continue_after(record, backend, paused.work, paused.by_user)
            waiting = self._background.spawn(continuing, record.attempt.uid, at_once=paused.by_user)
            if paused.by_user:
                record.future.add_done_callback(lambda _: waiting.cancel())

    async def _continue_after(
        self,
        record: TaskRecord,
        backend: BackendHandle,
        work: Callable[[], Coroutine[Any, Any, None]],
        by_user: bool,
    ) -> None:
        if record.state is not READY:
            return  # canceled before this began
        try:
            await work()
        except BaseException as error:
            if not (by_user or isinstance(error, Exception)):
                raise
            self._scheduler.refuse(record, error)
        else:
            if record.state is READY:
                self._scheduler.requeue(record, backend)

    # Arguments and command.

    def _describe(self, record: TaskRecord, backend: BackendHandle) -> None:
        """Begin an attempt: create it, and describe the call."""
        call, former = record.call, record.attempt
        task, number, found = call.task, former.number + 1, call.found
        uid = attempt_text(self._uid, call.number, number)
        template, plain = task.template or self._template(task)
        description = template.copy()
        record.attempt = AttemptRecord(number, uid, backend, description, former.command)
        description["uid"] = uid
        description["args"] = call.args
        description["kwargs"] = call.kwargs or {}
        specific = call.specific or task.settings.specific
        description["task_backend_specific_kwargs"] = dict(specific) if specific else {}
        description["metadata"] = {"dependencies": (), "input_files": (), "output_files": ()}
        description["attempt"] = number
        if record.lookup is not None:  # a retry
            description.update(record.lookup)  # type: ignore[typeddict-item]
        if not plain:
            self._describe_more(record, description)
        if call.dependencies:
            self._describe_dependencies(record, description)
            if record.pushed:
                description["references"] = self._pushdown.references(record)
        if call.scope is not None:
            description["scope"] = call.scope
        if "sandbox" in description or (found is not None and (found.inputs or found.outputs)):
            self._declare_files(record, description)
        elif number > 1:
            record.files = None
        replaces = found is not None and found.replaces
        if (replaces or record.kept is not None) and task.kind != "executable":
            if record.kept is not None:
                self._restore_arguments(record, record.kept)
            description["args"], description["kwargs"] = self._values.of(record)

    def _check_arguments(self, record: TaskRecord, backend: BackendHandle) -> None:
        """Add the context of the call, and prepare for a function that changes its arguments.

        In this process, the backend copies the arguments right before an attempt that may be
        retried. Elsewhere, calls receive copies, and generators of random numbers are checked.
        """
        if backend.dry:
            return
        if record.call.context is not None and backend.here:
            record.attempt.description["context"] = record.call.context
        if not backend.shares_memory:
            task, description = record.call.task, record.attempt.description
            args, kwargs = description["args"], description["kwargs"]
            if task.generators is None:
                task.generators = (), captured_generators(task.function)
            if task.generators[1] or kwargs or not IMMUTABLE.issuperset(map(type, args)):
                self._check_generators(record, backend)
            return
        if record.call.found is not None:
            self._check_iterators(record, record.call.found.futures)
        if record.call.task.may_retry:
            if record.kept is None:
                record.kept = kept_arguments(
                    record.call.args, record.call.kwargs or {}, record.call.found
                )
            if record.kept is not None:
                record.attempt.description["keep_arguments"] = record.kept.keep

    def _insert_values(self, record: TaskRecord, backend: BackendHandle) -> None:
        """Replace handles of worker values in the arguments of a function in this process.

        Workers receive the values when they unpickle the handles.
        """
        call, description = record.call, record.attempt.description
        function, found = description["function"], call.found
        if found is None or not found.handles or function is None or backend.dry:
            return
        if found.is_open:  # handles or containers were replaced
            found = search(description["args"], description["kwargs"]) or found
        self._scheduler.values.require(found.handles)
        values = TaskValues(found.handles, description["uid"], self._building)
        description["worker_values"] = values
        if backend.shares_memory:
            is_async = call.task.task_kind == "async_function"
            description["function"] = with_values(
                function, values, found.fill, self._uid, is_async=is_async
            )
        elif not backend.capabilities.worker_values and backend.name not in self._builds_always:
            self._builds_always.add(backend.name)
            log.warning(
                "%s: backend %r does not report when it builds worker values such as %s: this time "
                "counts toward `timeout`, and functions that run in separate processes build them "
                "in each call",
                record.named(), backend.name, values.names,
            )  # fmt: skip

    def _building(self, uid: str) -> None:
        """Note that an attempt begins or ends to build a worker value. Called on any thread."""
        self._background.soon_from_anywhere(partial(self._scheduler.building, uid))

    def _check_iterators(self, record: TaskRecord, futures: Iterable[asyncio.Future[Any]]) -> None:
        """Raise a `TypeError` if another task has received an iterator of a dependency."""
        for future in futures:  # tasks in other processes receive copies
            if not isinstance(future, TaskFuture):
                continue
            if hasattr(type(future._result), "__next__") and may_be_consumed(future._result):
                reader = self._readers.setdefault(future, record.future.uid)
                if reader != record.future.uid:
                    raise error_messages.read_twice(record, future, reader)

    def _check_generators(self, record: TaskRecord, backend: BackendHandle) -> None:
        """Raise a `ValueError` if another call has received a generator in the same state."""
        if record.attempt.number > 1:  # a retry, which receives the same generator on purpose
            return
        task, args, kwargs = (
            record.call.task,
            record.attempt.description["args"],
            record.attempt.description["kwargs"],
        )
        states: dict[int, tuple[Any, bytes]] = {}
        objects, functions = arguments_with_code([*args, *kwargs.values()])
        classes, called = tuple(objects), [*objects.values(), *functions]
        if functions or task.generators is None or task.generators[0] != classes:
            task.generators = classes, captured_generators(task.function, called)
        for captured in task.generators[1]:
            if captured.parameter not in kwargs and len(args) <= captured.position:
                sent = self._state_of(captured.generator)
                if self._generators.get(id(sent[0])) == sent:
                    # The variables may contain other generators since the last search.
                    former = task.generators
                    task.generators = classes, captured_generators(task.function, called)
                    if task.generators != former:
                        return self._check_generators(record, backend)
                    what = f"variable {captured.name!r} is" if captured.name else "it contains"
                    raise error_messages.generator_sent_again(
                        record, backend, what, captured.generator
                    )
                states[id(sent[0])] = sent
        arguments: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        for name, value in arguments:
            if type(value) in IMMUTABLE:
                continue
            items = [("", value)] if is_generator(value) else contents(value)
            for attribute, item in items:
                if type(item) in IMMUTABLE or not is_generator(item):
                    continue
                sent = self._state_of(item)
                if self._generators.get(id(sent[0])) == sent and (
                    not attribute or names_attribute(task.function, type(value), attribute)
                ):
                    verb = "is" if item is value else "contains"
                    what = f"{argument_name(task.function, name)} {verb}"
                    raise error_messages.generator_sent_again(record, backend, what, item)
                states[id(sent[0])] = sent
        for key, sent in states.items():
            self._generators[key] = sent
            if len(self._generators) > MAX_GENERATORS:
                del self._generators[next(iter(self._generators))]

    @staticmethod
    def _state_of(generator: Any) -> tuple[Any, bytes]:
        """Return the object that contains a generator's state, and the digest of the state."""
        generator = getattr(generator, "bit_generator", generator)  # several may share it
        return generator, hashlib.blake2b(pickle.dumps(generator)).digest()

    def _restore_arguments(self, record: TaskRecord, kept: KeptArguments) -> None:
        """Restore the arguments that earlier attempts have changed; log the first of each task."""
        changed, shared = kept.restore()
        task, number = record.call.task, record.attempt.number
        if not (changed or shared) or task.name in self._restored:
            return
        self._restored.add(task.name)
        if changed:
            names = [argument_name(task.function, each) for each in changed]
            log.warning(
                "%s: attempt %d changed its %s in place; attempt %d starts from the value that "
                "the first attempt received. To avoid this, copy what the function changes",
                record.named(), number - 1, " and ".join(names), number,
            )  # fmt: skip
        if shared:
            names = [argument_name(task.function, each) for each in shared]
            log.warning(
                "%s: its %s changed since the first attempt and is shared with other calls; "
                "attempt %d starts from the current value. To avoid this, let each call return "
                "what it adds",
                record.named(), " and ".join(names), number,
            )  # fmt: skip

    def _template(self, task: TaskFunction[Any, Any]) -> tuple[TaskDescription, bool]:
        """Create and store the part of the description that all calls of a task function share.

        Returns:
            The description, and True if `_describe_more` adds nothing to it.
        """
        settings, executable = task.settings, task.kind == "executable"
        template: TaskDescription = {
            "uid": "",
            "name": task.name,
            "function": None if executable else task.function,
            "executable": None,
            "args": (),
            "kwargs": {},
            "is_service": settings.service,
            "task_backend_specific_kwargs": {},
            "metadata": {"dependencies": (), "input_files": (), "output_files": ()},
            "attempt": 0,
        }
        template.update(task.optional)  # type: ignore[typeddict-item]
        if settings.priority:
            template["priority"] = settings.priority
        if self._timeout is not None and settings.timeout is None and not settings.service:
            template["timeout"] = self._timeout
        if self._quiet and not executable and settings.capture is True:
            template["capture"] = "quiet"
        plain = not (
            executable
            or settings.environment
            or settings.capture == "files"
            or callable(settings.resources)
        )
        policies = settings.retries or self._retries or ()
        task.may_retry = task.kind == "function" and (
            any(policy.attempts for policy in policies) or bool(settings.other_backends)
        )
        task.template = template, plain
        return task.template

    def _describe_more(self, record: TaskRecord, description: TaskDescription) -> None:
        settings, executable = record.call.task.settings, record.call.task.kind == "executable"
        if executable:  # the arguments are those of the function that returns the command
            description["args"], description["kwargs"] = (), {}
        if callable(settings.resources):
            description["resources"] = resources_for(record, settings.resources)
        if settings.environment:
            description["environment"] = dict(settings.environment)
        if executable or settings.capture == "files":
            description["sandbox"] = self._stager.sandbox_path(record.attempt.uid)

    def _describe_dependencies(self, record: TaskRecord, description: TaskDescription) -> None:
        description["metadata"]["dependencies"] = attempt_uids(record.call.dependencies)

    def _sources(self, record: TaskRecord) -> tuple[list[AttemptInfo], list[AttemptInfo]]:
        """Return the outcomes of dependencies that left a sandbox.

        Dependencies that are needed only to produce an input file are excluded.

        Returns:
            All of them, and those whose undeclared files the task receives: they were passed as
            arguments and declare no output files.
        """
        found, settings = record.call.found, record.call.task.settings
        implicit = self._implicit_data and settings.implicit_data is not False
        arguments: Set[asyncio.Future[Any]] = frozenset()
        if found is not None and implicit:
            arguments = found.futures.keys()
        named: Set[asyncio.Future[Any]] = frozenset()  # dependencies that only write an input
        if found is not None and found.producers:
            passed = found.futures.keys() | settings.after
            writers = (each for declared in found.producers.values() for each in declared.futures)
            named = {each for each in writers if each not in passed}
        sources, left = list[AttemptInfo](), list[AttemptInfo]()
        for future in record.call.dependencies:
            if not isinstance(future, TaskFuture) or future in named:
                continue
            outcome = facts_of(future).outcome
            if outcome is None or outcome.files.sandbox is None:
                continue
            sources.append(outcome)
            if future in arguments and not outcome.files.output_files:
                left.append(outcome)
        return sources, left

    def _declare_files(self, record: TaskRecord, description: TaskDescription) -> None:
        """Create the object that owns the files of the attempt."""
        found, repeats, stager = record.call.found, record.call.repeats, self._stager
        sources, left = self._sources(record) if record.call.dependencies else ((), ())
        if found is None or not (found.inputs or found.outputs):
            record.files = FileFlow(stager, description, sources=sources, left=left)
            return
        description["metadata"]["input_files"] = [f.name or f.filename for f in found.inputs]
        description["metadata"]["output_files"] = [f.filename for f in found.outputs]
        if found.outputs and "sandbox" not in description:
            description["sandbox"] = stager.sandbox_path(record.attempt.uid)
        record.files = FileFlow(
            stager,
            description,
            found.inputs,
            found.outputs,
            sources,
            left,
            outcomes(found.producers) if found.producers else {},
            found.states,
            None if repeats is None else AttemptId.of(repeats.attempt).task,
        )

    def _build_command(self, record: TaskRecord, _: BackendHandle) -> Wait | None:
        sandbox, former = record.attempt.description["sandbox"], record.attempt.command
        if former is None:  # a retry runs the same command
            args, kwargs = self._values.of(record)
            records = self._hooks.lookup_results or self._hooks.record_results
            texts = texts_in([args, kwargs]) if records else ()
            # The text of a command counts for resume, except that of a service.
            places = (os.sep,) if records and record.call.task.settings.service else ()
            built = Command("", sandbox, texts, time.time(), {})
            with watching(places) as opened:
                command = record.call.task.function(*args, **kwargs)
            built.opened |= opened
            if inspect.iscoroutine(command):
                waiting = partial(self._await_command, record, command, built, places)
                return Wait(waiting, by_user=True)
            built.words = _checked_command(record, command)
            self._set_command(record, built)
        else:
            words = former.words
            if record.call.found is not None:  # the command may name files in the former sandbox
                words = _moved(words, former.sandbox, sandbox)
            self._set_command(record, replace(former, words=words, sandbox=sandbox))
        return None

    async def _await_command(
        self,
        record: TaskRecord,
        coroutine: Coroutine[Any, Any, Any],
        command: Command,
        places: tuple[str, ...],
    ) -> None:
        builds_command.set(record)
        with watching(places) as opened:
            command.words = _checked_command(record, await coroutine)
        command.opened |= opened
        if record.state is READY:
            self._set_command(record, command)

    def _set_command(self, record: TaskRecord, command: Command) -> None:
        description, words = record.attempt.description, command.words
        record.attempt.command = command
        if isinstance(words, str):
            description["executable"] = words
            shell = description["shell"] = record.call.task.settings.shell or self._shell
            name = record.call.task.name
            if shell == "bash" and name not in self._unsafe and stops_reading(words):
                self._unsafe.add(name)
                log.warning(
                    "%s: a condition in its command can be wrong: a pipeline into `grep -q`, `grep "
                    "-m` or `head` fails if the reader ends before the writer, so with much data "
                    "the condition is false although there is a match; write `grep -q PATTERN "
                    'FILE` or `grep PATTERN > /dev/null`, or choose shell=["bash", "-c"]',
                    record.named(),
                )
        else:
            description["executable"], description["arguments"] = words[0], words[1:]

    # Hooks.

    def _call_prepare(self, record: TaskRecord, _: BackendHandle) -> None:
        description = record.attempt.description
        for hook in self._hooks.prepare_task:
            try:
                hook.call(engine=self._engine, task=description)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # any error of a plugin fails only this task
                raise PluginError(
                    f"plugin {hook.plugin!r} failed to prepare task {record.call.task.name!r}: "
                    f"{describe_error(error)}"
                ) from error
            if description["uid"] != record.attempt.uid or not description.keys() >= _KEYS:
                raise PluginError(
                    f"plugin {hook.plugin!r} made the description of task "
                    f"{record.call.task.name!r} invalid: it must keep its uid and the keys "
                    f"{', '.join(sorted(_KEYS))}"
                )
            _check_prepared(hook.plugin, description)

    def _select_backend(self, record: TaskRecord, backend: BackendHandle) -> Move | None:
        hooks = self._hooks
        if not hooks.select_backend or len(self._backends) < 2 or record.call.task.settings.backend:
            return None
        if record.elsewhere() is not None:
            return None  # the task has left the backend that was selected
        candidates = self._able(record)
        for hook in hooks.select_backend if candidates else ():
            name = hooks.call(
                hook,
                engine=self._engine,
                task=record.attempt.description,
                candidates=tuple(candidates),
            )
            if name in candidates:
                chosen = find(self._backends, name)
                return None if chosen is backend else Move(chosen)
            if name is not None:
                answer = f"expected one of the backends {candidates} or None, got {name!r}"
                hooks.report(hook, PluginError(answer))
        return None

    # Capabilities and files.

    def _others(self, record: TaskRecord) -> Iterator[BackendHandle]:
        """Return the backends in a task's `other_backends`; none after the first attempt."""
        names = record.call.task.settings.other_backends if record.attempt.number == 1 else ()
        return map(self._backends.__getitem__, names)

    def _take_backend(self, record: TaskRecord, backend: BackendHandle) -> None:
        """Check that the backend can run the task, and make it the task's backend."""
        task = record.call.task
        if task.accepted_by is not backend or self._hooks.prepare_task or record.call.specific:
            self._check_capabilities(record, backend)
        record.attempt.backend = backend
        if backend.capabilities.unfinished_dependencies:
            own = task.settings.lost_retries
            record.attempt.description["lost_retries"] = self._lost_retries if own is None else own

    def _check_capabilities(self, record: TaskRecord, backend: BackendHandle) -> None:
        for each in (backend, *self._others(record)):
            self._check_capable(record, each)
        task, settings, hooks = record.call.task, record.call.task.settings, self._hooks
        if callable(settings.resources):
            return  # the resources may differ for the next task
        task.accepted_by = backend
        if (
            task.kind == "function"
            and settings.capture != "files"
            and not settings.limit
            and not (hooks.prepare_task or hooks.select_backend or hooks.lookup_results)
            and not (backend.may_end or backend.capabilities.unfinished_dependencies)
        ):
            task.direct = backend

    def _check_capable(self, record: TaskRecord, backend: BackendHandle) -> None:
        task = record.call.task
        missing = backend.lacking(task.task_kind, record.attempt.description)
        if missing is not None:
            able = self._able(record)
            where = f"attached backends that do: {', '.join(able)}" if able else (
                "attach one that does: WorkflowEngine.create(backends=[...])"
            )  # fmt: skip
            raise CapabilityError(
                f"task {task.name!r} cannot run on backend {backend.name!r}, which as configured "
                f"does not support {missing}; {where}"
            )
        fault = backend.environment_fault(record.attempt.description)
        if fault is not None:
            raise CapabilityError(
                f"task {task.name!r} cannot run on backend {backend.name!r}: {fault}"
            )
        unknown = backend.unknown_settings(record.attempt.description)
        if unknown:
            raise error_messages.unknown_setting(record, backend, unknown[0], self._able(record))

    def _able(self, record: TaskRecord) -> list[str]:
        """Return the names of the backends that can run a task in the time they have left."""
        return [
            one.name
            for one in self._backends.values()
            if one.lacking(record.call.task.task_kind, record.attempt.description) is None
            and one.environment_fault(record.attempt.description) is None
            and not one.unknown_settings(record.attempt.description)
            and shortage(record, one) is None
        ]

    # Backends that end before a task does.

    def _find_time(self, record: TaskRecord, backend: BackendHandle) -> Move | None:
        """Find a backend with enough walltime for a task whose own backend has too little left.

        A task that was pushed down, or has a `backend` and no `other_backends`, does not move.

        Returns:
            The move, or `None` if the task stays.
        """
        settings = record.call.task.settings
        others = settings.other_backends
        if not backend.may_end or record.pushed or (settings.backend and not others):
            return None
        if shortage(record, backend) is None:
            return None
        able = (name for name in self._able(record) if name in others or not others)
        name = next(able, None)
        return None if name is None else Move(self._backends[name], TaskBuilder._find_time)

    def _require_time(self, record: TaskRecord, backend: BackendHandle) -> None:
        """Fail a task whose backend has too little walltime left; the task's fallback is not used.

        The next run computes the task's result. The first such task of each backend is logged.
        """
        short = shortage(record, backend) if backend.may_end else None
        if short is None:
            return
        needs, left = short
        setting = "timeout" if needs == record.attempt.description.get("timeout") else "walltime"
        error = InsufficientWalltimeError(
            f"{record.named()} was held back: its {setting} is {needs:g} s, but backend "
            f"{backend.name!r} ends in {left:.0f} s; run the program again to execute it",
            backend=backend.name,
            needs=needs,
            left=left,
        )
        if backend.name not in self._held_back:
            self._held_back.add(backend.name)
            log.warning(
                "engine %s: backend %r ends in %.0f s; tasks that need longer are held back for "
                "the next run, beginning with %s, which needs %g s",
                self._uid, backend.name, left, record.named(), needs,
            )  # fmt: skip
        raise error

    def _find_files(self, record: TaskRecord, backend: BackendHandle) -> Wait | None:
        """Find the files of a task; wait for those that are being fetched."""
        files = record.files
        if files is None:
            return None
        several = record.call.task.settings.other_backends
        others = [each.backend for each in self._others(record)] if several else ()
        fetches = files.resolve(backend.backend, others, dry=backend.dry)
        return Wait(files.fetch) if fetches else None

    def _complete_arguments(self, record: TaskRecord, backend: BackendHandle) -> None:
        """Complete the arguments of a function, also for a call that may be reused."""
        found, files, description = record.call.found, record.files, record.attempt.description
        if found is None or files is None or not found.inputs:
            return
        if files.choose_place(backend.backend):
            description["args"], description["kwargs"] = self._values.of(record)

    def _look_up(self, record: TaskRecord, _: BackendHandle) -> Wait | None:
        return _QUEUED_AGAIN if self._memoization.look_up(record) else None

    def _make_missing(self, record: TaskRecord, _: BackendHandle) -> Wait | None:
        """Regenerate the missing files of an earlier run that a task reads."""
        missing = None if record.files is None else record.files.missing()
        if not missing:
            return None
        # The files' paths and contents may differ.
        return Wait(partial(self._make_again, record, missing), then=TaskBuilder._find_files)

    async def _make_again(self, record: TaskRecord, missing: Sequence[AttemptInfo]) -> None:
        reader = record.attempt.uid if record.call.repeats is None else record.call.repeats.attempt
        await asyncio.gather(
            *(again(each, reader) for each in missing if (again := each.files.regeneration))
        )

    def _wrap_command(self, record: TaskRecord, backend: BackendHandle) -> None:
        if not backend.dry:
            wrap_command(record.attempt.description, here=backend.here)

    def _link_files(self, record: TaskRecord, backend: BackendHandle) -> Wait | None:
        """Link the input files, or copy those that cannot be linked."""
        files = record.files
        if files is None or not files.place(backend.backend):
            return None
        return Wait(partial(self._copy, record, files, backend))

    async def _copy(self, record: TaskRecord, files: FileFlow, backend: BackendHandle) -> None:
        await files.copy(backend.backend)
        if changed := files.changed_since_call(copied=True):
            raise error_messages.input_changed(record, changed, None)


STEPS: Final[Steps] = (
    TaskBuilder._build_command,
    TaskBuilder._call_prepare,
    TaskBuilder._select_backend,
    TaskBuilder._find_time,
    TaskBuilder._take_backend,
    TaskBuilder._find_files,
    TaskBuilder._complete_arguments,
    TaskBuilder._check_arguments,
    TaskBuilder._look_up,
    TaskBuilder._insert_values,
    TaskBuilder._require_time,
    TaskBuilder._make_missing,
    TaskBuilder._wrap_command,
    TaskBuilder._link_files,
)
"""Steps between a task's turn in the queue of a backend and its submission, in order."""

OF_FUNCTIONS: Final = (
    TaskBuilder._complete_arguments,
    TaskBuilder._check_arguments,
    TaskBuilder._insert_values,
)
OF_COMMANDS: Final = (TaskBuilder._build_command, TaskBuilder._wrap_command)
OF_FILES: Final = (
    TaskBuilder._find_files,
    TaskBuilder._complete_arguments,
    TaskBuilder._make_missing,
    TaskBuilder._link_files,
)
"""Steps that only one kind of task needs. Each command has files."""


def _needed_steps(hooks: EngineHooks, others: Iterable[Step]) -> Steps:
    """Return the steps except some others and those for hooks that are not used."""
    unused = {*others}
    if not hooks.prepare_task:
        unused.add(TaskBuilder._call_prepare)
    if not hooks.select_backend:
        unused.add(TaskBuilder._select_backend)
    if not hooks.lookup_results:  # no task uses files of an earlier run
        unused |= {TaskBuilder._look_up, TaskBuilder._make_missing}
    return tuple(step for step in STEPS if step not in unused)


def _checked_command(record: TaskRecord, command: object) -> str | list[str]:
    # Call the methods of `str` itself: the placeholders of dry runs refuse their own.
    if isinstance(command, str) and str.strip(command):
        _require_names(record, (command,))
        return command
    words: list[Any] = []
    if isinstance(command, list):
        words = [each for word in command for each in _words(word)]
        if isinstance(next(iter(command), None), InputFile) and "/" not in words[0]:
            words[0] = f"./{words[0]}"  # a bare name is looked for on PATH
    if words and all(isinstance(word, str) for word in words) and str.__len__(words[0]):
        _require_names(record, words)
        return words
    lists = [word for word in words if isinstance(word, list | tuple)]
    if lists and all(isinstance(item, File) for item in lists[0]):
        raise ValueError(
            f"executable task {record.call.task.name!r} ({record.future.uid}) returned a list that "
            f"contains a list of files, {lists[0]!r}; unpack the files, as in ['cat', *files]"
        )
    wrong = [repr(word) for word in words if not isinstance(word, str)]
    raise ValueError(
        f"executable task {record.call.task.name!r} ({record.future.uid}) must return its command, "
        f"a non-empty string for a shell or a list of strings, got {command!r}"
        + (f": make {wrong[0]} a string" if wrong else "")
    )


def _require_names(record: TaskRecord, words: Sequence[str]) -> None:
    """Raise an error if a command contains the `repr` of a file, as in an f-string with a list.

    Raises:
        ValueError: The command contains the `repr` of one of the task's files.
    """
    if record.call.found is None:
        return
    shown = [repr(file) for file in (*record.call.found.inputs, *record.call.found.outputs)]
    sandbox = Path(record.attempt.description["sandbox"])
    shown.append(repr(sandbox).removesuffix("')"))  # of `InputFiles`
    wrong = next((t for t in shown if any(str.__contains__(word, t) for word in words)), None)
    if wrong is not None:
        raise ValueError(
            f"executable task {record.call.task.name!r} ({record.future.uid}) returned a command "
            f"that contains {wrong} instead of a file name; convert each file of a list to text, "
            "as in {' '.join(map(str, files))}"
        )


def _words(item: object) -> Sequence[object]:
    """Return the command-line arguments for one item of a command list."""
    if isinstance(item, str):
        return (item,)
    if isinstance(item, File):
        return (str(item),)
    if isinstance(item, InputFiles):
        return item.words()
    if isinstance(item, os.PathLike):
        path = os.fspath(item)
        return (not_an_option(path) if isinstance(path, str) else path,)
    return (item,)


def _moved(command: str | list[str], former: str, sandbox: str) -> str | list[str]:
    if isinstance(command, str):
        return moved(command, former, sandbox)
    return [moved(word, former, sandbox) for word in command]


def _check_prepared(plugin: str, description: TaskDescription) -> None:
    """Check the values in a description that a hook may have changed.

    Raises:
        PluginError: A value is invalid; the message names the plugin and the key.
    """
    what = f"plugin {plugin!r} prepared task {description['name']!r} with"
    limit, resources = description.get("timeout"), description.get("resources")
    if limit is not None:
        try:
            description["timeout"] = seconds("timeout", limit)
        except (TypeError, ValueError) as error:
            raise PluginError(f"{what} an invalid timeout: {error}") from error
    cwd = description.get("cwd")
    if cwd is not None and description["function"] is not None:
        raise PluginError(f"{what} a cwd, which only executables have: {cwd!r}")
    if cwd is not None and (not isinstance(cwd, str) or not os.path.isabs(cwd)):
        raise PluginError(f"{what} a cwd that is not an absolute path: {cwd!r}")
    if resources is not None and not isinstance(resources, Resources):
        raise PluginError(f"{what} resources that are not a rhapsody.Resources: {resources!r}")


def resources_for(record: TaskRecord, given: Callable[[int], Any]) -> Resources:
    """Call the user's function with the number of an attempt to get the attempt's resources.

    Returns:
        The resources.

    Raises:
        TypeError: The return value is not a `Resources` or a dict of its fields.
        ValueError: A field of the return value is out of range.
        SystemExit: The user's function raised `SystemExit`.
    """
    whose = f"the resources of {record.named()} for attempt {record.attempt.number}"
    try:
        answer = given(record.attempt.number)
    except (Exception, SystemExit) as mistake:  # the user's own callable raised
        add_note(mistake, f"raised by {whose}")
        raise
    try:
        found = Resources.of(answer)
        if found is None:
            raise TypeError("expected a Resources or a dict such as {'cores': 2}, got None")
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{whose}: {error} (in {answer!r})") from None
    return found


class Shortage(NamedTuple):
    """Seconds that a task needs, and the fewer seconds that its backend has left."""

    needs: float
    left: float


def shortage(record: TaskRecord, backend: BackendHandle) -> Shortage | None:
    """Compare the time that a task needs with the time that its backend has left.

    Returns:
        Both times if the task needs more than the backend has left; `None` if the task may start.
    """
    if not (backend.may_end and record.attempt.description):
        return None
    needs = time_needed(record.attempt.description)
    if needs is None:
        return None
    left = backend.backend.seconds_left(record.attempt.description)
    return None if left is None or needs <= left else Shortage(needs, left)
