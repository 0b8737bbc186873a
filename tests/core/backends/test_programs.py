"""Running executables and linking files for other backends."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from rhapsody import CapabilityError, DataError
from rhapsody.backends.base import Capabilities, ManagedBackend
from rhapsody.backends.programs import LocalPrograms, SharedSandboxes
from rhapsody.data import make_sandbox
from rhapsody.sdk.processes import group_alive
from rhapsody.task import TaskDescription, is_async
from rhapsody_testing import BackendConformance, Driver
from rhapsody_testing._suite import until


class Short(LocalPrograms, ManagedBackend):
    """Backend like the one that `rhapsody new-backend` writes."""

    name = "short"
    shares_memory = True
    grace = 0.5
    capabilities = Capabilities(
        cancel_async_functions="running",
        cancel_executables="running",
        sandboxes=True,
        cwd=True,
        files=True,
        shared_file_system=True,
        reports_running=True,
    )

    def __init__(self) -> None:
        super().__init__(max_running=4)

    async def run_task(self, task: TaskDescription) -> Any:
        function = task["function"]
        if function is None:
            return await self.run_program(task)
        if task.get("environment"):
            raise CapabilityError("functions share the environment of the program")
        if "sandbox" in task:
            make_sandbox(task["sandbox"])
        if is_async(function):
            return await function(*task["args"], **task["kwargs"])
        return await asyncio.to_thread(function, *task["args"], **task["kwargs"])


@pytest.mark.long
class TestShortBackend(BackendConformance):
    names_workers = False

    async def make_backend(self) -> Short:
        return Short()


class Linking(SharedSandboxes, ManagedBackend):
    name = "linking"


def description(uid: str, **more: Any) -> Any:
    return {"uid": uid, "name": uid, **more}


def test_a_file_from_outside_and_one_of_a_task_are_linked(tmp_path: Path) -> None:
    backend, outside = Linking(), tmp_path / "outside.txt"
    outside.write_text("outside")
    source = description("a", sandbox=str(tmp_path / "a"))
    target = description("b", sandbox=str(tmp_path / "b"))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "made.txt").write_text("made")
    backend.link_explicit_data_deps(dst_task=target, file_path=str(outside))
    backend.link_explicit_data_deps(
        dst_task=target, file_path=str(outside), file_name="renamed.txt"
    )
    backend.link_explicit_data_deps(src_task=source, dst_task=target, file_name="made.txt")
    assert {path.name: path.read_text() for path in (tmp_path / "b").iterdir()} == {
        "outside.txt": "outside",
        "renamed.txt": "outside",
        "made.txt": "made",
    }


def test_all_that_a_task_left_is_copied_but_what_it_printed(tmp_path: Path) -> None:
    backend = Linking()
    source, target = (description(uid, sandbox=str(tmp_path / uid)) for uid in "ab")
    backend.link_implicit_data_deps(source, target)  # it left nothing
    (tmp_path / "a").mkdir()
    for name in ("one", ".hidden", ".rhapsody.stdout", ".rhapsody.stderr"):
        (tmp_path / "a" / name).touch()
    backend.link_implicit_data_deps(source, target)
    assert sorted(os.listdir(tmp_path / "b")) == [".hidden", "one"]


def test_a_link_of_nothing_or_to_elsewhere_is_refused(tmp_path: Path) -> None:
    backend, target = Linking(), description("b", sandbox=str(tmp_path / "b"))
    with pytest.raises(ValueError, match="requires file_path, or src_task and file_name"):
        backend.link_explicit_data_deps(dst_task=target)
    with pytest.raises(DataError, match="not a plain file name"):
        backend.link_explicit_data_deps(dst_task=target, file_path=str(tmp_path), file_name="../up")


def test_a_task_that_names_no_sandbox_has_one_of_the_backends_own(tmp_path: Path) -> None:
    async def run() -> dict[str, Any]:
        async with Short() as backend:
            driver = Driver(backend)
            task = driver.command("pwd")
            task.pop("sandbox", None)
            async with driver:
                return dict((await driver.run_one(task)).task)

    done = asyncio.run(run())
    assert done["sandbox"].startswith(tempfile.gettempdir())
    assert done["stdout"].strip() == os.path.realpath(done["sandbox"])
    assert done["worker"].startswith("process ")


def test_a_cancelled_program_has_ended_when_that_is_reported(tmp_path: Path) -> None:
    async def run(backend: Short, printed: Path) -> None:
        task = description("x", function=None, executable="echo $$; sleep 60 & wait", args=())
        running = asyncio.ensure_future(backend.run_program(task))
        async with asyncio.timeout(20):
            await until(lambda: printed.exists() and printed.read_text().endswith("\n"))
            running.cancel()
            await asyncio.sleep(0)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

    backend = Short()
    backend.session.path = str(tmp_path / "chosen")
    printed = Path(backend.own_sandbox("x"), ".rhapsody.stdout")
    asyncio.run(run(backend, printed))
    assert not group_alive(int(printed.read_text()))
