"""Services that run until they are stopped, and how they signal readiness."""

from __future__ import annotations

import asyncio
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from rhapsody.errors import TaskFailedError
from rhapsody.sdk.processes import group_alive
from rhapsody.sdk.services import TaskService, search_output
from tests._support.described import described
from tests._support.scripted import within

pytestmark = pytest.mark.asyncio


async def test_a_service_tells_when_it_is_ready_and_is_stopped_by_a_cancelled_wait(
    tmp_path: Path,
) -> None:
    ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    task = described(tmp_path, "echo at 4711; exec sleep 60", ready=r"stdout:at (\d+)")
    service = TaskService(task, {}, ready=ready.set_result)
    serving = asyncio.ensure_future(service.wait(5))
    assert await within(ready) == "4711"
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(serving)
    assert not group_alive(service.pid)


async def test_a_service_that_is_cancelled_before_it_is_ready_never_is(tmp_path: Path) -> None:
    told: list[Any] = []
    task = described(tmp_path, "exec sleep 60", ready="file:never")
    service = TaskService(task, {}, ready=told.append)
    serving = asyncio.ensure_future(service.wait(5))
    await asyncio.sleep(0)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(serving)
    assert not group_alive(service.pid)
    assert told == []


@pytest.mark.parametrize(
    "parts", [("port 8", "0\n"), ("port 8", "0 is open"), ("po", "rt 80\n"), ("port 80", "")]
)
async def test_a_line_that_comes_in_parts_is_searched_as_a_whole(
    tmp_path: Path, parts: tuple[str, ...]
) -> None:
    file = tmp_path / "stdout"
    writing = Writing(file, *parts)
    assert search_output(str(file), re.compile(r"port (\d+)"), writing) == "80"


async def test_a_service_that_ends_too_early_fails_with_its_last_words(tmp_path: Path) -> None:
    task = described(tmp_path, "echo no license >&2; exit 2", ready="file:never")
    service = TaskService(task, {}, ready=lambda value: None)
    with pytest.raises(TaskFailedError, match="exit code 2 before it was ready: no license"):
        await within(service.wait(5))


class Writing(threading.Event):
    """Event that is never set; the service writes more output during each wait."""

    def __init__(self, file: Path, *parts: str) -> None:
        super().__init__()
        self._file = file
        self._parts = list(parts)

    def wait(self, timeout: float | None = None) -> bool:
        with self._file.open("a") as file:
            file.write(self._parts.pop(0))
        return False
