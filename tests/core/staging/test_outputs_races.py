"""Saving of files that others read or change, or whose task is cancelled, meanwhile."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from rhapsody import DataError, OutputFile, WorkflowEngine
from rhapsody.copying import copy_file
from tests._support.saving import writer
from tests._support.scripted import within
from tests._support.small_backend import SmallBackend

pytestmark = [pytest.mark.usefixtures("here"), pytest.mark.asyncio, pytest.mark.timeout(60)]


async def test_an_unfinished_copy_is_private(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes, copy = [], shutil.copyfileobj

    def looked_at(source: Any, target: Any, *more: Any) -> None:
        modes.append(stat.S_IMODE(os.fstat(target.fileno()).st_mode))
        copy(source, target, *more)

    monkeypatch.setattr(shutil, "copyfileobj", looked_at)

    async with WorkflowEngine.create() as flow:

        @flow.executable_task
        def write(out: OutputFile) -> str:
            return f"echo word > {out}; chmod 640 {out}"

        await within(write(OutputFile("a.txt", save=True)))
    assert modes == [0o600]
    assert stat.S_IMODE((here / "a.txt").stat().st_mode) == 0o640


async def test_a_link_that_was_made_after_the_check_is_not_followed(here: Path) -> None:
    box = here / "box"
    box.mkdir()
    (box / "own").write_text("own")
    (box / "inside").symlink_to("own")
    (box / "outside").symlink_to("/etc/passwd")
    os.mkfifo(box / "fifo")
    copy_file(box / "inside", here / "copy", str(box))
    assert (here / "copy").read_text() == "own"
    for name, reason in {
        "outside": "a link to a path outside the sandbox",
        "fifo": "not a regular file",
    }.items():
        with pytest.raises(DataError, match=reason):
            copy_file(box / name, here / name, str(box))
        assert not (here / name).exists()


class EndsThenCancels(SmallBackend):
    """Cancels a future just after it has said that the task is done."""

    future: asyncio.Future[Any]

    def task_state_cb(self, task: Any, state: Any, service_callback: Any = None) -> None:
        super().task_state_cb(task, state)
        if state == "DONE" and task["name"] == "write":
            self.future.cancel()


async def test_files_of_a_task_that_is_cancelled_as_it_ends_are_not_saved(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = EndsThenCancels()
    async with WorkflowEngine.create(backend) as flow:
        backend.future = writer(flow)("word", OutputFile("results/a.txt"))
        await within(asyncio.wait([backend.future]))
        assert backend.future.cancelled()
        assert await within(flow.function_task(int)()) == 0  # the engine goes on
    assert not (here / "results").exists()
    assert not caplog.records


async def test_many_files_are_saved_on_a_few_threads(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: set[int] = set()
    replace = os.replace

    def counted(*paths: Any) -> None:
        used.add(threading.get_ident())
        replace(*paths)

    monkeypatch.setattr(os, "replace", counted)
    async with WorkflowEngine.create() as flow:
        write = writer(flow)
        await within(
            asyncio.gather(*(write("word", OutputFile(f"saved/{n}.txt")) for n in range(20)))
        )
    assert len(list((here / "saved").iterdir())) == 20
    assert len(used - {threading.get_ident()}) <= 4
