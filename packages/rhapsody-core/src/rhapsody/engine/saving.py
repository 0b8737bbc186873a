"""Files of tasks that are done, put where the user wants them before the results are seen."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from rhapsody.engine.attach import Attached
from rhapsody.engine.background import Background
from rhapsody.engine.calls import Calls
from rhapsody.engine.machine import Machine
from rhapsody.engine.node import Node
from rhapsody.engine.outcomes import leave_script
from rhapsody.engine.remaking import MakingAgain, Reruns
from rhapsody.errors import DataError
from rhapsody.plugins.specs import Recorded, TaskFiles
from rhapsody.staging.files import Stager
from rhapsody.staging.outputs import check_outputs, found_in
from rhapsody.task import Outcome, TaskFuture


class Saving:
    """Saves the files of results, and hands the results on.

    Args:
        machine: Is told of results that may be seen, and of files that cannot be saved.
        background: Runs what takes long.
        stager: Puts the files in their places.
        record: Called with each result that is to be recorded.
        missing: Called with each node whose recorded files are to be saved and are gone.
        calls: Takes calls that make files again.
    """

    def __init__(
        self,
        machine: Machine,
        background: Background,
        stager: Stager,
        record: Callable[[Node, Any], object],
        missing: Callable[[Node], object],
        calls: Calls,
    ) -> None:
        self._machine = machine
        self._background = background
        self._stager = stager
        self._record = record
        self._missing = missing
        self._calls = calls
        self._reruns = Reruns(background.soon)
        self._under_way: set[asyncio.Task[None]] = set()

    def record(self, node: Node, value: Any) -> None:
        """Has a result saved, recorded where somebody does, and revealed."""
        if not node.targets():
            self._record(node, value)
            return
        self._begin(node, self._save(node, value))

    async def _save(self, node: Node, value: Any) -> None:
        if node.description is None:  # it was cancelled meanwhile
            return
        assert node.backend is not None
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

    def restore(self, node: Node, recorded: Recorded) -> None:
        """Gives a task the result that a plugin had, with its files."""
        files, dry = recorded.files, node.backend is not None and node.backend.dry
        if node.extra is not None and node.extra.resolved is not None:
            self._stager.was_read(node.extra.resolved)
        left = Outcome(
            uid=node.uid,
            name=node.task.name,
            stdout=recorded.stdout,
            stderr=recorded.stderr,
            exit_code=recorded.exit_code,
        )
        if files is None:
            if (left.stdout, left.stderr, left.exit_code) != (None, None, None):
                node.future._outcome = left
            self._machine.recorded(node, recorded.value)
            return
        if not dry and not files.gone.isdisjoint(node.targets()):
            self._missing(node)  # it is to be saved
            return
        assert node.description is not None
        outputs = node.found.outputs if node.found is not None else ()
        left.sandbox, left.output_files = files.sandbox, tuple(files.paths)
        left.matches, left.paths = files.matches, files.paths
        if not dry:  # a dry run changes nothing on disk
            left.keeper = self._stager.take_up(node.description, outputs, files)
        node.future._outcome = left
        if files.gone and not dry:
            left.make_again = MakingAgain(self._calls, self._reruns, node)
        if not node.targets():
            self._machine.recorded(node, recorded.value)
            return
        self._begin(node, self._restore(node, recorded.value, files))

    def _begin(self, node: Node, work: Coroutine[Any, Any, None]) -> None:
        """Has files of a node saved, which `drain` waits for."""
        saving = self._background.spawn(work, f"save files of {node.uid}")
        self._under_way.add(saving)
        saving.add_done_callback(self._under_way.discard)

    async def _restore(self, node: Node, value: Any, files: TaskFiles) -> None:
        if node.description is None:  # it was cancelled meanwhile
            return
        try:
            await self._stager.save_again(node.description, node.targets(), files)
        except Exception as error:  # a full disk, say: the task has failed
            self._machine.refuse(node, error)
        else:
            self._machine.recorded(node, value)

    async def drain(self, grace: float) -> None:
        """Waits until all is saved, `grace` seconds at most. Used at shutdown."""
        if self._under_way:
            await asyncio.wait(tuple(self._under_way), timeout=grace)


async def save_files(
    stager: Stager,
    backends: Mapping[str, Attached],
    future: TaskFuture[Any],
    place: str | os.PathLike[str],
    name: str | None,
) -> list[Path]:
    """Does what `WorkflowEngine.save` says, which has the same arguments."""
    if not isinstance(future, TaskFuture):
        raise TypeError(
            "save takes the future of a task and a place, as in `await flow.save(future, "
            f"'results/')`; got an object of type {type(future).__name__}"
        )
    await future
    outcome = future._outcome
    names = [name] if name is not None else list(outcome.output_files) if outcome else []
    if outcome is None or outcome.sandbox is None or not names:
        raise DataError(
            f"save: task {future.name!r} ({future.uid}) declares no output files; pass it an "
            "OutputFile, or say which of the files in its sandbox is meant: name='...'"
        )
    source: Any = {"uid": outcome.uid, "name": future.name, "sandbox": outcome.sandbox}
    outputs = found_in(outcome.sandbox, names, place)
    attached = backends.get(outcome.backend or "") or next(iter(backends.values()))
    backend = attached.backend
    check_outputs(source, outputs, backend)
    targets = stager.results.places.claim(source, outputs)
    try:
        return await stager.save(source, backend, targets, {})
    finally:
        stager.results.places.release(source)
