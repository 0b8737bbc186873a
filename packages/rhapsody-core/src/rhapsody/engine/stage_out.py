"""Files of tasks that are done, put where the user wants them before the results are seen."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from rhapsody.engine.backend_handles import BackendHandle
from rhapsody.engine.background import Background
from rhapsody.engine.outcomes import leave_script
from rhapsody.engine.record import TaskRecord
from rhapsody.engine.regeneration import Regeneration, Reruns
from rhapsody.engine.scheduler import Scheduler
from rhapsody.engine.submission import Submission
from rhapsody.errors import DataError
from rhapsody.plugins.specs import Recorded, TaskFiles
from rhapsody.staging.files import Stager
from rhapsody.staging.outputs import check_outputs, found_in
from rhapsody.task import AttemptInfo, TaskFuture


class StageOut:
    """Saves the files of results, and hands the results on.

    Args:
        scheduler: Is told of results that may be seen, and of files that cannot be saved.
        background: Runs what takes long.
        stager: Puts the files in their places.
        record: Called with each result that is to be recorded.
        missing: Called with each task whose recorded files are to be saved and are gone.
        calls: Takes calls that make files again.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        background: Background,
        stager: Stager,
        record: Callable[[TaskRecord, Any], object],
        missing: Callable[[TaskRecord], object],
        calls: Submission,
    ) -> None:
        self._scheduler = scheduler
        self._background = background
        self._stager = stager
        self._record = record
        self._missing = missing
        self._calls = calls
        self._reruns = Reruns(background.soon)
        self._under_way: set[asyncio.Task[None]] = set()

    def record(self, record: TaskRecord, value: Any) -> None:
        """Has a result saved, recorded where somebody does, and revealed."""
        if not record.targets():
            self._record(record, value)
            return
        self._begin(record, self._save(record, value))

    async def _save(self, record: TaskRecord, value: Any) -> None:
        if record.description is None:  # it was cancelled meanwhile
            return
        assert record.backend is not None
        outcome = record.future._outcome
        try:
            await self._stager.save(
                record.description, record.backend.backend, record.targets(), record.matches()
            )
        except Exception as error:  # a full disk, say: the task has failed
            self._stager.spare(outcome)
            leave_script(record)
            self._scheduler.fail(record, error)
            return
        if self._scheduler.recording and record.task.settings.cache:
            self._record(record, value)
        else:
            self._scheduler.reveal(record, value)

    def restore(self, record: TaskRecord, recorded: Recorded) -> None:
        """Gives a task the result that a plugin had, with its files."""
        files, dry = recorded.files, record.backend is not None and record.backend.dry
        if record.extra is not None and record.extra.resolved is not None:
            self._stager.was_read(record.extra.resolved)
        left = AttemptInfo(
            uid=record.uid,
            name=record.task.name,
            stdout=recorded.stdout,
            stderr=recorded.stderr,
            exit_code=recorded.exit_code,
        )
        if files is None:
            if (left.stdout, left.stderr, left.exit_code) != (None, None, None):
                record.future._outcome = left
            self._scheduler.recorded(record, recorded.value)
            return
        if not dry and not files.gone.isdisjoint(record.targets()):
            self._missing(record)  # it is to be saved
            return
        assert record.description is not None
        outputs = record.found.outputs if record.found is not None else ()
        left.sandbox, left.output_files = files.sandbox, tuple(files.paths)
        left.matches, left.paths = files.matches, files.paths
        if not dry:  # a dry run changes nothing on disk
            left.keeper = self._stager.take_up(record.description, outputs, files)
        record.future._outcome = left
        if files.gone and not dry:
            left.make_again = Regeneration(self._calls, self._reruns, record)
        if not record.targets():
            self._scheduler.recorded(record, recorded.value)
            return
        self._begin(record, self._restore(record, recorded.value, files))

    def _begin(self, record: TaskRecord, work: Coroutine[Any, Any, None]) -> None:
        """Has files of a task saved, which `drain` waits for."""
        saving = self._background.spawn(work, f"save files of {record.uid}")
        self._under_way.add(saving)
        saving.add_done_callback(self._under_way.discard)

    async def _restore(self, record: TaskRecord, value: Any, files: TaskFiles) -> None:
        if record.description is None:  # it was cancelled meanwhile
            return
        try:
            await self._stager.save_again(record.description, record.targets(), files)
        except Exception as error:  # a full disk, say: the task has failed
            self._scheduler.refuse(record, error)
        else:
            self._scheduler.recorded(record, value)

    async def drain(self, grace: float) -> None:
        """Waits until all is saved, `grace` seconds at most. Used at shutdown."""
        if self._under_way:
            await asyncio.wait(tuple(self._under_way), timeout=grace)


async def save_files(
    stager: Stager,
    backends: Mapping[str, BackendHandle],
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
