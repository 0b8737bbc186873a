"""What is concluded of tasks whose worker was killed, without a cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rhapsody.errors import TaskLostError
from rhapsody_dask.calls import Call
from rhapsody_dask.losses import WAITS, Losses
from rhapsody_dask.shipping import SchedulerSetup
from rhapsody_dask.worker.entry import retry
from rhapsody_dask.worker.witness import Witness, path_of

pytestmark = pytest.mark.asyncio

ADDRESS = "tls://127.0.0.1:4711"


class Killed:
    """As much of Dask's `KilledWorker` as is looked at."""

    class last_worker:  # noqa: N801 - Dask's name
        address = ADDRESS


class Retrying:
    """A client that notes what it was to run again."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[list[Any]] = asyncio.Queue()

    async def retry(self, futures: list[Any]) -> None:
        self.asked.put_nowait(futures)


def _call(uid: str) -> Call:
    task: Any = {"uid": uid, "name": uid, "function": print, "is_service": False}
    call = Call(task, "session")
    call.future = uid
    return call


async def test_what_ran_is_lost_and_what_waited_or_had_ended_runs_again(tmp_path: Path) -> None:
    witness = Witness(path_of(str(tmp_path), ADDRESS))
    witness.note("ran")
    witness.release(witness.note("ended"))
    calls = {call.key: call for call in map(_call, ["ran", "ended", "waited"])}
    ran, ended, waited = calls.values()
    ended.begun, ended.worker = True, ADDRESS  # as was told before it ended
    client, lost = Retrying(), []

    def gone(call: Call, error: BaseException) -> None:
        assert isinstance(error, TaskLostError)
        lost.append(call)

    losses = Losses(client, calls, gone, lambda uid: None, str(tmp_path))
    for call in (ran, ended, waited):
        losses.killed(call, Killed)
    losses.left(ADDRESS)
    assert lost == [ran]
    async with asyncio.timeout(10):
        assert await client.asked.get() == ["ended", "waited"]


async def test_a_task_whose_workers_all_die_is_lost_in_the_end(tmp_path: Path) -> None:
    call = _call("waited")
    client, lost = Retrying(), []
    losses = Losses(
        client, {call.key: call}, lambda c, _: lost.append(c), lambda uid: None, str(tmp_path)
    )
    for _ in range(WAITS):
        losses.killed(call, Killed)
    assert not lost
    losses.killed(call, Killed)
    assert lost == [call]
    losses.close()


async def test_what_was_given_up_with_others_runs_again_with_them() -> None:
    first, second, well = Task("first", "erred"), Task("second", "erred"), Task("well", "memory")
    both = Task("both", "erred", first, second, well)  # Dask has it wait for the other for ever
    last = Task("last", "erred", first)
    hidden = Task("hidden", "erred")
    gone = Task("gone", "released", hidden)  # Dask has it wait, too
    end = Task("end", "erred", first, gone)
    other = Task("other", "erred")
    tasks = {t.key: t for t in (first, second, well, both, last, hidden, gone, end, other)}
    asked: list[Any] = []

    def stimulus_retry(keys: list[str], client: str) -> None:
        asked.append((sorted(keys), client))

    scheduler = SimpleNamespace(tasks=tasks, stimulus_retry=stimulus_retry)
    retry(["last", "unknown"], "us", scheduler)
    assert asked == [(["both", "end", "first", "hidden", "last", "second"], "us")]


class Noting(SimpleNamespace):
    """As much of Dask's scheduler as is looked at, and a note of what it was to do."""

    def transitions(self, wanted: dict[str, str], *, stimulus_id: str) -> None:
        self.ordered = wanted

    def log_event(self, topic: str, message: Any) -> None:
        pass


class Task:
    """As much of a task in Dask's scheduler as is looked at."""

    exception_blame: Any = None

    def __init__(self, key: str, state: str, *dependencies: Task, wanted: bool = False) -> None:
        self.key = key
        self.state = state
        self.dependencies = {*dependencies}
        self.dependents: set[Task] = set()
        for dependency in dependencies:
            dependency.dependents.add(self)
        self.who_wants = {"us"} if wanted else None


@pytest.mark.parametrize("client", [None, "us"])
async def test_what_dask_leaves_waiting_for_a_task_that_it_gave_up_fails(
    client: str | None,
) -> None:
    killer = Task("killer", "erred")
    killer.exception_blame = killer
    lost = Task("lost", "released", killer)
    waits = Task("waits", "waiting", lost, wanted=True)
    well = Task("well", "waiting", Task("runs", "processing"), wanted=True)
    unused = Task("unused", "released", killer)
    tasks = {task.key: task for task in (killer, lost, waits, well, unused)}
    clients = {"us": SimpleNamespace(wants_what={waits, well})}
    scheduler = Noting(tasks=tasks, clients=clients, ordered=None)
    cargo: Any = None
    SchedulerSetup(cargo, "session", client).remove_worker(scheduler, ADDRESS)
    assert scheduler.ordered == {"lost": "erred"}  # Dask goes on with those that wait for it
    assert lost.exception_blame is killer
