"""Results that plugins keep: looked up before a task runs, recorded before anybody sees them.

Where no plugin does either, no task comes here.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, cast

from rhapsody.aio import is_cancelling
from rhapsody.engine.arguments import ArgumentScan, texts_in
from rhapsody.engine.background import Background
from rhapsody.engine.record import TaskRecord
from rhapsody.engine.scheduler import Scheduler
from rhapsody.engine.services import is_service
from rhapsody.engine.states import WorkState
from rhapsody.engine.task_function import TaskFunction
from rhapsody.errors import DataError, PluginError
from rhapsody.plugins.manager import EngineHooks, PluginHook
from rhapsody.plugins.specs import LookupTask, ObservedEngine, Record, Recorded, TaskFiles
from rhapsody.staging.inputs import Origin, origins
from rhapsody.task import TaskFuture

log: logging.Logger = logging.getLogger("rhapsody.engine")


class Memoization:
    """Looks results up, and holds those of tasks that have run until they are recorded.

    Args:
        scheduler: Is told of results that are found, and of those that may be seen.
        hooks: The plugins' hooks.
        engine: What they are told is the engine.
        background: Runs what takes long.
        missing: Called with each task for which no plugin has a result.
        found: Called with each for which one has.
        values: Gives a task's arguments, see `Preparation.values`.
        implicit_data: Whether tasks see what dependencies left in their sandboxes.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        hooks: EngineHooks,
        engine: ObservedEngine,
        background: Background,
        missing: Callable[[TaskRecord], object],
        found: Callable[[TaskRecord, Recorded], object],
        values: Callable[
            [TaskRecord, Callable[[Any], Any]], tuple[tuple[Any, ...], dict[str, Any]]
        ],
        *,
        implicit_data: bool,
    ) -> None:
        self._scheduler = scheduler
        self._hooks = hooks
        self._engine = engine
        self._background = background
        self._missing = missing
        self._found = found
        self._values = values
        self._implicit_data = implicit_data
        self._said = False
        self._unlooked: list[TaskRecord] = []
        self._looking: set[asyncio.Task[None]] = set()
        self._unrecorded: list[tuple[TaskRecord, Any]] = []
        self._holding: set[asyncio.Task[None]] = set()

    # Before a task runs.

    def look_up(self, record: TaskRecord) -> bool:
        """Whether a task is being looked up; it goes on by `missing`, or is recorded."""
        settings = record.task.settings
        if not self._hooks.lookup_results or settings.service or not settings.cache:
            return False
        if record.attempt != 1 or record.pushed:  # the values of its arguments are not here
            if record.pushed and not self._said:
                self._say(record)
            return False
        if record.extra is not None and record.extra.makes_again is not None:  # it was found before
            return False
        if not self._unlooked:
            looking = self._background.spawn(self._look_up(), "look up results")
            self._looking.add(looking)
            looking.add_done_callback(self._looking.discard)
        self._unlooked.append(record)
        return True

    def _say(self, record: TaskRecord) -> None:
        self._said = True
        log.warning(
            "%r goes to its backend before its dependencies have ended: such tasks, and those "
            "whose values stay there, are not recorded, and run again when the run is; with "
            "push_down=False they are (-e push_down=false)", record.task.name,
        )  # fmt: skip

    def stop_looking(self) -> None:
        """The engine ends: nobody waits for what plugins look up any more."""
        for looking in tuple(self._looking):
            looking.cancel()

    async def _look_up(self) -> None:
        waiting, self._unlooked = self._unlooked, []
        for hook in self._hooks.lookup_results:
            waiting = [record for record in waiting if record.life.work is WorkState.READY]
            if not waiting:
                return
            tasks = [self._to_look_up(record) for record in waiting]
            results = self._hooks.call(hook, engine=self._engine, tasks=tasks)
            if inspect.isawaitable(results):
                results = await self._looked_up(hook, results)
            if results is None:
                continue
            if not _answers(results, len(waiting)):
                answer = f"answered {len(waiting)} look-ups with {results!r:.200}; it is not used"
                self._hooks.report(hook, PluginError(answer))
                continue
            missing = []
            for record, result in zip(waiting, results, strict=True):
                if record.life.work is not WorkState.READY:  # it was cancelled meanwhile
                    continue
                if isinstance(result, Recorded):
                    self._found(record, result)
                else:
                    missing.append(record)
            waiting = missing
        for record in waiting:
            self._missing(record)

    async def _looked_up(self, hook: PluginHook, results: Awaitable[Any]) -> Any:
        try:
            return await results
        except (Exception, asyncio.CancelledError) as error:  # the plugin's own: the tasks run
            if is_cancelling():
                raise
            self._hooks.report(hook, error)
            return None

    # After it has run.

    def record(self, record: TaskRecord, value: Any) -> None:
        """Has a result recorded with others of this turn of the loop, and then revealed."""
        if not self._unrecorded:
            self._background.soon(self._record)
        self._unrecorded.append((record, value))

    async def drain(self, grace: float) -> None:
        """Waits until nothing is held any more, `grace` seconds at most. Used at shutdown."""
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
        records = [self._to_record(record, value) for record, value in batch if record.description]
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
        """What a plugin gets of a result."""
        uid, settings = record.future.uid, record.task.recording_settings
        outcome = record.future._outcome
        if outcome is None:  # of a function that printed nothing
            return Record(uid, record.description, value, settings, record.input_paths())
        return Record(
            uid,
            record.description,
            value,
            settings,
            record.input_paths(),
            self._files(record),
            outcome.stdout,
            outcome.stderr,
            outcome.exit_code,
            record.texts(),
            None if record.extra is None else record.extra.makes_again,
            () if record.extra is None else tuple(record.extra.made_for),
        )

    def _files(self, record: TaskRecord) -> TaskFiles | None:
        """What a task has made that is done."""
        outcome = record.future._outcome
        if outcome is None or outcome.sandbox is None:
            return None
        names, matches = outcome.output_files, outcome.matches or {}
        places: dict[str, str] = {}
        for name, (path, kind) in record.targets().items():
            if kind == "matches":
                places.update({each: str(path / each) for each in matches.get(name, ())})
            else:
                places[name] = str(path)
        paths = {name: outcome.path_of(name) for name in names}
        shared = self._implicit_data and not names
        stays = outcome.keeper is None
        return TaskFiles(outcome.sandbox, paths, matches, places, shared, stays)

    def _to_look_up(self, record: TaskRecord) -> LookupTask:
        """What a plugin gets of a task to look for its result."""
        found: Any = record.description.copy()
        found["settings"] = record.task.recording_settings
        found["inputs"] = record.input_paths()
        found["implicit"], found["texts"] = (), record.texts()
        found["shares_memory"] = record.backend.shares_memory
        if record.found is not None and record.backend.dry:
            found["inputs"] = _inputs(record, record.found)
        if record.extra is not None and self._implicit_data and "sandbox" in found:
            sources = record.extra.sources
            found["implicit"] = tuple(
                each.sandbox for each in sources if each.sandbox and not each.output_files
            )
        services = [each for each in record.dependencies if is_service(each)]
        if services:
            self._tell(services, record, found)
        return cast("LookupTask", found)

    def _tell(self, services: Sequence[TaskFuture[Any]], record: TaskRecord, found: Any) -> None:
        """Tells services by what they are called with: where they listen differs in each run."""
        if record.task.kind != "executable":
            found["args"], found["kwargs"] = self._values(record, self._stands_in)
            return
        found["args"] = tuple(map(self._stands_in, services))
        said = [text for each in services for text in texts_in(each.result(), numbers=True)]
        said = [text for text in said if len(text) > 3]  # shorter ones may mean anything
        found["texts"] = tuple(text for text in found["texts"] if text not in said)

        def told(word: str) -> str:
            for text in sorted(said, key=len, reverse=True):
                word = word.replace(text, f"\0{said.index(text)}\0")
            return word

        found["executable"] = told(found["executable"])
        if "arguments" in found:
            found["arguments"] = [told(word) for word in found["arguments"]]

    def _stands_in(self, service: TaskFuture[Any]) -> tuple[Any, ...]:
        definition, record = cast("TaskFunction[Any, Any]", service._definition), service._node
        called = self._values(record, self._stands_in) if isinstance(record, TaskRecord) else None
        return "service", definition.name, definition.function, called

    async def _hold(
        self, batch: list[tuple[TaskRecord, Any]], pending: list[tuple[Any, Awaitable[Any]]]
    ) -> None:
        # None waits for another plugin's, which may hang.
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
                        fault = TimeoutError("the engine ends, and results are not recorded yet")
                    self._hooks.report(hook, fault)
                else:
                    refused |= _refused(batch, answers)
        finally:  # a plugin's fault takes no result away
            for record, value in batch:
                if record in refused:
                    self._scheduler.fail(record, refused[record])
                else:
                    self._scheduler.reveal(record, value)


def _refused(
    batch: list[tuple[TaskRecord, Any]], answers: object
) -> dict[TaskRecord, BaseException]:
    """Return the tasks that a plugin fails, with their errors."""
    recorded = [record for record, _ in batch if record.description]
    if not isinstance(answers, Sequence) or len(answers) != len(recorded):
        return {}
    pairs = zip(recorded, answers, strict=True)
    return {record: answer for record, answer in pairs if isinstance(answer, Exception)}


def _inputs(record: TaskRecord, scan: ArgumentScan) -> dict[str, str | None]:
    """Return the paths of a task's input files in a dry run, which resolves no files."""
    sources = record.extra.sources if record.extra is not None else ()
    made_by = {key: left for key, each in scan.producers.items() if (left := each._outcome)}
    found: dict[str, Origin] = {}
    for file in scan.inputs:
        with suppress(DataError):  # it does not exist yet
            found |= origins(record.description, [file], sources, made_by)
    return {
        name: origin.path if origin.producer is None else origin.producer.path_of(name)
        for name, origin in found.items()
    }


def _answers(results: object, number: int) -> bool:
    """Whether a look-up was answered with one result or `None` for each task."""
    return (
        isinstance(results, Sequence)
        and len(results) == number
        and all(result is None or isinstance(result, Recorded) for result in results)
    )
