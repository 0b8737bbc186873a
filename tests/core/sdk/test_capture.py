"""Tests of the output of functions, which is captured and still printed."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from rhapsody.backends.local import LocalExecutionBackend
from rhapsody.data import OUTPUT_FILES
from rhapsody.sdk import capture
from rhapsody.sdk.capture import MAX_CAPTURED, TruncatedText
from rhapsody.sdk.runner import MAX_TEXT, PROTOCOL_VERSION, CallSpec, Captured
from rhapsody.states import TasksMainStates
from rhapsody.task import Resources
from rhapsody_testing import Driver

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(60)]

FAILED = TasksMainStates.FAILED


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["thread", "process"])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[LocalExecutionBackend]:
    async with LocalExecutionBackend(request.param, resources={"cores": 2}) as backend:
        yield backend


@pytest_asyncio.fixture(loop_scope="module")
async def driver(backend: LocalExecutionBackend) -> AsyncIterator[Driver]:
    async with Driver(backend) as driver:
        yield driver


def speak(text: str) -> str:
    print("out", text)
    print("err", text, file=sys.stderr)
    sys.stdout.writelines(["one\n", "two\n"])
    return text


async def speak_later(text: str) -> str:
    print("out", text)
    await asyncio.create_task(speak_deeper(text))
    await asyncio.to_thread(print, "from a thread")
    return text


async def speak_deeper(text: str) -> None:
    await asyncio.sleep(0)
    print("err", text, file=sys.stderr)


def close_the_streams(_: str) -> None:
    with sys.stdout as stream:
        stream.write("text ")
    with sys.stdout.buffer as binary:
        binary.write(b"bytes ")
    sys.stdout.buffer.close()
    sys.stderr.close()
    print("after")


# On every executor.


async def test_a_task_that_closes_standard_output_does_not_close_it_for_others(
    driver: Driver,
) -> None:
    for _ in range(3):
        end = await driver.run_one(driver.call(close_the_streams, "x"))
        assert (end.error, end.stdout) == (None, "text bytes after\n")
        end = await driver.run_one(driver.call(speak, "x"))
        assert (end.stdout, end.stderr) == ("out x\none\ntwo\n", "err x\n")


async def test_what_a_function_prints_is_kept(driver: Driver) -> None:
    end = await driver.run_one(driver.call(speak, "x"))
    assert (end.stdout, end.stderr) == ("out x\none\ntwo\n", "err x\n")


async def test_what_a_coroutine_prints_is_kept(driver: Driver) -> None:
    tasks = [driver.call(speak_later, "x"), driver.call(speak_later, "x")]
    tasks[1]["resources"] = Resources(cores=0)
    for end in await driver.run(*tasks):
        assert (end.stdout, end.stderr) == ("out x\nfrom a thread\n", "err x\n")


async def test_one_that_prints_nothing_has_empty_output(driver: Driver) -> None:
    end = await driver.run_one(driver.call(int))
    assert (end.stdout, end.stderr) == ("", "")


async def test_tasks_side_by_side_do_not_mix(driver: Driver) -> None:
    def chatter(name: str) -> None:
        for _ in range(200):
            print(name)

    ends = await driver.run(*(driver.call(chatter, str(number)) for number in range(8)))
    assert [end.stdout for end in ends] == [f"{number}\n" * 200 for number in range(8)]


async def test_a_failed_function_keeps_what_it_printed(driver: Driver) -> None:
    def fails() -> None:
        print("before")
        raise ValueError

    end = await driver.run_one(driver.call(fails))
    assert (end.state, end.stdout) == (FAILED, "before\n")


async def test_it_can_be_switched_off(driver: Driver) -> None:
    task = driver.call(speak, "x")
    task["capture"] = False
    end = await driver.run_one(task)
    assert (end.stdout, end.stderr) == (None, None)


async def test_logging_set_up_in_the_function_is_kept(driver: Driver) -> None:
    def log() -> None:
        logger = logging.getLogger("set up in the function")
        handler = logging.StreamHandler()
        logger.addHandler(handler)
        logger.propagate = False
        logger.warning("noted")
        logger.removeHandler(handler)

    assert (await driver.run_one(driver.call(log))).stderr == "noted\n"


def write_bytes() -> None:
    try:
        sys.stdout.write(b"abc")  # type: ignore[arg-type]
    except TypeError as error:
        print(error)


async def test_bytes_that_standard_output_refuses_are_not_kept(driver: Driver) -> None:
    end = await driver.run_one(driver.call(write_bytes))
    assert end.stdout == "write() argument must be str, not bytes\n"


async def test_bytes_are_kept_as_text(driver: Driver) -> None:
    def write() -> None:
        sys.stdout.buffer.write("é\n".encode())
        sys.stdout.buffer.flush()

    assert (await driver.run_one(driver.call(write))).stdout == "é\n"


async def test_much_output_goes_to_a_file_in_the_sandbox(driver: Driver) -> None:
    def shout() -> None:
        print("x" * MAX_CAPTURED)
        print("end")

    task = driver.with_sandbox(driver.call(shout))
    end = await driver.run_one(task)
    path = os.path.join(task["sandbox"], ".rhapsody.stdout")
    assert end.stdout is not None
    text, _, note = end.stdout.partition("\n")
    assert text == "x" * MAX_CAPTURED
    assert f"{MAX_CAPTURED + 5} characters, which are in {path} until" in note
    assert Path(path).read_text() == "x" * MAX_CAPTURED + "\nend\n"  # noqa: ASYNC240


async def test_without_a_sandbox_it_goes_to_one_that_is_made_for_it(
    driver: Driver, tmp_path: Path
) -> None:
    driver.backend.session.path = str(tmp_path)

    def shout() -> None:
        for _ in range(3):
            print("x" * (MAX_CAPTURED // 2 - 1))

    end = await driver.run_one(driver.call(shout))
    assert end.stdout is not None
    path = tmp_path / end.uid / ".rhapsody.stdout"
    assert end.task["sandbox"] == str(path.parent)
    assert f"{MAX_CAPTURED // 2 * 3} characters, which are in {path} until" in end.stdout
    assert isinstance(end.stdout, TruncatedText)
    assert pickle.loads(pickle.dumps(end.stdout)).whole() == path.read_text()
    assert MAX_CAPTURED < len(end.stdout) < MAX_CAPTURED + 400
    assert len(path.read_text()) == MAX_CAPTURED // 2 * 3


async def test_it_may_go_to_files(driver: Driver, tmp_path: Path) -> None:
    driver.backend.session.path = str(tmp_path)
    tasks = [driver.with_sandbox(driver.call(speak, "x")), driver.call(speak, "y")]
    for task in tasks:
        task["capture"] = "files"
    for end, text in zip(await driver.run(*tasks), "xy", strict=True):
        sandbox = Path(end.task["sandbox"])
        assert end.stdout == str(sandbox / ".rhapsody.stdout")
        assert (sandbox / ".rhapsody.stdout").read_text() == f"out {text}\none\ntwo\n"
        assert (sandbox / ".rhapsody.stderr").read_text() == f"err {text}\n"


async def test_programs_that_a_function_starts_are_not_kept(driver: Driver) -> None:
    end = await driver.run_one(driver.call(subprocess.run, ["true"], check=True))
    assert end.stdout == ""
    assert OUTPUT_FILES == (".rhapsody.stdout", ".rhapsody.stderr")


async def test_the_rest_of_much_output_is_kept_compressed_up_to_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(capture, "MAX_CAPTURED", 10)
    monkeypatch.setattr(capture, "MAX_PACKED", 1000)
    for size in (8, 10, 11, 100):
        record = capture.CapturedText(None)
        for _ in range(size):
            record.write("ä")
        text = record.result()
        assert (type(text) is TruncatedText) is (size > 10)
        assert text[:10] == "ä" * min(size, 10)
        assert not isinstance(text, TruncatedText) or text.whole() == "ä" * size
    record = capture.CapturedText(None)
    for number in range(100_000):
        record.write(f"{hash(number / 3)}")
    text = record.result()
    assert isinstance(text, TruncatedText)
    assert text.whole() == text
    assert "rhapsody logs" not in text
    assert text.endswith(f"{hash(99_998 / 3)}{hash(99_999 / 3)}")
    assert len(text) < capture.MAX_END + 200


def _print_much() -> None:
    print("beginning" + "x" * MAX_TEXT + "end", end="")


async def test_of_much_output_in_another_process_the_beginning_and_the_end_are_kept() -> None:
    order = CallSpec(PROTOCOL_VERSION, "task", "task", 1, None, None, 0, {}, True, None, {})
    with Captured(order) as output:
        _print_much()
    assert output.stdout is not None
    assert output.stdout.startswith("beginningx")
    assert output.stdout.endswith("xend")
    assert f"12 of {MAX_TEXT + 12} bytes are omitted" in output.stdout
    assert MAX_TEXT < len(output.stdout) < MAX_TEXT + 100
