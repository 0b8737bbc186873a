"""Regeneration of missing files of recorded tasks, when a task that runs reads one."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable

from rhapsody.engine.record import TaskRecord
from rhapsody.engine.submission import Submission
from rhapsody.staging.resolved import left_by
from rhapsody.task import AttemptInfo, TaskFuture

log: logging.Logger = logging.getLogger("rhapsody.engine")

_NAMED = 3
"""Number of tasks that a log line names."""


class Reruns:
    """Logs how many tasks of an earlier run run again because their files are missing.

    Args:
        soon: Makes a call in the next turn of the loop.
    """

    def __init__(self, soon: Callable[[Callable[[], object]], object]) -> None:
        self._soon = soon
        self._known: set[Regeneration] = set()
        self._new: list[str] = []

    def add(self, making: Regeneration) -> None:
        """Count a task, and the tasks whose missing files it needs."""
        waiting = [making]
        while waiting:
            one = waiting.pop()
            if one in self._known:
                continue
            self._known.add(one)
            if not self._new:
                self._soon(self._tell)
            self._new.append(one.name)
            waiting += one.before()

    def _tell(self) -> None:
        new, self._new = self._new, []
        log.warning(
            "%d task%s of an earlier run run%s again because tasks need their missing files "
            "(%d so far): %s%s",
            len(new), "s" * (len(new) > 1), "s" * (len(new) == 1), len(self._known),
            ", ".join(new[:_NAMED]), ", ..." if len(new) > _NAMED else "",
        )  # fmt: skip


class Regeneration:
    """Repeats the call of a recorded task, once, in order to produce its files again.

    Args:
        calls: Takes the call.
        reruns: Logs that the task runs again.
        record: The call whose result was recorded.
    """

    def __init__(self, calls: Submission, reruns: Reruns, record: TaskRecord) -> None:
        task, args, kwargs, specific = (
            record.task,
            record.args,
            record.kwargs or {},
            record.specific,
        )
        inputs = record.found.inputs if record.found is not None else ()
        producers = record.found.producers if record.found is not None else {}
        self._reads = [(producers[id(f)], f.filename) for f in inputs if id(f) in producers]
        self._reruns = reruns
        self._call: Callable[[], TaskFuture[object]] = lambda: calls.call(
            task, args, kwargs, specific, producers=producers
        )
        self._attempt = record.uid
        self.name: str = record.named()
        self._made: TaskFuture[object] | None = None
        self._readers: set[str] = set()

    def before(self) -> list[Regeneration]:
        """Return the repeated calls that must produce files for this one."""
        found = []
        for future, name in self._reads:
            left = future._outcome
            if left is not None and left_by(left, name) is None:
                again = left.make_again
                found += [again] if isinstance(again, Regeneration) else []
        return found

    async def __call__(self, outcome: AttemptInfo, reader: str) -> None:
        """Produce the files, or wait until they exist.

        Args:
            outcome: The outcome of the recorded call; afterwards it contains the new paths.
            reader: The uid of the task that reads them; if that is itself repeated, the uid of the
                call whose result was found.

        Raises:
            Exception: The task's own exception.
        """
        self._readers.add(reader)
        if self._made is None:
            self._reruns.add(self)
            self._made = self._call()
            record = self._made._node
            assert isinstance(record, TaskRecord)
            record.more().makes_again, record.more().made_for = self._attempt, self._readers
        await asyncio.shield(self._made)
        if outcome.make_again is self and self._made._outcome is not None:
            for field in dataclasses.fields(AttemptInfo):
                setattr(outcome, field.name, getattr(self._made._outcome, field.name))
