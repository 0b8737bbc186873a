"""Memoization of results by plugins: looked up before tasks run, recorded afterwards.

A result is recorded before it is set on its future. Without a plugin that implements the hooks
`lookup_results` and `record_results`, nothing is looked up or recorded.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final, cast

from rhapsody.aio import is_cancelling
from rhapsody.engine.attempts.stage_out import StageOut
from rhapsody.engine.calls.services import ArgumentValues
from rhapsody.engine.core import error_messages
from rhapsody.engine.core.background import Background
from rhapsody.engine.core.pushdown import RemoteResult, held
from rhapsody.engine.core.record import TaskRecord, is_service
from rhapsody.engine.core.scheduler import Scheduler, computed
from rhapsody.engine.core.signals import registry as signal_registry
from rhapsody.engine.core.states import WorkState
from rhapsody.engine.functions.arguments import texts_in
from rhapsody.errors import PluginError
from rhapsody.plugins.manager import EngineHooks, PluginHook
from rhapsody.plugins.specs import LookupTask, ObservedEngine, Record, Recorded, TaskFiles
from rhapsody.sdk.runner import STARTED
from rhapsody.staging.flow import FileFlow
from rhapsody.staging.inputs import Origin
from rhapsody.task import TaskFuture, facts_of

log: logging.Logger = logging.getLogger("rhapsody.engine")

_NO_TEXTS: tuple[str, ...] = ()
_NO_FILES: Mapping[str, Any] = MappingProxyType({})
_TO_LOOK_UP: Mapping[str, Any] = {
    **dict.fromkeys(("given", "implicit", "texts", "services"), ()),
    **dict.fromkeys(("inputs", "after", "destinations"), _NO_FILES),
}
"""Keys of a `LookupTask` for a task without files, dependencies and services."""

_READY = WorkState.READY  # in Python 3.11, looking up a member in its enum takes a call

LOSS_SECONDS: Final = 1.0
"""Total run time of the unrecorded calls of a function, in seconds, from which a warning is logged.
"""

_PUSH_DOWN = "set push_down=False (-e push_down=false)"


class Memoization:
    """Lookup of earlier results, and recording of new ones before their futures are set.

    Args:
        scheduler: The scheduler, which sets results on futures once they are recorded, and fails
            tasks that a plugin refuses to record.
        hooks: The plugins' hooks.
        engine: The engine object that is passed to hooks.
        background: The runner of lookups, and of awaitables that hooks return.
        stage_out: The object that completes a task with its recorded result and files.
        values: The object that replaces futures and files in arguments.
        implicit_data: True if tasks see files that dependencies left in their sandboxes.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        hooks: EngineHooks,
        engine: ObservedEngine,
        background: Background,
        stage_out: StageOut,
        values: ArgumentValues,
        *,
        implicit_data: bool,
    ) -> None:
        self._scheduler = scheduler
        self._hooks = hooks
        self._engine = engine
        self._background = background
        self._stage_out = stage_out
        self._values = values
        self._implicit_data = implicit_data
        self._services: dict[TaskFuture[Any], str] = {}  # looked up; with the uids of attempts
        self._addresses: dict[str, tuple[Any, ...]] = {}  # see `LookupTask.addresses`
        self._warned: set[str] = set()  # names of tasks
        self._unrecorded_seconds: dict[str, float] = {}  # by name
        self._unlooked: list[TaskRecord] = []
        self._looking: set[asyncio.Task[None]] = set()
        self._active = 0  # number of those that have started
        self._unrecorded: list[tuple[TaskRecord, Any]] = []
        self._holding: set[asyncio.Task[None]] = set()

    # Before a task runs.

    def look_up(self, record: TaskRecord) -> bool:
        """Start looking up the result of a task.

        The following are not looked up: tasks with `cache=False`; retries; calls that are repeated
        to recreate files; and pushed-down tasks, which were submitted before their inputs existed
        (see `pushdown`). After a lookup, the task is completed with the recorded result or, if
        there is none, queued again. A service is looked up only to let plugins examine what it
        depends on, and always runs.

        Returns:
            True if a lookup was started.
        """
        call = record.call
        settings = call.task.settings
        if not (settings.cache or settings.service):
            return False
        if record.pushed:  # some arguments have no values here
            self._warn(call.task.name, "its arguments stay on the workers")
            return False
        # If it repeats a recorded call, the result has been found already.
        if record.attempt.number != 1 or call.repeats is not None:
            return False
        is_first = not self._unlooked
        self._unlooked.append(record)
        if is_first and not (self._active and self._hooks.looks_up_in_turn):
            looking = self._background.spawn(self._look_up_all(), "look up results")
            self._looking.add(looking)
            looking.add_done_callback(self._looking.discard)
        return True

    def _warn(self, name: str, why: str, cure: str = _PUSH_DOWN) -> None:
        """Log once for each task name that results are not recorded, and how to change that."""
        if name not in self._warned:
            self._warned.add(name)
            log.warning(
                "task %r: not recorded for resume, because %s; to record it, %s",
                name, why, cure,
            )  # fmt: skip

    def stop_looking(self) -> None:
        """Cancel the lookups in progress, because the engine is shutting down."""
        for looking in tuple(self._looking):
            looking.cancel()

    async def _look_up_all(self) -> None:
        """Look up the results of a batch; if lookups take turns, also of tasks called meanwhile."""
        self._active += 1
        try:
            while self._unlooked:
                await self._look_up()
        finally:
            self._active -= 1

    async def _look_up(self) -> None:
        waiting, self._unlooked = self._unlooked, []
        if self._services:
            self._find_addresses()
        for hook in self._hooks.lookup_results:
            waiting = [record for record in waiting if record.state.work is _READY]
            if not waiting:
                return
            tasks = [self._to_look_up(record) for record in waiting]
            results = self._hooks.call(hook, engine=self._engine, tasks=tasks)
            if inspect.isawaitable(results):
                results = await self._answer_of(hook, results)
            if results is not None and not _answers(results, len(waiting)):
                answer = f"expected {len(waiting)} results or None values, got {results!r:.200}"
                self._hooks.report(hook, PluginError(answer))
                results = None
            if results is None:
                results = [None] * len(waiting)
            missing = []
            for record, task, result in zip(waiting, tasks, results, strict=True):
                if record.state.work is not _READY:  # canceled during the lookup
                    continue
                if result is None or record.call.task.settings.service:
                    _add_keys(record, task)
                    missing.append(record)
                    continue
                files = record.files
                if files is not None and (changed := files.changed_since_call()):
                    # The result belongs to the new content.
                    error = error_messages.input_changed(record, changed, None)
                    self._scheduler.refuse(record, error)
                    continue
                if not self._stage_out.restore(record, result):
                    _add_keys(record, task)
                    missing.append(record)
            waiting = missing
        for record in waiting:
            self._scheduler.requeue(record, record.attempt.backend)

    async def _answer_of(self, hook: PluginHook, results: Awaitable[Any]) -> Any:
        try:
            return await results
        except (
            Exception,
            asyncio.CancelledError,
        ) as error:  # an error of the plugin must not affect the tasks
            if is_cancelling():
                raise
            self._hooks.report(hook, error)
            return None

    # After a task has run.

    def record(self, record: TaskRecord, value: Any) -> None:
        """Record a result, and then set it on its future.

        All results of one loop iteration are recorded in one batch.
        """
        if not self._unrecorded:
            self._background.soon(self._record)
        self._unrecorded.append((record, value))

    def record_held(self, record: TaskRecord) -> None:
        """Record a result that stays on its backend, if computing it took longer than fetching it.

        A value that something in this process needs is recorded as well, before its future receives
        it. Tasks that were submitted before their inputs existed are not recorded.
        """
        holder = held(record.future)
        if holder is None or record.pushed:
            return
        if holder.requested or self._is_worth_fetching(record.call.task.name, holder):
            settings, inputs = record.call.task.recording_settings, record.input_paths()
            found = Record(record.future.uid, record.attempt.description, None, settings, inputs)
            holder.record_with(partial(self._record_fetched, found))

    def _is_worth_fetching(self, name: str, holder: RemoteResult) -> bool:
        """Return True if a value is to be fetched in order to record it; otherwise warn once."""
        size, seconds, limit = holder.size, holder.seconds, self._hooks.max_value
        large = limit is not None and size is not None and size > limit
        if holder.worth_fetching and not large:
            return True
        total = self._unrecorded_seconds.get(name, 0.0) + (seconds or 0.0)
        self._unrecorded_seconds[name] = total
        if seconds is not None and total <= LOSS_SECONDS:
            return False
        if large:
            why = f"its values stay on the workers and exceed {limit} bytes (here {size})"
            self._warn(name, why, 'name a journal in the program (journal="run.sqlite")')
        else:
            self._warn(
                name,
                "its values stay on the workers and would take longer to fetch than to compute",
            )
        return False

    async def _record_fetched(self, record: Record, task: Mapping[str, Any]) -> None:
        """Record a value that was fetched from its backend."""
        described = record.task.copy()
        for key in ("directory", "opened"):
            if key in task:
                described[key] = task[key]
        found = record._replace(
            task=described,
            value=task["return_value"],
            stdout=task.get("stdout"),
            stderr=task.get("stderr"),
        )
        for hook in self._hooks.record_results:
            result = self._hooks.call(hook, engine=self._engine, records=[found])
            if inspect.isawaitable(result):
                await self._answer_of(hook, result)

    async def drain(self, grace: float) -> None:
        """Wait up to `grace` seconds for results to be recorded, then give up.

        Called at shutdown.
        """
        self._record()
        loop = self._background.loop
        end = loop.time() + grace
        while self._holding and loop.time() < end:
            await asyncio.wait(self._holding, timeout=end - loop.time())
        late = tuple(self._holding)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=grace)

    def _record(self) -> None:
        batch, self._unrecorded = self._unrecorded, []
        if self._services:
            self._find_addresses()
        records = [
            self._to_record(record, value) for record, value in batch if record.attempt.description
        ]
        if signal_registry.interrupted:  # the signal may have ended processes of functions
            records = [each for each in records if STARTED not in each.task.get("opened", ())]
        hooks, pending = self._hooks, []
        for hook in hooks.record_results if records else ():
            result = hooks.call(hook, engine=self._engine, records=records)
            if inspect.isawaitable(result):
                pending.append((hook, result))
        if not pending:
            for record, value in batch:
                self._scheduler.reveal(record, value)
            return
        task = self._background.spawn(self._hold(batch, pending), "record results")
        self._holding.add(task)
        task.add_done_callback(self._holding.discard)

    def _to_record(self, record: TaskRecord, value: Any) -> Record:
        """Return the `Record` of a result that `record_results` hooks receive."""
        call, description, outcome = record.call, record.attempt.description, record.outcome
        uid, settings, repeats = record.future_uid(), call.task.recording_settings, call.repeats
        if outcome is None:  # a function whose output was not captured
            return Record(uid, description, value, settings, record.input_paths())
        inputs: Mapping[str, str | None] = {}
        files, texts = None, _NO_TEXTS
        if record.files is not None:
            inputs, files, texts = record.input_paths(), self._files(record), record.texts()
        row = (
            uid, description, value, settings, inputs, files,
            outcome.stdout, outcome.stderr, outcome.exit_code, texts,
            None if repeats is None else repeats.attempt,
            () if repeats is None else tuple(repeats.readers),
        )  # fmt: skip
        return tuple.__new__(Record, row)  # calling the class takes twice as long

    def _files(self, record: TaskRecord) -> TaskFiles | None:
        """Return the files that a successful task wrote, or `None` if it had no sandbox."""
        outcome = record.outcome
        if outcome is None or outcome.files.sandbox is None:
            return None
        files = outcome.files
        names, matches = files.output_files, files.matches
        places: dict[str, str] = {}
        for name, (path, kind) in record.targets().items():
            if kind == "matches":
                places.update({each: str(path / each) for each in matches.get(name, ())})
            else:
                places[name] = str(path)
        paths = {name: files.path_of(name) for name in names}
        shared = self._implicit_data and not names
        stays = files.reference is None
        return TaskFiles(outcome.files.sandbox, paths, matches, places, shared, stays)

    def _to_look_up(self, record: TaskRecord) -> LookupTask:
        """Return the description of a task that `lookup_results` hooks receive."""
        call, attempt, settings = record.call, record.attempt, record.call.task.settings
        found: Any = {**attempt.description, **_TO_LOOK_UP}
        found["settings"] = call.task.recording_settings
        found["shares_memory"] = attempt.backend.shares_memory
        if specific := found["task_backend_specific_kwargs"]:
            chosen = attempt.backend.capabilities.result_settings
            found["result_settings"] = specific if chosen is None else chosen & specific.keys()
        if record.files is not None:
            self._describe_files(record, record.files, found)
        services: list[TaskFuture[Any]] = []
        if record.parent is not None or call.dependencies:
            callers = tuple(_callers(record))
            found["after"] = _predecessors(callers)
            services = _services(callers)
            found["services"] = [self._uid(service) for service in services]
            if services:
                self._name_services(services, record, found)
        if self._services:  # one more item makes the dict grow, which takes time
            found["addresses"] = self._addresses
        if settings.service:
            self._services[record.future] = attempt.uid
            if call.task.kind == "executable":
                found["function"] = call.task.function
                stands_in = partial(_stands_in, services)
                found["args"], found["kwargs"] = self._values.of(record, stands_in)
                if attempt.command is not None:
                    found["opened"] = attempt.command.opened
                    found["interval"] = attempt.command.built, attempt.command.built
        return cast("LookupTask", found)

    def _uid(self, service: TaskFuture[Any]) -> str | None:
        """Return the uid of the attempt for which a service was looked up."""
        return self._services.get(service) or facts_of(service).uid

    def _find_addresses(self) -> None:
        """Update the addresses of services, which are known once the services are ready."""
        for service, uid in self._services.items():
            known = self._addresses.get(uid, ())
            for value in self._values.of_service(service):
                if all(value is not each for each in known):
                    self._addresses[uid] = (*known, value)

    def _describe_files(self, record: TaskRecord, files: FileFlow, found: Any) -> None:
        """Add the files of a task to a description for a lookup."""
        found["inputs"], found["texts"] = record.input_paths(), record.texts()
        if record.attempt.backend.dry:
            origins = files.expected()
            found["inputs"] = {name: _path_of(file) for name, file in origins.items()}
            outside = ((name, file) for name, file in origins.items() if file.producer is None)
            found["given"] = [name for name, file in outside if file.url is None]
        else:
            found["given"] = [name for name, place in files.places.items() if place.given]
        if files.left and "sandbox" in found:
            found["implicit"] = tuple(source.files.sandbox for source in files.left)
        found["destinations"] = files.destinations()

    def _name_services(
        self, services: Sequence[TaskFuture[Any]], record: TaskRecord, found: Any
    ) -> None:
        """Replace addresses of services with the services' names in a description for a lookup.

        The addresses differ from run to run.

        Args:
            services: The futures of the services that the task depends on.
            record: The task.
            found: The description, which is changed in place.
        """
        stands_in = partial(_stands_in, services)
        if record.call.task.kind != "executable":
            found["args"], found["kwargs"] = self._values.of(record, stands_in)
            return
        found["args"] = tuple(map(stands_in, services))
        values = [self._values.of_service(each) for each in services]
        addresses = [text for value in values for text in texts_in(value, numbers=True)]
        # Shorter texts may occur in the command with other meanings.
        addresses = [text for text in addresses if len(text) > 3]
        found["texts"] = tuple(text for text in found["texts"] if text not in addresses)

        def named(word: str) -> str:
            for text in sorted(addresses, key=len, reverse=True):
                word = word.replace(text, f"\0{addresses.index(text)}\0")
            return word

        found["executable"] = named(found["executable"])
        if "arguments" in found:
            found["arguments"] = [named(word) for word in found["arguments"]]

    async def _hold(
        self, batch: list[tuple[TaskRecord, Any]], pending: list[tuple[Any, Awaitable[Any]]]
    ) -> None:
        # Each awaitable is awaited separately, because that of one plugin may hang.
        refused: dict[TaskRecord, BaseException] = {}
        others = [(hook, asyncio.ensure_future(result)) for hook, result in pending[1:]]
        try:
            for hook, result in [*pending[:1], *others]:
                try:
                    answers = await result
                except (Exception, asyncio.CancelledError) as error:
                    fault: BaseException = error
                    if is_cancelling():
                        for _, other in others:
                            other.cancel()
                        fault = TimeoutError("the engine shut down before results were recorded")
                    self._hooks.report(hook, fault)
                else:
                    refused |= _refused(batch, answers)
        finally:  # an error of a plugin must not lose results
            for record, value in batch:
                if record in refused:
                    self._scheduler.fail(record, refused[record])
                else:
                    self._scheduler.reveal(record, value)


def _add_keys(record: TaskRecord, task: LookupTask) -> None:
    """Add the keys that a hook has set to the descriptions of this and later attempts."""
    description = record.attempt.description
    for key in ("identity", "watch"):
        if key in task:
            if record.lookup is None:
                record.lookup = {}
            record.lookup[key] = description[key] = task[key]


def _callers(record: TaskRecord) -> Iterator[TaskRecord]:
    """Yield a task and the blocks that it was called in, innermost first."""
    caller: TaskRecord | None = record
    while caller is not None:
        yield caller
        caller = caller.parent


def _predecessors(callers: Iterable[TaskRecord]) -> dict[str, float]:
    """Return the names and times in `LookupTask.after`.

    It is unknown for which tasks a future of asyncio waits, as that of `asyncio.gather`. Such a
    future is treated as a task that has run in this run.
    """
    found: dict[str, float] = {}
    for caller in callers:
        for future in caller.call.task.settings.after:
            if not isinstance(future, TaskFuture):
                found["asyncio future"] = math.inf
            elif not is_service(future):
                found[future.name] = max(computed(future), found.get(future.name, 0.0))
    return found


def _services(callers: Iterable[TaskRecord]) -> list[TaskFuture[Any]]:
    """Return the services that a task, or a block that it was called in, depends on."""
    found = [
        future for caller in callers for future in caller.call.dependencies if is_service(future)
    ]
    return list(dict.fromkeys(found)) if found else []


def _stands_in(
    services: Sequence[TaskFuture[Any]], service: TaskFuture[Any]
) -> tuple[str, str, int]:
    return "service", service.name, services.index(service)


def _refused(
    batch: list[tuple[TaskRecord, Any]], answers: object
) -> dict[TaskRecord, BaseException]:
    """Return the tasks for which a plugin returned an exception, with these exceptions."""
    if not isinstance(answers, Sequence):
        return {}
    recorded = [record for record, _ in batch if record.attempt.description]
    if len(answers) != len(recorded):
        return {}
    pairs = zip(recorded, answers, strict=True)
    return {record: answer for record, answer in pairs if isinstance(answer, Exception)}


def _path_of(file: Origin) -> str | None:
    """Return the path of an input file."""
    return file.path if file.producer is None else file.producer.files.path_of(file.name)


def _answers(results: object, number: int) -> bool:
    """Return True if a hook returned `number` items, each of them a `Recorded` or `None`."""
    return (
        isinstance(results, Sequence)
        and len(results) == number
        and all(isinstance(result, Recorded) for result in results if result is not None)
    )
