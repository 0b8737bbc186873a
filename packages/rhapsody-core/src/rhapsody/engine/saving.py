"""Files of tasks that are done, put where the user wants them before the results are seen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from rhapsody.engine.background import Background
from rhapsody.engine.machine import Machine
from rhapsody.engine.node import Node
from rhapsody.engine.outcomes import leave_script
from rhapsody.staging.files import Stager


class Saving:
    """Saves the files of results, and hands the results on.

    Args:
        machine: Is told of results that may be seen, and of files that cannot be saved.
        background: Runs what takes long.
        stager: Puts the files in their places.
        record: Called with each result that is to be recorded.
    """

    def __init__(
        self,
        machine: Machine,
        background: Background,
        stager: Stager,
        record: Callable[[Node, Any], object],
    ) -> None:
        self._machine = machine
        self._background = background
        self._stager = stager
        self._record = record
        self._under_way: set[asyncio.Task[None]] = set()

    def record(self, node: Node, value: Any) -> None:
        """Has a result saved, recorded where somebody does, and revealed."""
        if not node.targets():
            self._record(node, value)
            return
        saving = self._background.spawn(self._save(node, value), f"save files of {node.uid}")
        self._under_way.add(saving)
        saving.add_done_callback(self._under_way.discard)

    async def _save(self, node: Node, value: Any) -> None:
        assert node.backend is not None
        assert node.description is not None
        outcome = node.future._outcome
        try:
            await self._stager.save(
                node.description, node.backend.backend, node.targets(), node.matches()
            )
        except Exception as error:  # a full disk, say: the task has failed
            self._stager.spare(outcome)
            leave_script(node)
            self._machine.fail(node, error)
            return
        if self._machine.recording and node.task.settings.cache:
            self._record(node, value)
        else:
            self._machine.reveal(node, value)

    async def drain(self, grace: float) -> None:
        """Waits until all is saved, `grace` seconds at most. Used at shutdown."""
        if self._under_way:
            await asyncio.wait(tuple(self._under_way), timeout=grace)
