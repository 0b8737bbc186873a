"""The gate every result passes: record it, then reveal it to whoever waits.

Nothing sees the result of a task before the plugins that record results have
had it. Where nobody records, this is one function call.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from rhapsody.aio import asked_to_stop
from rhapsody.engine.life import Event
from rhapsody.plugins.specs import Record
from rhapsody.states import TasksMainStates

if TYPE_CHECKING:
    from rhapsody.engine.node import Node
    from rhapsody.engine.runtime import Runtime


class Gate:
    """Holds results until they are recorded."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._unrecorded: list[tuple[Node, Any]] = []
        self._holding: set[asyncio.Task[None]] = set()

    def done(self, node: Node, value: Any) -> None:
        """The work has ended well."""
        if not self._runtime.hooks.record_results or not node.task.settings.cache:
            self.reveal(node, value)
            return
        if not self._unrecorded:
            self._runtime.soon(self._record)
        self._unrecorded.append((node, value))

    def reveal(self, node: Node, value: Any) -> None:
        """The result may be seen: sets the future, unless it was cancelled meanwhile."""
        if node.step(Event.REVEAL):
            self.show(node, value)

    def show(self, node: Node, value: Any) -> None:
        """Sets the future of a node whose life says that it is done."""
        runtime = self._runtime
        runtime.stats.done += 1
        future = node.future
        if not future.done():
            future.set_result(value)
        if runtime.observed:
            runtime.observe(node, TasksMainStates.DONE)
        runtime.graph.settled(node)

    async def drain(self, grace: float) -> None:
        """Waits until nothing is held any more, `grace` seconds at most. Used at shutdown."""
        self._record()
        loop = self._runtime.loop
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
            Record(
                uid=node.future.uid,
                task=node.description,
                value=value,
                settings=node.recording_settings(),
                inputs=node.input_paths(),
            )
            for node, value in batch
            if node.description is not None
        ]
        hooks, pending = self._runtime.hooks, []
        for hook in hooks.record_results if records else ():
            result = hooks.call(hook, engine=self._runtime.engine, records=records)
            if inspect.isawaitable(result):
                pending.append((hook, result))
        if not pending:
            for node, value in batch:
                self.reveal(node, value)
            return
        task = self._runtime.spawn(self._hold(batch, pending), "record results")
        self._holding.add(task)
        task.add_done_callback(self._holding.discard)

    async def _hold(
        self, batch: list[tuple[Node, Any]], pending: list[tuple[Any, Awaitable[Any]]]
    ) -> None:
        try:
            for hook, result in pending:
                try:
                    await result
                except (Exception, asyncio.CancelledError) as error:
                    if asked_to_stop():
                        late = TimeoutError("the engine ends, and results are not recorded yet")
                        self._runtime.hooks.report(hook, late)
                        return
                    self._runtime.hooks.report(hook, error)
        finally:  # a plugin's fault takes no result away
            for node, value in batch:
                self.reveal(node, value)
