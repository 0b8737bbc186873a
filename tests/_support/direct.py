"""A backend driven without an engine, which every backend's tests try."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rhapsody.backends.base import ManagedBackend
from rhapsody.errors import BackendError


class Direct:
    """A backend, and how each task that was submitted to it ended."""

    def __init__(self, backend: ManagedBackend) -> None:
        self.backend = backend
        self.ends: dict[Any, tuple[str, dict[str, Any]]] = {}
        self.doubled: list[Any] = []
        self._changed = asyncio.Condition()
        self._states = backend.get_task_states_map()
        backend.register_callback(self._report)
        self._loop = asyncio.get_running_loop()

    def _report(self, task: dict[str, Any], state: Any, service_callback: Any = None) -> None:
        if state not in self._states.terminal_states:
            return
        if task["uid"] in self.ends:
            self.doubled.append(task["uid"])
        self.ends[task["uid"]] = (self._states.to_main_state(state).value, task)
        self._loop.call_soon_threadsafe(lambda: asyncio.ensure_future(self._notify()))

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def run(self, *tasks: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        await self.backend.submit_tasks(tasks)  # type: ignore[arg-type]
        uids = [task["uid"] for task in tasks]
        async with self._changed:
            await self._changed.wait_for(lambda: all(uid in self.ends for uid in uids))
        return [self.ends[uid] for uid in uids]


async def check_direct_use(backend: ManagedBackend) -> None:
    """Short descriptions run, what makes no sense fails alone, and doubled uids are refused."""
    direct = Direct(backend)
    run = await direct.run(
        {"uid": "direct.function", "function": max, "args": [3, 4], "kwargs": None},
        {"uid": "direct.nothing"},
        {"uid": "direct.shell", "executable": "echo hi"},
    )
    assert [state for state, _ in run] == ["DONE", "FAILED", "DONE"]
    (_, function), (_, nothing), (_, shell) = run
    assert function["return_value"] == 4
    assert "has no 'function'" in str(nothing["exception"])
    assert shell["stdout"] == "hi\n"
    same = [{"uid": "direct.same", "function": int} for _ in range(2)]
    with pytest.raises(BackendError, match=r"'direct\.same'"):
        await direct.run(*same)
    ((state, _),) = await direct.run(same[0])
    assert (state, direct.doubled) == ("DONE", [])
