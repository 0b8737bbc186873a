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

from rhapsody.aio import asked_to_stop
from rhapsody.engine.arguments import texts_in
from rhapsody.engine.background import Background
from rhapsody.engine.life import Work
from rhapsody.engine.machine import Machine
from rhapsody.engine.node import Node
from rhapsody.engine.services import is_service
from rhapsody.engine.tasks import Task
from rhapsody.errors import DataError, PluginError
from rhapsody.plugins.manager import EngineHooks, PluginHook
from rhapsody.plugins.specs import LookupTask, ObservedEngine, Record, Recorded, TaskFiles
from rhapsody.staging.origins import Origin, origins
from rhapsody.task import TaskFuture

log: logging.Logger = logging.getLogger("rhapsody.engine")


class Recording:
    """Looks results up, and holds those of tasks that have run until they are recorded.

    Args:
        machine: Is told of results that are found, and of those that may be seen.
        hooks: The plugins' hooks.
        engine: What they are told is the engine.
        background: Runs what takes long.
        missing: Called with each node for which no plugin has a result.
        found: Called with each for which one has.
        values: Gives a node's arguments, see `Preparation.values`.
        implicit_data: Whether tasks see what dependencies left in their sandboxes.
    """

    def __init__(
        self,
        machine: Machine,
        hooks: EngineHooks,
        engine: ObservedEngine,
        background: Background,
        missing: Callable[[Node], object],
        found: Callable[[Node, Recorded], object],
        values: Callable[[Node, Callable[[Any], Any]], tuple[tuple[Any, ...], dict[str, Any]]],
        *,
        implicit_data: bool,
    ) -> None:
        self._machine = machine
        self._hooks = hooks
        self._engine = engine
        self._background = background
        self._missing = missing
        self._found = found
        self._values = values
        self._implicit_data = implicit_data
        self._said = False
        self._unlooked: list[Node] = []
        self._looking: set[asyncio.Task[None]] = set()
        self._unrecorded: list[tuple[Node, Any]] = []
        self._holding: set[asyncio.Task[None]] = set()

    # Before a task runs.

    def look_up(self, node: Node) -> bool:
        """Whether a node is being looked up; it goes on by `missing`, or is recorded."""
        settings = node.task.settings
        if not self._hooks.lookup_results or settings.service or not settings.cache:
            return False
        if node.attempt != 1 or node.pushed:  # the values of its arguments are not here
            if node.pushed and not self._said:
                self._say(node)
            return False
        if node.extra is not None and node.extra.makes_again is not None:  # it was found before
            return False
        if not self._unlooked:
            looking = self._background.spawn(self._look_up(), "look up results")
            self._looking.add(looking)
            looking.add_done_callback(self._looking.discard)
        self._unlooked.append(node)
        return True

    def _say(self, node: Node) -> None:
        self._said = True
        log.warning(
            "%r goes to its backend before its dependencies have ended: such tasks, and those "
            "whose values stay there, are not recorded, and run again when the run is; with "
            "push_down=False they are (-e push_down=false)", node.task.name,
        )  # fmt: skip

    def stop_looking(self) -> None:
        """The engine ends: nobody waits for what plugins look up any more."""
        for looking in tuple(self._looking):
            looking.cancel()

    async def _look_up(self) -> None:
        waiting, self._unlooked = self._unlooked, []
        for hook in self._hooks.lookup_results:
            waiting = [node for node in waiting if node.life.work is Work.READY]
            if not waiting:
                return
            tasks = [self._to_look_up(node) for node in waiting]
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
            for node, result in zip(waiting, results, strict=True):
                if node.life.work is not Work.READY:  # it was cancelled meanwhile
                    continue
                if isinstance(result, Recorded):
                    self._found(node, result)
                else:
                    missing.append(node)
            waiting = missing
        for node in waiting:
            self._missing(node)

    async def _looked_up(self, hook: PluginHook, results: Awaitable[Any]) -> Any:
        try:
            return await results
        except (Exception, asyncio.CancelledError) as error:  # the plugin's own: the tasks run
            if asked_to_stop():
                raise
            self._hooks.report(hook, error)
            return None

    # After it has run.

    def record(self, node: Node, value: Any) -> None:
        """Has a result recorded with others of this turn of the loop, and then revealed."""
        if not self._unrecorded:
            self._background.soon(self._record)
        self._unrecorded.append((node, value))

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
        records = [
            self._to_record(node, value) for node, value in batch if node.description is not None
        ]
        hooks, pending = self._hooks, []
        for hook in hooks.record_results if records else ():
            result = hooks.call(hook, engine=self._engine, records=records)
            if inspect.isawaitable(result):
                pending.append((hook, result))
        if not pending:
            for node, value in batch:
                self._machine.reveal(node, value)
            return
        task = self._background.spawn(self._hold(batch, pending), "record results")
        self._holding.add(task)
        task.add_done_callback(self._holding.discard)

    def _to_record(self, node: Node, value: Any) -> Record:
        """What a plugin gets of a result."""
        assert node.description is not None
        uid, settings = node.future.uid, node.task.recording_settings
        outcome = node.future._outcome
        if outcome is None:  # of a function that printed nothing
            return Record(uid, node.description, value, settings, node.input_paths())
        return Record(
            uid,
            node.description,
            value,
            settings,
            node.input_paths(),
            self._files(node),
            outcome.stdout,
            outcome.stderr,
            outcome.exit_code,
            node.texts(),
            None if node.extra is None else node.extra.makes_again,
            () if node.extra is None else tuple(node.extra.made_for),
        )

    def _files(self, node: Node) -> TaskFiles | None:
        """What a task has made that is done."""
        outcome = node.future._outcome
        if outcome is None or outcome.sandbox is None:
            return None
        names, matches = outcome.output_files, outcome.matches or {}
        places: dict[str, str] = {}
        for name, (path, kind) in node.targets().items():
            if kind == "matches":
                places.update({each: str(path / each) for each in matches.get(name, ())})
            else:
                places[name] = str(path)
        paths = {name: outcome.path_of(name) for name in names}
        shared = self._implicit_data and not names
        stays = outcome.keeper is None
        return TaskFiles(outcome.sandbox, paths, matches, places, shared, stays)

    def _to_look_up(self, node: Node) -> LookupTask:
        """What a plugin gets of a task to look for its result."""
        assert node.description is not None
        found: Any = node.description.copy()
        found["settings"] = node.task.recording_settings
        found["inputs"] = node.input_paths()
        found["implicit"], found["texts"] = (), node.texts()
        found["shares_memory"] = node.backend is not None and node.backend.shares_memory
        if node.found is not None and node.backend is not None and node.backend.dry:
            found["inputs"] = _inputs(node)
        if node.extra is not None and self._implicit_data and "sandbox" in found:
            sources = node.extra.sources
            found["implicit"] = tuple(
                each.sandbox for each in sources if each.sandbox and not each.output_files
            )
        services = [each for each in node.dependencies if is_service(each)]
        if services:
            self._tell(services, node, found)
        return cast("LookupTask", found)

    def _tell(self, services: Sequence[TaskFuture[Any]], node: Node, found: Any) -> None:
        """Tells services by what they are called with: where they listen differs in each run."""
        if node.task.kind != "executable":
            found["args"], found["kwargs"] = self._values(node, self._stands_in)
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
        definition, node = cast("Task[Any, Any]", service._definition), service._node
        called = self._values(node, self._stands_in) if isinstance(node, Node) else None
        return "service", definition.name, definition.function, called

    async def _hold(
        self, batch: list[tuple[Node, Any]], pending: list[tuple[Any, Awaitable[Any]]]
    ) -> None:
        # None waits for another plugin's, which may hang.
        refused: dict[Node, BaseException] = {}
        others = [(hook, asyncio.ensure_future(result)) for hook, result in pending[1:]]
        try:
            for hook, result in [*pending[:1], *others]:
                try:
                    answers = await result
                except (Exception, asyncio.CancelledError) as error:
                    fault: BaseException = error
                    if asked_to_stop():
                        for _, other in others:
                            other.cancel()
                        fault = TimeoutError("the engine ends, and results are not recorded yet")
                    self._hooks.report(hook, fault)
                else:
                    refused |= _refused(batch, answers)
        finally:  # a plugin's fault takes no result away
            for node, value in batch:
                if node in refused:
                    self._machine.fail(node, refused[node])
                else:
                    self._machine.reveal(node, value)


def _refused(batch: list[tuple[Node, Any]], answers: object) -> dict[Node, BaseException]:
    """Return the nodes that a plugin fails, with their errors."""
    recorded = [node for node, _ in batch if node.description is not None]
    if not isinstance(answers, Sequence) or len(answers) != len(recorded):
        return {}
    pairs = zip(recorded, answers, strict=True)
    return {node: answer for node, answer in pairs if isinstance(answer, Exception)}


def _inputs(node: Node) -> dict[str, str | None]:
    """Return the paths of a node's input files in a dry run, which resolves no files."""
    assert node.found is not None
    assert node.description is not None
    sources = node.extra.sources if node.extra is not None else ()
    made_by = {key: left for key, each in node.found.producers.items() if (left := each._outcome)}
    found: dict[str, Origin] = {}
    for file in node.found.inputs:
        with suppress(DataError):  # it does not exist yet
            found |= origins(node.description, [file], sources, made_by)
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
