"""Tasks for which their backend ends too soon: they go to another one, or are held back.

Only of backends that say when they end, and for tasks that say how long they take.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rhapsody.engine.backend_handles import BackendHandle
from rhapsody.engine.record import TaskRecord
from rhapsody.engine.scheduler import Scheduler
from rhapsody.errors import InsufficientWalltimeError
from rhapsody.sdk.walltime import time_needed

log: logging.Logger = logging.getLogger("rhapsody.engine")


class Shortage(NamedTuple):
    """What a task needs, and what its backend has left, both in seconds."""

    needs: float
    left: float


def shortage(record: TaskRecord, backend: BackendHandle) -> Shortage | None:
    """Tells by how much a backend ends too soon for a described task, `None` where it does not."""
    if not backend.may_end or record.description is None:
        return None
    needs = time_needed(record.description)
    if needs is None:
        return None
    left = backend.backend.seconds_left(record.description)
    return None if left is None or needs <= left else Shortage(needs, left)


def elsewhere(
    record: TaskRecord, backend: BackendHandle, able: Callable[[TaskRecord], Sequence[str]]
) -> str | None:
    """Names the backend that a task goes to as its own ends too soon, `None` where it stays.

    Args:
        record: The task, described.
        backend: Its backend.
        able: Gives the backends that can run it and have time for it.
    """
    settings = record.task.settings
    others = settings.other_backends
    if record.pushed or (settings.backend and not others) or shortage(record, backend) is None:
        return None  # with those named or pushed, the backend is the user's or has their values
    return next((name for name in able(record) if name in others or not others), None)


class HoldingBack:
    """Holds tasks of one engine back, for the next run.

    Args:
        uid: The engine's uid.
        scheduler: Fails them.
    """

    def __init__(self, uid: str, scheduler: Scheduler) -> None:
        self._uid = uid
        self._scheduler = scheduler
        self._told: set[str] = set()

    def hold_back(self, record: TaskRecord, backend: BackendHandle, short: Shortage) -> None:
        """Fails a task that is ready; a line in the log tells of the first one of each backend.

        Nothing stands in for its result: it has not failed, and the next run is to make it.
        """
        needs, left = short
        assert record.description is not None
        said = "time-out" if needs == record.description.get("timeout") else "walltime"
        self._scheduler.fail(
            record,
            InsufficientWalltimeError(
                f"{record.named()} was held back: it needs {needs:g} s by its {said}, and backend "
                f"{backend.name!r} ends in {left:.0f} s; the next run takes it up",
                backend=backend.name,
                needs=needs,
                left=left,
            ),
        )
        if backend.name not in self._told:
            self._told.add(backend.name)
            log.warning(
                "engine %s: backend %r ends in %.0f s, and tasks that need longer are held back "
                "for the next run; the first is %s, which needs %g s",
                self._uid, backend.name, left, record.named(), needs,
            )  # fmt: skip
