"""Events about tasks and workers that the scheduler plugin publishes, without a cluster."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rhapsody_dask.shipping import ALLOWED_LOSSES, SchedulerSetup
from rhapsody_dask.worker.site import Notes, mark, notes_of

pytestmark = pytest.mark.asyncio

ADDRESS = "tls://127.0.0.1:4711"
TOPIC = "rhapsody.session"
REMOVED: dict[str, Any] = {"removed": ADDRESS, "started": None}


class Scheduler(SimpleNamespace):
    """Stand-in for Dask's scheduler, with the published messages."""

    def __init__(self, *tasks: Task) -> None:
        super().__init__(
            tasks={task.key: task for task in tasks},
            published=[],
            clients={"client"},
            worker_plugins={},
            removed=[],
        )

    def log_event(self, topic: str, message: Any) -> None:
        assert topic == TOPIC
        self.published.append(message)

    async def unregister_worker_plugin(self, comm: None, name: str) -> None:
        del self.worker_plugins[name]
        raise OSError("a worker was lost")

    async def unregister_scheduler_plugin(self, name: str) -> None:
        self.removed.append(name)

    def stimulus_retry(self, keys: list[str]) -> None:
        for key in keys:
            self.tasks[key].state = "waiting"
            for task in self.tasks[key].dependents:
                task.state = "waiting"


class Task:
    """Stand-in for a task in Dask's scheduler."""

    def __init__(self, key: str, state: str, *dependencies: Task) -> None:
        self.key = key
        self.state = state
        self.suspicious = 0
        self.exception_blame: Task | None = None
        self.dependents: set[Task] = set()
        for dependency in dependencies:
            dependency.dependents.add(self)


class Cargo:
    """Stand-in for code that is already installed."""

    def unpack(self, user: str) -> None:
        pass

    def discard(self) -> None:
        pass


async def _plugin(scheduler: Scheduler, notes: Path | None = None) -> SchedulerSetup:
    cargo: Any = Cargo()
    plugin = SchedulerSetup(cargo, "session", None, None if notes is None else str(notes))
    await plugin.start(scheduler)
    return plugin


async def test_transitions_are_published_in_batches() -> None:
    scheduler = Scheduler()
    plugin = await _plugin(scheduler)
    transition = plugin.transition
    transition(
        "f-session-1", "processing", "memory", typename="rhapsody_dask.worker.messages.Returned"
    )
    transition(
        "f-session-2", "processing", "memory", typename="rhapsody_dask.worker.messages.Reply"
    )
    transition("f-session-3", "processing", "erred", stimulus_id="x")
    transition("f-session-4", "waiting", "processing")
    transition("f-session-5", "processing", "forgotten")
    transition("f-session-1", "memory", "released")
    transition("f-session-2", "memory", "forgotten")
    transition("f-another-1", "processing", "memory")
    transition(("array", 1), "processing", "memory")
    assert not scheduler.published
    await asyncio.sleep(0)
    assert scheduler.published == [
        {
            "tasks": [
                ("f-session-1", "returned", None, None, None),
                ("f-session-2", "replied", None, None, None),
                ("f-session-3", "erred"),
                ("f-session-5", "dropped"),
                ("f-session-1", "lost"),
            ]
        }
    ]


async def test_a_lost_worker_is_reported_after_its_tasks() -> None:
    scheduler = Scheduler()
    plugin = await _plugin(scheduler)
    plugin.transition("f-session-1", "processing", "erred")
    plugin.remove_worker(scheduler, ADDRESS)
    await asyncio.sleep(0)
    assert scheduler.published == [{"tasks": [("f-session-1", "erred")]}, REMOVED]


async def test_tasks_waiting_for_a_failed_task_are_reported_as_stuck() -> None:
    killer = Task("killer", "erred")
    lost = Task("lost", "released", killer)
    waits = Task("waits", "waiting", lost)
    well = Task("well", "waiting", Task("runs", "processing"))
    scheduler = Scheduler(killer, lost, waits, well)
    plugin = await _plugin(scheduler)
    plugin.remove_worker(scheduler, ADDRESS)
    assert scheduler.published == [
        {"tasks": [("lost", "stuck"), ("waits", "stuck")]},
        REMOVED,
    ]


def _killed(key: str, *dependencies: Task, times: int = 1) -> Task:
    """Return a task that Dask gave up because its worker was killed."""
    task = Task(key, "erred", *dependencies)
    task.suspicious, task.exception_blame = times, task
    return task


async def test_only_tasks_that_a_killed_worker_had_not_started_run_again(tmp_path: Path) -> None:
    notes = Notes(notes_of(str(tmp_path), ADDRESS))
    notes.remove(notes.add("ended"))
    notes.add("started")
    started, waited = _killed("f-session-started"), _killed("f-session-waited")
    ended, often = _killed("f-session-ended"), _killed("f-session-often", times=ALLOWED_LOSSES + 1)
    needs = Task("f-session-needs", "erred", waited)
    raised = Task("f-session-raised", "erred")
    scheduler = Scheduler(started, waited, ended, often, needs, raised)
    plugin = await _plugin(scheduler, tmp_path)
    for key in scheduler.tasks:
        plugin.transition(key, "processing", "erred")
    plugin.remove_worker(scheduler, ADDRESS)
    again = {key for key, task in scheduler.tasks.items() if task.state == "waiting"}
    assert again == {waited.key, ended.key, needs.key}
    published, removed = scheduler.published
    erred = [(task.key, "erred") for task in (started, often, raised)]
    repeated = [(task.key, "repeated") for task in (waited, ended)]
    assert sorted(published["tasks"]) == sorted(erred + repeated)
    assert removed == {"removed": ADDRESS, "started": [mark("started")]}
    assert not os.listdir(tmp_path)


async def test_tasks_of_a_worker_without_notes_run_again(tmp_path: Path) -> None:
    waited = _killed("f-session-waited")
    scheduler = Scheduler(waited)
    plugin = await _plugin(scheduler, tmp_path)
    plugin.transition(waited.key, "processing", "erred")
    plugin.remove_worker(scheduler, ADDRESS)
    assert waited.state == "waiting"
    removed = {"removed": ADDRESS, "started": []}
    assert scheduler.published == [{"tasks": [(waited.key, "repeated")]}, removed]


async def test_plugins_are_removed_when_the_client_has_disconnected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Requests that the client sent before may be received after its loss."""
    monkeypatch.setattr("rhapsody_dask.shipping.LATE", 0.01)
    cargo: Any = Cargo()
    scheduler = Scheduler()
    plugin = SchedulerSetup(cargo, "session", "client")
    await plugin.start(scheduler)
    scheduler.worker_plugins |= {"rhapsody-session": b"", "rhapsody-session-modules-1": b""}
    scheduler.worker_plugins["another"] = b""
    plugin.remove_client(scheduler, "another client")
    plugin.remove_client(scheduler, "client")
    while not scheduler.removed:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert scheduler.worker_plugins == {"another": b""}
    scheduler.worker_plugins["rhapsody-session-modules-2"] = b""
    await plugin._unregistering
    assert scheduler.worker_plugins == {"another": b""}
    scheduler.clients.clear()
    with pytest.raises(RuntimeError, match="disconnected"):
        await SchedulerSetup(cargo, "session", "client").start(scheduler)
