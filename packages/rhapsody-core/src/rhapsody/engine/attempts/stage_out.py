"""Output files of tasks: saved before the result is set, and regenerated if they are missing.

A recorded result may refer to files that no longer exist. If a task that is about to run reads
one of these files, or `flow.save` saves one, the recorded call is repeated once to produce the
files.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import os
from collections.abc import Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rhapsody.engine.calls.submission import Submission
from rhapsody.engine.core.backend_handles import BackendHandle
from rhapsody.engine.core.background import Background
from rhapsody.engine.core.record import Repetition, TaskRecord
from rhapsody.engine.core.results import are_short, leave_script
from rhapsody.engine.core.scheduler import Scheduler
from rhapsody.engine.functions.task_function import TaskFunction
from rhapsody.errors import DataError
from rhapsody.plugins.specs import Recorded, TaskFiles
from rhapsody.staging.flow import FileFlow, FilePhase
from rhapsody.staging.inputs import left_place
from rhapsody.staging.outputs import check_outputs, found_in
from rhapsody.staging.stager import Stager
from rhapsody.task import AttemptInfo, ProducedFiles, Regeneration, TaskFuture, facts_of

log: logging.Logger = logging.getLogger("rhapsody.engine")

_MAX_NAMES = 3
"""Maximum number of tasks that a log record names."""


class CallRegeneration(Regeneration):
    """Repetition of a call whose recorded result was found, to recreate its missing files.

    Calling this object repeats the call, or waits for the repetition that has already started.

    Args:
        stage_out: The stage-out that submits the call again.
        record: The task of this run for which the recorded result was found.
        files: The recorded files.
    """

    def __init__(self, stage_out: StageOut, record: TaskRecord, files: TaskFiles) -> None:
        self._files = files
        producers = record.call.found.producers if record.call.found is not None else {}
        self._reads = [(each, name) for futures, name, _ in producers.values() for each in futures]
        self._stage_out = stage_out
        self._backend = record.attempt.backend.backend
        self.call: tuple[
            TaskFunction[Any, Any], tuple[Any, ...], dict[str, Any], Mapping[str, Any] | None
        ] = (record.call.task, record.call.args, record.call.kwargs or {}, record.call.specific)
        self.repeats: Repetition = Repetition(record.attempt.uid, producers)
        self.name: str = record.named()
        self._made: TaskFuture[object] | None = None

    def before(self) -> list[Regeneration]:
        """Return the regenerations of the calls that produce this call's missing inputs."""
        outcomes = ((facts_of(future).outcome, name) for future, name in self._reads)
        lost = (left for left, name in outcomes if left and self._is_lost(left, name))
        return [left.files.regeneration for left in lost if left.files.regeneration]

    def _is_lost(self, outcome: AttemptInfo, name: str) -> bool:
        return self._stage_out.stager.is_lost(outcome, left_place(outcome, name))

    async def __call__(self, outcome: AttemptInfo, reader: str | None) -> None:
        """Produce the files, or wait until they exist.

        Args:
            outcome: The outcome of the recorded call; overwritten with that of the repeated call.
            reader: The uid of the task that reads the files; if that task is itself a repetition,
                the uid of the call that it repeats. `None` if no task reads the files.

        Raises:
            Exception: The exception of the repeated call.
        """
        if reader is not None:
            self.repeats.readers.add(reader)
        if self._made is None:
            self._made = self._stage_out.run_again(self)
        await asyncio.shield(self._made)
        made = facts_of(self._made).outcome
        if outcome.files.regeneration is self and made is not None:
            self._stage_out.stager.replaced(outcome)
            for field in dataclasses.fields(AttemptInfo):
                setattr(outcome, field.name, getattr(made, field.name))

    async def save(
        self, outcome: AttemptInfo, names: Sequence[str], place: str | os.PathLike[str]
    ) -> list[Path] | None:
        """Save files of an earlier run, except those whose destinations have the recorded content.

        Returns:
            The destinations, or `None` if a file to save is missing.
        """
        stager, files = self._stage_out.stager, self._files
        source: Any = {"uid": outcome.uid, "name": outcome.name, "sandbox": outcome.files.sandbox}
        targets = stager.results.claims.claim(source, found_in(outcome, names, place))
        try:
            places = {
                name: str(path)
                for name, (path, _) in targets.items()
                if files.has_content is not None and await files.has_content(name, str(path))
            }
            if any(name not in places and self._is_lost(outcome, name) for name in names):
                return None
            paths = {name: outcome.files.path_of(name) for name in names}
            files = dataclasses.replace(files, paths=paths, places=places)
            return await stager.save(source, targets, {}, self._backend, files)
        finally:
            stager.results.claims.release(source)


class StageOut:
    """Stage-out of one engine: saves the output files of results, and restores recorded results.

    Args:
        scheduler: The scheduler, which receives failures and the results whose files have been
            saved.
        background: The runner of the coroutines that save files.
        stager: The stager, which copies the files.
        submission: The receiver of the calls that produce missing files again.

    Attributes:
        stager: The argument `stager`.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        background: Background,
        stager: Stager,
        submission: Submission,
    ) -> None:
        self._scheduler = scheduler
        self._background = background
        self.stager: Stager = stager
        self._submission = submission
        self._run_again: set[Regeneration] = set()
        self._not_logged: list[str] = []
        self._under_way: set[asyncio.Task[None]] = set()
        self._shared: AttemptInfo | None = None  # the last short output of a reused function

    def save(self, record: TaskRecord, value: Any) -> None:
        """Save the files of a result, then call `Scheduler.saved` or `fail`."""
        self._begin(record, self._save(record, value))

    async def _save(self, record: TaskRecord, value: Any, files: TaskFiles | None = None) -> None:
        flow = record.files
        if flow is None or flow.phase is FilePhase.RELEASED:  # the task was canceled meanwhile
            return
        try:
            await flow.save(record.attempt.backend.backend, files)
        except Exception as error:  # such as a full disk: the task has failed
            if files is not None:
                self._scheduler.refuse(record, error)
                return
            if flow.phase is FilePhase.CHECKED:
                flow.fail()
            leave_script(record)
            self._scheduler.fail(record, error)
        else:
            (self._scheduler.saved if files is None else self._scheduler.recorded)(record, value)

    def _output_of(self, record: TaskRecord, recorded: Recorded) -> AttemptInfo:
        """Return the output of a recorded attempt. Functions with equal short outputs share it."""
        stdout, stderr, shared = recorded.stdout, recorded.stderr, self._shared
        if recorded.exit_code is not None:
            return _left(record, recorded)
        if shared is not None and shared.stdout == stdout and shared.stderr == stderr:
            return shared
        outcome = AttemptInfo("", stdout, stderr)
        if are_short(stdout, stderr):
            self._shared = outcome
        return outcome

    def restore(self, record: TaskRecord, recorded: Recorded) -> bool:
        """Complete a task with its recorded result and files.

        Returns:
            True if the recorded result is used. False if the task must run because an output with a
            destination is missing.
        """
        files, dry = recorded.files, record.attempt.backend.dry
        if recorded.computed is not None:
            record.computed = recorded.computed
        output = recorded.stdout, recorded.stderr, recorded.exit_code
        if files is None:
            if output != (None, None, None):
                record.note_outcome(self._output_of(record, recorded))
            if record.files is not None:
                record.files.reuse(None, dry=dry)
            self._scheduler.recorded(record, recorded.value)
            return True
        saved = [each for name in record.targets() for each in files.matches.get(name, (name,))]
        if not dry and not files.missing.isdisjoint(saved):
            record.computed = math.inf
            return False
        flow = record.files
        if flow is None:  # the result is a path
            flow = record.files = FileFlow(self.stager, record.attempt.description)
        reference = flow.reuse(files, dry=dry)
        again = None if dry else CallRegeneration(self, record, files)
        left = _left(record, recorded)
        left.files = ProducedFiles(
            files.sandbox, tuple(files.paths), files.matches, files.paths,
            reference=reference, regeneration=again,
        )  # fmt: skip
        record.note_outcome(left)
        if flow.targets:
            self._begin(record, self._save(record, recorded.value, files))
        else:
            self._scheduler.recorded(record, recorded.value)
        return True

    def run_again(self, making: CallRegeneration) -> TaskFuture[Any]:
        """Repeat a recorded call, and log it together with the calls that reproduce its inputs.

        Returns:
            The future of the repeated call.
        """
        waiting: list[Regeneration] = [making]
        while waiting:
            one = waiting.pop()
            if one in self._run_again:
                continue
            self._run_again.add(one)
            if not self._not_logged:
                self._background.soon(self._log_reruns)
            self._not_logged.append(one.name)
            waiting.extend(one.before())
        return self._background.outside_blocks(
            partial(self._submission.call, *making.call, repeats=making.repeats)
        )

    def _log_reruns(self) -> None:
        new, self._not_logged = self._not_logged, []
        log.warning(
            "rerunning %d task%s of an earlier run to recreate missing files that are needed "
            "(%d so far): %s%s",
            len(new), "s" * (len(new) > 1), len(self._run_again),
            ", ".join(new[:_MAX_NAMES]), ", ..." if len(new) > _MAX_NAMES else "",
        )  # fmt: skip

    def _begin(self, record: TaskRecord, work: Coroutine[Any, Any, None]) -> None:
        """Start a coroutine that saves files. `drain` waits for it."""
        saving = self._background.spawn(work, f"save files of {record.attempt.uid}")
        self._under_way.add(saving)
        saving.add_done_callback(self._under_way.discard)

    async def drain(self, grace: float) -> None:
        """Wait up to `grace` seconds for all files to be saved. Called at shutdown."""
        if self._under_way:
            await asyncio.wait(tuple(self._under_way), timeout=grace)


async def save_files(
    stager: Stager,
    backends: Mapping[str, BackendHandle],
    future: TaskFuture[Any],
    place: str | os.PathLike[str],
    name: str | None,
    *,
    dry: bool,
) -> list[Path]:
    """Copy files from the sandbox of a task; implements `WorkflowEngine.save`."""
    if not isinstance(future, TaskFuture):
        raise TypeError(
            "save() takes the future of a task and a destination, as in `await flow.save(future, "
            f"'results/')`, got an object of type {type(future).__name__}"
        )
    await future
    outcome = facts_of(future).outcome
    names = _names(outcome, name)
    if outcome is None or outcome.files.sandbox is None or not names:
        raise DataError(
            f"save(): task {future.name!r} ({future.uid}) declares no output files; pass it an "
            "OutputFile, or choose a file in its sandbox with name='...'"
        )
    stager.results.found(future.uid, names)
    again = outcome.files.regeneration
    if again is not None:
        saved = await again.save(outcome, names, place)
        if saved is not None:
            return saved
        await again(outcome, None)
        names = _names(outcome, name)
    source: Any = {"uid": outcome.uid, "name": future.name, "sandbox": outcome.files.sandbox}
    attached = backends.get(outcome.backend or "") or next(iter(backends.values()))
    backend = attached.backend
    outputs = found_in(outcome, names, place)
    if not dry:
        check_outputs(source, outputs, backend)
    targets = stager.results.claims.claim(source, outputs)
    try:
        if dry:
            return [target.path for target in targets.values()]
        return await stager.save(source, targets, {}, backend)
    finally:
        stager.results.claims.release(source)


def _names(outcome: AttemptInfo | None, name: str | None) -> Sequence[str]:
    if name is not None:
        return [name]
    return outcome.files.output_files if outcome is not None else ()


def _left(record: TaskRecord, recorded: Recorded) -> AttemptInfo:
    """Return what the recorded attempt of a task has left, without its files."""
    return AttemptInfo(
        uid=record.attempt.uid,
        name=record.call.task.name,
        stdout=recorded.stdout,
        stderr=recorded.stderr,
        exit_code=recorded.exit_code,
    )
