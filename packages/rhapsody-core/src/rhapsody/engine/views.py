"""What may be read of an engine: what it is made of, and what it is doing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rhapsody.backends.base import BaseExecutionBackend
from rhapsody.data import SavedFile
from rhapsody.engine.record import TaskRecord
from rhapsody.engine.runtime import Runtime
from rhapsody.engine.states import WorkState
from rhapsody.engine.submission import dependency_uids
from rhapsody.engine.timers import Clock
from rhapsody.observers.builtin import BuiltIn
from rhapsody.observers.trace import Profiler
from rhapsody.plugins.specs import Stats, Summary
from rhapsody.states import StateMapper

log: logging.Logger = logging.getLogger("rhapsody.engine")


class Views:
    """The part of `WorkflowEngine` that is only read; of tasks, those that have not ended."""

    _shell: Runtime
    _loop: asyncio.AbstractEventLoop
    _dry_run: bool
    _built_in: BuiltIn
    _implicit_data: bool
    _summary: Summary | None

    @property
    def uid(self) -> str:
        """The engine's uid, the beginning of every uid that its backends get."""
        return self._shell.uid

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop the engine lives on."""
        return self._loop

    @property
    def dry_run(self) -> bool:
        """Whether nothing is really run."""
        return self._dry_run

    @property
    def work_dir(self) -> Path:
        """Where sandboxes are made, an absolute path."""
        return self._shell.stager.work_dir

    @property
    def results_dir(self) -> Path:
        """What the places of saved files are relative to, an absolute path."""
        return self._shell.stager.results.directory

    @property
    def results(self) -> tuple[SavedFile, ...]:
        """Files that tasks made and that stay: those that were saved, in the order of that.

        At the end also those without a place that no task has read, see `keep_sandboxes`.
        """
        return tuple(self._shell.stager.results.saved)

    @property
    def prof(self) -> Profiler:
        """Takes named, timestamped events; puts them into the `trace`."""
        return self._built_in.prof

    @property
    def log(self) -> logging.Logger:
        """The engine's logger."""
        return log

    @property
    def clock(self) -> Clock:
        """Where the engine reads the time."""
        return self._shell.clock

    @property
    def stats(self) -> Stats:
        """Counters since the engine was made."""
        return self._shell.scheduler.stats

    @property
    def backend(self) -> BaseExecutionBackend:
        """The default backend."""
        return next(iter(self._shell.backends.values())).backend

    @property
    def backends(self) -> Mapping[str, BaseExecutionBackend]:
        """Every attached backend by its name, the default one first."""
        return MappingProxyType({name: one.backend for name, one in self._shell.backends.items()})

    @property
    def implicit_data_mode(self) -> bool:
        """Whether dependents see the files of their dependencies' sandboxes."""
        return self._implicit_data

    @property
    def task_states_map(self) -> StateMapper:
        """The states of the default backend."""
        states: StateMapper = next(iter(self._shell.backends.values())).states
        return states

    @property
    def components(self) -> Mapping[str, Mapping[str, Any]]:
        """Each unfinished task and block by uid: its type, description and future."""
        return MappingProxyType(
            {
                record.future.uid: MappingProxyType(
                    {
                        "type": record.task.prefix,
                        "description": record.describe(),
                        "future": record.future,
                    }
                )
                for record in self._nodes()
            }
        )

    @property
    def dependencies(self) -> Mapping[str, tuple[str, ...]]:
        """Each unfinished task and block by uid: the uids of what it depends on."""
        return MappingProxyType(
            {n.future.uid: dependency_uids(n.dependencies) for n in self._nodes()}
        )

    @property
    def resolved(self) -> frozenset[str]:
        """Uids of unfinished tasks and blocks whose dependencies have all ended."""
        return frozenset(
            n.future.uid for n in self._nodes() if n.life.work is not WorkState.WAITING
        )

    @property
    def running(self) -> tuple[str, ...]:
        """Uids of tasks and blocks that are running now, services included."""
        active = (WorkState.RUNNING, WorkState.SERVING, WorkState.CANCELING)
        return tuple(n.future.uid for n in self._nodes() if n.life.work in active)

    @property
    def queue(self) -> tuple[str, ...]:
        """Uids of tasks that are ready and not yet handed to a backend."""
        return tuple(n.future.uid for n in self._nodes() if n.life.work is WorkState.READY)

    def _nodes(self) -> list[TaskRecord]:
        live = self._shell.scheduler.graph.live
        return sorted(live, key=lambda record: (record.task.prefix, record.number))

    @property
    def graph(self) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
        """Of a dry run, what was called so far: each call's uid, name and what it depends on."""
        return tuple(self._shell.calls.made)

    @property
    def summary(self) -> Summary | None:
        """How the run ended, `None` before it has."""
        return self._summary
