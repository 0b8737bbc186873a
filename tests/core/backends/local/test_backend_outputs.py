"""Output is what the task wrote, whatever it puts in the place of its output files."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rhapsody import TaskFailedError, current_task
from rhapsody.backends.local import LocalExecutionBackend
from rhapsody.data import OUTPUT_FILES
from rhapsody_testing import Driver
from tests._support.engine_fixtures import engine
from tests._support.local import DONE, FAILED

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]

OUT, ERR = OUTPUT_FILES
REPLACED = f"rm {OUT} {ERR}; mkfifo {OUT}; ln -s $STRANGER {ERR}"


@pytest_asyncio.fixture
async def driver() -> AsyncIterator[Driver]:
    async with LocalExecutionBackend(grace=0.3) as backend, Driver(backend) as driver:
        yield driver
        assert driver.faults == []


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that no task wrote."""
    path = tmp_path / "stranger"
    path.write_text("nobody's business\n")
    monkeypatch.setenv("STRANGER", str(path))
    return path


@pytest.mark.parametrize("many", [1, 1_000_000])
async def test_a_fifo_and_a_link_instead_of_the_files(
    driver: Driver, stranger: Path, many: int
) -> None:
    command = f"echo mine; yes | head -n {many}; echo wrong >&2; {REPLACED}; echo too; echo it >&2"
    end = await driver.run_one(driver.command(command))
    assert end.stdout == "mine\n" + many * "y\n" + "too\n"
    assert end.stderr == "wrong\nit\n"


async def test_a_service_may_replace_its_files_as_well(driver: Driver, stranger: Path) -> None:
    for ready in ("stdout:up", f"file:{ERR}"):
        task = driver.service(f"{REPLACED}; echo up; echo so >&2; exit 3", ready=ready)
        end = await driver.run_one(task)
        assert (end.exit_code, end.stdout, end.stderr) == (3, "up\n", "so\n")


def descriptors() -> set[tuple[int, str]]:
    """Returns the numbers of those that are open, and what each leads to."""
    found = set()
    for name in os.listdir("/dev/fd"):
        with suppress(FileNotFoundError):  # the one for the list itself
            found.add((int(name), os.readlink(f"/dev/fd/{name}")))
    return found


async def test_programs_leave_no_descriptor_open(driver: Driver) -> None:
    assert (await driver.run_one(driver.command("true"))).state is DONE  # what all have in common
    open_at_first = descriptors()
    commands: list[dict[str, Any]] = [{}, {"capture": "files"}, {"capture": False}]
    ends = await driver.run(*(driver.command("echo x", **keys) for keys in commands))
    assert [end.state for end in ends] == [DONE] * 3
    assert (await driver.run_one(driver.command(["./missing"]))).state is FAILED
    assert descriptors() - open_at_first == set()


async def test_a_failure_with_output_in_files_shows_it(stranger: Path) -> None:
    async with engine(LocalExecutionBackend()) as flow:

        @flow.executable_task(capture="files")
        def fails(replace: str) -> str:
            return f"rm {ERR}; {replace} {ERR}; exit 3"

        for replace in ("mkfifo", f"ln -s {stranger}"):
            with pytest.raises(TaskFailedError) as raised:
                await fails(replace)
            assert raised.value.exit_code == 3
            assert raised.value.stderr == ""


def block_the_output() -> None:
    os.mkfifo(os.path.join(current_task().sandbox or "", OUT))


def occupy_the_output() -> None:
    os.mkdir(os.path.join(current_task().sandbox or "", OUT))


@pytest.mark.parametrize("executor", ["thread", "process"])
async def test_a_function_that_blocks_its_own_output_file(executor: str) -> None:
    async with engine(LocalExecutionBackend(executor, resources={"workers": 1})) as flow:
        task = flow.function_task(capture="files")(block_the_output)
        future = task()
        await future
        assert future.stdout is not None
        assert OUT in future.stdout
        assert stat.S_ISREG(os.lstat(future.stdout).st_mode)
        with pytest.raises(OSError, match=OUT):
            await flow.function_task(capture="files")(occupy_the_output)()
        assert await flow.function_task(int)() == 0
