"""The standard streams while the local backend runs."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from rhapsody.backends.local import LocalExecutionBackend
from rhapsody.sdk.capture import Recorder, Tee, recording, streams
from rhapsody_testing import Driver

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


@pytest_asyncio.fixture
async def threads() -> AsyncIterator[Driver]:
    async with LocalExecutionBackend(resources={"cores": 2}) as backend, Driver(backend) as driver:
        yield driver


def speak(text: str) -> str:
    print("out", text)
    print("err", text, file=sys.stderr)
    sys.stdout.writelines(["one\n", "two\n"])
    return text


# It is still seen.


async def test_it_is_passed_on(threads: Driver, capsys: pytest.CaptureFixture[str]) -> None:
    quiet = threads.call(speak, "quiet")
    quiet["capture"] = False
    await threads.run(threads.call(speak, "x"), quiet)
    seen = capsys.readouterr()
    assert sorted(seen.out.splitlines()) == ["one", "one", "out quiet", "out x", "two", "two"]
    assert sorted(seen.err.splitlines()) == ["err quiet", "err x"]


async def test_what_the_program_itself_prints_is_nobodys(
    threads: Driver, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = threading.Event()

    def waits() -> None:
        gate.wait()

    task = threads.call(waits)
    await threads.submit(task)
    print("mine")
    gate.set()
    assert (await threads.finished(task)).stdout == ""
    assert capsys.readouterr().out == "mine\n"


async def test_processes_pass_it_on(capfd: pytest.CaptureFixture[str]) -> None:
    backend = LocalExecutionBackend("process", resources={"cores": 1})
    async with backend, Driver(backend) as driver:
        await driver.run(driver.call(speak, "x"))
    seen = capfd.readouterr()
    assert seen.out == "out x\none\ntwo\n"
    assert seen.err == "err x\n"


async def test_lines_of_several_processes_are_not_mixed(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"

    def one() -> None:
        for _ in range(100):  # more than a buffer holds, which is full in the middle of a line
            print("1" * 50, "1" * 49, sep="")
        sys.stdout.write("1" * 50)
        first.touch()
        while not second.exists():
            time.sleep(0.005)
        print("1" * 49)
        print("1" * 10_000)

    def two() -> None:
        while not first.exists():
            time.sleep(0.005)
        print("2" * 99, flush=True)
        second.touch()

    backend = LocalExecutionBackend("process", resources={"cores": 2})
    async with backend, Driver(backend) as driver:
        ends = await driver.run(driver.call(one), driver.call(two))
    seen = capfd.readouterr().out
    assert sorted(seen.splitlines()) == ["1" * 99] * 101 + ["1" * 10_000] + ["2" * 99]
    assert ends[1].stdout == "2" * 99 + "\n"


async def test_handlers_of_the_programs_logging_are_kept_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = logging.getLogger("set up before")
    handler = logging.StreamHandler()
    logger.addHandler(handler)
    logger.propagate = False
    stream = handler.stream
    async with LocalExecutionBackend() as backend, Driver(backend) as driver:
        end = await driver.run_one(driver.call(logger.warning, "noted"))
        logger.warning("not of a task")
    assert end.stderr == "noted\n"
    assert handler.stream is stream
    assert capsys.readouterr().err == "noted\nnot of a task\n"
    logger.removeHandler(handler)


# The standard streams themselves.


async def test_the_streams_are_wrapped_only_while_a_backend_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sys.stdout, sys.stderr
    assert type(sys.stdout) is not Tee
    first = await LocalExecutionBackend()
    second = await LocalExecutionBackend()
    assert type(sys.stdout) is type(sys.stderr) is Tee
    await first.shutdown()
    assert type(sys.stdout) is Tee
    await second.shutdown()
    await second.shutdown()
    assert (sys.stdout, sys.stderr) == before


async def test_streams_put_in_place_meanwhile_are_respected(threads: Driver) -> None:
    into = io.StringIO()
    with contextlib.redirect_stdout(into):
        end = await threads.run_one(threads.call(speak, "x"))
        assert end.stdout == "out x\none\ntwo\n"
    assert into.getvalue() == "out x\none\ntwo\n"
    end = await threads.run_one(threads.call(speak, "y"))
    assert end.stdout == "out y\none\ntwo\n"
    assert "y" not in into.getvalue()


async def test_a_failed_start_puts_the_streams_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sys.stdout

    def fails(*args: Any) -> None:
        raise OSError("no")

    backend = LocalExecutionBackend()
    monkeypatch.setattr("rhapsody.backends.local.backend.SharedThread", fails)
    with pytest.raises(OSError, match="no"):
        await backend
    assert sys.stdout is before


async def test_a_wrapper_behaves_like_its_stream() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    tee = Tee("stdout", stream)
    assert tee.encoding == "latin-1"
    assert not tee.isatty()
    assert tee.write("text") == 4
    tee.flush()
    assert stream.buffer.getvalue() == b"text"
    with pytest.raises(OSError, match="fileno"):
        tee.fileno()


async def test_there_may_be_no_stream_at_all() -> None:
    tee = Tee("stdout", None)
    recorder = Recorder()
    with recording(recorder):
        assert tee.write("kept") == 4
        tee.flush()
    assert tee.write("dropped") == 7
    assert recorder.result("stdout") == "kept"


async def test_what_comes_after_the_end_is_not_added() -> None:
    recorder = Recorder()
    recorder.write("stdout", "a")
    assert recorder.result("stdout") == "a"
    recorder.write("stdout", "b")
    assert recorder.result("stdout") == ""


async def test_at_the_programs_end_tasks_no_longer_reach_the_streams(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "exiting", True)
    stream = io.StringIO()
    tee = Tee("stdout", stream)
    with recording(Recorder()):
        tee.write("task")
        tee.flush()
    tee.write("program")
    assert stream.getvalue() == "program"


async def test_at_the_programs_end_bytes_of_tasks_no_longer_reach_the_streams(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Closed(io.BytesIO):
        def flush(self) -> None:
            raise AssertionError("the interpreter may hold the lock of the stream")

    monkeypatch.setattr(streams, "exiting", True)
    data, recorder = Closed(), Recorder()
    tee = Tee("stdout", SimpleNamespace(buffer=data))
    with recording(recorder):
        assert tee.buffer.write(b"task") == 4
        tee.buffer.flush()
    assert data.getvalue() == b""
    assert recorder.result("stdout") == "task"
