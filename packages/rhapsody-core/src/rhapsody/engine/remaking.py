"""Files of recorded tasks that are gone: made again when the first task that runs reads one."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable

from rhapsody.engine.calls import Calls
from rhapsody.engine.node import Node
from rhapsody.task import Outcome, TaskFuture

log: logging.Logger = logging.getLogger("rhapsody.engine")


class MakingAgain:
    """Calls a task once more that an earlier run has recorded, once, for the sake of its files.

    Args:
        calls: Takes the call.
        node: The call whose result was recorded.
    """

    def __init__(self, calls: Calls, node: Node) -> None:
        task, args, kwargs, specific = node.task, node.args, node.kwargs or {}, node.specific
        producers = node.found.producers if node.found is not None else {}
        self._call: Callable[[], TaskFuture[object]] = lambda: calls.call(
            task, args, kwargs, specific, producers=producers
        )
        self._attempt = node.uid
        self._name = node.named()
        self._made: TaskFuture[object] | None = None
        self._readers: set[str] = set()

    async def __call__(self, outcome: Outcome, reader: str) -> None:
        """Make the files, or wait until they are made.

        Args:
            outcome: What is left of the call, which holds this; says then where the files are.
            reader: The uid of the task that reads them; of one that is made again itself, the uid
                of the call whose result was found.

        Raises:
            Exception: What the task raises.
        """
        self._readers.add(reader)
        if self._made is None:
            log.info("%s runs again: files of it are gone, and are read", self._name)
            self._made = self._call()
            node = self._made._node
            assert isinstance(node, Node)
            node.more().makes_again, node.more().made_for = self._attempt, self._readers
        await asyncio.shield(self._made)
        if outcome.make_again is self and self._made._outcome is not None:
            for field in dataclasses.fields(Outcome):
                setattr(outcome, field.name, getattr(self._made._outcome, field.name))
