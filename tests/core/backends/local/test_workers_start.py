"""Start of worker processes in unusual surroundings."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from multiprocessing import util
from pathlib import Path

import pytest

from rhapsody.backends.local import LocalExecutionBackend
from rhapsody.errors import TaskLostError
from rhapsody_testing import Driver
from tests._support.local import DONE
from tests._support.programs import PATIENCE
from tests._support.scripted import until

pytestmark = pytest.mark.timeout(90)

NAMES = ("signal", "random", "string", "queue", "types", "token", "array", "copy", "uuid")


def test_workers_do_not_import_modules_from_the_current_directory(tmp_path: Path) -> None:
    here, scripts = tmp_path / "here", tmp_path / "scripts"
    here.mkdir()
    scripts.mkdir()
    for name in NAMES:
        (here / f"{name}.py").write_text(f"open('imported-{name}', 'w').close()\n")
    (scripts / "helper.py").write_text("VALUE = 5\n")
    (scripts / "program.py").write_text(
        textwrap.dedent("""
            import asyncio
            from rhapsody import LocalExecutionBackend, WorkflowEngine

            def value():
                import helper
                import string
                return helper.VALUE, string.digits

            async def main():
                async with WorkflowEngine.create(
                    LocalExecutionBackend("process"), profile=False
                ) as flow:
                    print(*await flow.function_task(value)())

            asyncio.run(main())
        """)
    )
    done = subprocess.run(
        [sys.executable, str(scripts / "program.py")],
        cwd=here, capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert done.stdout.split() == ["5", "0123456789"], done.stderr
    assert list(here.glob("imported-*")) == []


def listeners() -> list[Path]:
    """The sockets of the server in the directory that `multiprocessing` uses."""
    return [*Path(util.get_temp_dir()).glob("listener-*")]


def wait_for(path: str) -> None:
    Path(f"{path}.started").touch()
    while not os.path.exists(path):
        time.sleep(0.01)


@pytest.mark.asyncio
@pytest.mark.parametrize("whole", [False, True])
async def test_workers_are_started_after_the_temporary_directory_was_cleaned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, whole: bool
) -> None:
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    config["tempdir"] = None  # the server uses a separate directory
    resources = {"workers": 2, "cores": 2}
    async with (
        LocalExecutionBackend("process", resources=resources) as backend,
        Driver(backend) as driver,
    ):
        go_on = tmp_path / "go on"
        long = driver.call(wait_for, str(go_on))
        await driver.submit(long)
        await until(Path(f"{go_on}.started").exists)
        (socket,) = listeners()
        if whole:
            shutil.rmtree(socket.parent)
        else:
            socket.unlink()
        assert (await driver.run_one(driver.call(abs, -1))).value == 1  # on a new worker
        assert str(socket) in caplog.text
        go_on.touch()  # the worker of the former server is still in use
        assert (await driver.finished(long)).state is DONE
        killed = driver.call(os.kill, 0, signal.SIGKILL)
        assert isinstance((await driver.run_one(killed)).error, TaskLostError)
        assert driver.faults == []
    assert backend.still_running == []


@pytest.mark.asyncio
async def test_a_backend_is_closed_after_the_temporary_directory_was_cleaned() -> None:
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    config["tempdir"] = None
    async with LocalExecutionBackend("process") as backend, Driver(backend) as driver:
        assert (await driver.run_one(driver.call(abs, -1))).value == 1
        for socket in listeners():
            socket.unlink()
    assert backend.still_running == []


def test_a_worker_that_starts_after_the_end_of_the_program_ends_without_a_message() -> None:
    code = """
import multiprocessing, socket
from rhapsody.backends.local.worker import work

program, connection = socket.socketpair()
program.close()
work(connection, multiprocessing.Pipe()[0], {}, (), None)
"""
    worker = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (worker.returncode, worker.stderr) == (0, "")
