"""What an engine tells of itself: its counters, how it ended, and what may be read of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rhapsody.data import SavedFile


@dataclass(slots=True)
class Stats:
    """Counters of one engine since it was made.

    Attributes:
        tasks: Calls of tasks and blocks.
        done: Futures that got a result.
        failed: Futures that got an exception.
        cancelled: Futures that were cancelled.
        recorded: Results that a plugin had recorded earlier; the tasks did not run.
        retried: Attempts that failed and were followed by another.
        lost: Attempts that the infrastructure lost.
        late: Updates that came too late or out of order, and ends that came twice; none of
            them was applied.
        unknown: Updates of tasks or states that nobody knows.
        skipped: Those of `failed` that did not run, because one that they depend on has failed.
    """

    tasks: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    recorded: int = 0
    retried: int = 0
    lost: int = 0
    late: int = 0
    unknown: int = 0
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended; given to `rhapsody_workflow_finished`.

    Attributes:
        uid: The engine's uid.
        stats: Its counters.
        seconds: From its start to its end, by the wall clock.
        still_running: Uids of tasks whose work could not be stopped.
        problems: What went wrong while shutting down, in words.
        graph: For a dry run: each call's uid, name and the uids it depends on.
        unawaited: How many failed tasks and blocks nobody awaited.
        backends: By each backend's name what it tells of its life, see `account` of
            `ManagedBackend`; those that tell nothing are left out.
        results: Files that tasks made and that are there now.
        stale: Files of an earlier run at the destinations of results that this run did not
            produce, because their tasks failed, were skipped or were cancelled.
        disk_use: Bytes in the directory of the runs (`.rhapsody`, or `work_dir`), 0 if this run has
            left nothing there. Counting stops after half a second.
        cut_short: Whether so many tasks failed that all others were cancelled, see `fail_fast` and
            `max_failures` of `WorkflowEngine.create`.
        held_back: Whether tasks were held back for the next run, as their backend was about to
            end.
    """

    uid: str
    stats: Stats
    seconds: float
    still_running: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    graph: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    unawaited: int = 0
    backends: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    results: tuple[SavedFile, ...] = ()
    stale: tuple[SavedFile, ...] = ()
    disk_use: int = 0
    cut_short: bool = False
    held_back: bool = False


class ObservedEngine(Protocol):
    """What a plugin may read of the engine that calls its hooks: a `WorkflowEngine`'s views.

    All of it is to be read on the engine's loop, and none of it to be changed.
    """

    @property
    def uid(self) -> str:
        """The beginning of every uid that its backends get."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that it lives on, and on which hooks are called."""

    @property
    def log(self) -> logging.Logger:
        """Its logger."""

    @property
    def work_dir(self) -> Path:
        """Where sandboxes are made, an absolute path."""

    @property
    def dry_run(self) -> bool:
        """Whether nothing is really run."""

    @property
    def stats(self) -> Stats:
        """Its counters."""

    @property
    def summary(self) -> Summary | None:
        """How the run ended, `None` before it has."""

    @property
    def backends(self) -> Mapping[str, Any]:
        """The attached backends by their names, the default one first."""

    @property
    def dependencies(self) -> Mapping[str, tuple[str, ...]]:
        """Each unfinished task and block by uid: the uids of what it depends on."""

    @property
    def queue(self) -> tuple[str, ...]:
        """Uids of tasks that are ready and not yet handed to a backend."""

    @property
    def running(self) -> tuple[str, ...]:
        """Uids of tasks and blocks that are running now, services included."""
