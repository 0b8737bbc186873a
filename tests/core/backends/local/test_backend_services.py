"""Services of the local backend and how they say that they are ready."""

from __future__ import annotations

import asyncio
import errno
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from rhapsody.backends.local import LocalExecutionBackend
from rhapsody.errors import TaskFailedError
from rhapsody.sdk import services
from rhapsody.sdk.services import Ready, parse_ready
from rhapsody_testing import Driver
from tests._support.local import CANCELED, DONE, FAILED, RUNNING
from tests._support.machine import alive, free_port

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

gate = threading.Event()
"""Holds up the probes that wait for it."""


@pytest_asyncio.fixture
async def driver() -> AsyncIterator[Driver]:
    backend = LocalExecutionBackend(resources={"cores": 2}, grace=0.3)
    async with backend, Driver(backend) as driver:
        yield driver
        assert driver.faults == []


# The forms.


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [("file:a.txt", "file", "a.txt"), ("tcp:8080", "tcp", 8080), ("tcp:65535", "tcp", 65535)],
)
async def test_well_formed(text: str, kind: str, value: Any) -> None:
    assert parse_ready(text) == Ready(kind, value)
    assert parse_ready("stdout:a:(b)").value.pattern == "a:(b)"
    assert parse_ready(len) == Ready("call", len)
    assert parse_ready("tcp") == Ready("tcp", services.FREE)


@pytest.mark.parametrize(
    "ready",
    [
        "",
        "stdout",
        "stdout:",
        "stdout:(",
        "file:",
        "file:../x",
        "file:/x",
        "TCP",
        "tcp:",
        "tcp:http",
        "tcp:0",
        "tcp:65536",
        "udp:53",
        "port",
        5,
        None,
        ["tcp:80"],
    ],
)
async def test_malformed_is_a_value_error_that_names_the_forms(ready: Any) -> None:
    with pytest.raises(ValueError, match="'stdout:REGEX', 'file:NAME', 'tcp', 'tcp:PORT' or"):
        parse_ready(ready)


async def test_a_malformed_ready_fails_its_task_and_starts_nothing(driver: Driver) -> None:
    task = driver.service("touch started", ready="port:80")
    end = await driver.run_one(task)
    assert isinstance(end.error, ValueError)
    assert "'port:80'" in str(end.error)
    assert not (Path(task["sandbox"]) / "started").exists()


# Readiness.


async def test_without_ready_a_service_is_running_at_once(driver: Driver) -> None:
    task = driver.service("sleep 60")
    await driver.submit(task)
    assert await driver.ready(task) is None
    assert driver.history(task) == [RUNNING]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"listening on (\S+)", "127.0.0.1:99"),
        ("listening on", "listening on"),
        ("^second (?P<word>.*)$", "line"),
        ("é+", "éé"),
    ],
)
async def test_ready_by_its_output(driver: Driver, pattern: str, expected: str) -> None:
    command = (
        "echo first; printf 'listen'; sleep 0.05; echo 'ing on 127.0.0.1:99'; echo second line; "
        "printf '\\303'; sleep 0.05; printf '\\251\\303\\251'; echo; exec sleep 60"
    )
    task = driver.service(command, ready=f"stdout:{pattern}")
    await driver.submit(task)
    assert await driver.ready(task) == expected
    assert driver.history(task) == [RUNNING]


async def test_a_prompt_without_the_end_of_a_line_is_enough(driver: Driver) -> None:
    task = driver.service("echo first; printf 'login>'; exec sleep 60", ready="stdout:^login>$")
    await driver.submit(task)
    assert await driver.ready(task) == "login>"


async def test_output_goes_on_to_be_kept_after_it_was_ready(driver: Driver) -> None:
    task = driver.service(
        "echo ready; while [ ! -e go ]; do sleep 0.01; done; "
        "head -c 300000 /dev/zero | tr '\\0' x; echo; echo last",
        ready="stdout:ready",
    )
    await driver.submit(task)
    assert await driver.ready(task) == "ready"
    Path(task["sandbox"], "go").touch()  # noqa: ASYNC240
    end = await driver.finished(task)
    assert end.state is DONE
    assert end.stdout == "ready\n" + "x" * 300000 + "\nlast\n"


async def test_output_that_is_not_kept_is_searched(driver: Driver) -> None:
    task = driver.service("echo port 80; exec sleep 60", ready=r"stdout:port (\d+)", capture=False)
    await driver.submit(task)
    assert await driver.ready(task) == "80"
    await driver.cancel(task)
    assert (await driver.finished(task)).stdout in (None, "")


async def test_ready_by_a_file(driver: Driver) -> None:
    task = driver.service("sleep 0.1; touch 'a file'; sleep 60", ready="file:a file")
    await driver.submit(task)
    assert await driver.ready(task) == os.path.join(task["sandbox"], "a file")


async def test_ready_by_a_port(driver: Driver) -> None:
    port = free_port()
    code = (
        "import socket, time; time.sleep(0.1); s = socket.socket(); "
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); "
        f"s.bind(('127.0.0.1', {port})); s.listen(); time.sleep(60)"
    )
    task = driver.service([sys.executable, "-c", code], ready=f"tcp:{port}")
    await driver.submit(task)
    assert await driver.ready(task) == ("127.0.0.1", port)
    socket.create_connection(("127.0.0.1", port)).close()


async def test_a_port_in_use_is_not_taken_for_the_service(
    driver: Driver,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        task = driver.service("touch started; sleep 60", ready=f"tcp:{port}")
        end = await driver.run_one(task)
    assert end.state is FAILED
    assert isinstance(end.error, OSError)
    assert end.error.errno == errno.EADDRINUSE
    assert "ready='tcp'" in str(end.error)
    assert not (Path(task["sandbox"]) / "started").exists()


LISTEN = """
import os, socket, sys, time
port = int(sys.argv[1].partition("=")[2])
assert os.environ["PORT"] == str(port), os.environ["PORT"]
server = socket.create_server(("127.0.0.1", port))
time.sleep(60)
"""


@pytest.mark.parametrize("shell", [False, True])
async def test_ready_by_a_free_port_that_the_service_is_given(
    driver: Driver, tmp_path: Path, shell: bool
) -> None:
    (tmp_path / "listen.py").write_text(LISTEN)
    command = [sys.executable, str(tmp_path / "listen.py"), "--port={port}", "{not} {0} {port"]
    tasks = [
        driver.service(
            shlex.join(command) if shell else list(command),
            ready="tcp",
            environment={"PORT": "not this one"},
        )
        for _ in range(3)
    ]
    await driver.submit(*tasks)
    ports = [await driver.ready(task) for task in tasks]
    assert len(set(ports)) == 3
    for address in ports:
        socket.create_connection(address).close()


async def test_a_port_is_given_to_one_service_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ports, offered = services.Ports(), iter([7001, 7001, 7002, 7001])

    class Socket(socket.socket):
        def getsockname(self) -> tuple[str, int]:
            return "0.0.0.0", next(offered)

    monkeypatch.setattr(socket, "socket", Socket)
    assert [ports.take(), ports.take()] == [7001, 7002]
    ports.give_back(7001)
    assert ports.take() == 7001


async def test_ready_by_a_function_on_a_thread(driver: Driver) -> None:
    gate = threading.Event()

    def probe(task: Any) -> tuple[str, bool]:
        gate.wait()
        return task["name"], threading.current_thread() is threading.main_thread()

    task = driver.service("sleep 60", ready=probe)
    await driver.submit(task)
    assert await driver.running(task)
    gate.set()
    assert await driver.ready(task) == (task["name"], False)


async def test_ready_by_a_coroutine_on_the_loop(driver: Driver) -> None:
    gate = asyncio.Event()

    class Probe:
        async def __call__(self, task: Any) -> str:
            await gate.wait()
            name: str = task["name"]
            return name

    async def plain(task: Any) -> str:
        return await Probe()(task)

    tasks = [
        driver.service("sleep 60", ready=ready)
        for ready in (Probe(), plain, lambda task: plain(task))
    ]
    await driver.submit(*tasks)
    gate.set()
    assert [await driver.ready(task) for task in tasks] == [task["name"] for task in tasks]


async def test_a_probe_that_raises_fails_and_stops_the_service(driver: Driver) -> None:
    def probe(task: Any) -> None:
        raise LookupError("no answer")

    task = driver.service("sleep 60 & echo $!; wait", ready=probe)
    end = await driver.run_one(task)
    assert end.state is FAILED
    assert isinstance(end.error, LookupError)
    assert not alive(int(end.stdout or "0"))


# Its end.


@pytest.mark.parametrize("ready", ["stdout:never", "file:never", "tcp:1", lambda task: gate.wait()])
@pytest.mark.parametrize("code", [0, 3])
async def test_one_that_ends_before_it_was_ready_has_failed(
    driver: Driver, ready: Any, code: int
) -> None:
    gate.clear()
    task = driver.service(f"echo out; echo 'no such port' >&2; exit {code}", ready=ready)
    end = await driver.run_one(task)
    gate.set()
    assert end.state is FAILED
    assert isinstance(end.error, TaskFailedError)
    assert "before it was ready" in str(end.error)
    assert "no such port" in str(end.error)
    assert end.error.stderr == "no such port\n"
    assert end.error.exit_code == end.exit_code == code
    assert end.stdout == "out\n"


async def test_one_that_says_it_is_ready_and_exits_at_once_has_failed(driver: Driver) -> None:
    # The end of an unfinished line is known when it has long exited.
    end = await driver.run_one(driver.service("printf ready", ready="stdout:ready"))
    assert end.state is FAILED
    assert isinstance(end.error, TaskFailedError)
    assert "ended with exit code 0 before it was ready; a service must stay in the foreground" in (
        str(end.error)
    )
    assert end.stdout == "ready"


@pytest.mark.parametrize(("code", "state"), [(0, DONE), (3, FAILED)])
async def test_one_that_ends_later_is_reported(driver: Driver, code: int, state: Any) -> None:
    task = driver.service(
        f"echo ready; while [ ! -e go ]; do sleep 0.01; done; exit {code}", ready="stdout:ready"
    )
    await driver.submit(task)
    await driver.ready(task)
    Path(task["sandbox"], "go").touch()  # noqa: ASYNC240
    end = await driver.finished(task)
    assert (end.state, end.exit_code) == (state, code)
    assert "exception" not in end.task


@pytest.mark.parametrize(
    "ready", [None, "stdout:ready", "stdout:never", "file:never", "tcp:1", lambda task: gate.wait()]
)
async def test_it_is_stopped_whether_it_is_ready_or_not(driver: Driver, ready: Any) -> None:
    gate.clear()
    keys = {} if ready is None else {"ready": ready}
    task = driver.service("echo ready; sleep 60 & wait", **keys)
    await driver.submit(task)
    assert await driver.running(task)
    if ready == "stdout:ready":
        await driver.ready(task)
    pid = driver.backend.open_tasks[task["uid"]].handle.pid
    assert await driver.cancel(task) is True
    end = await driver.finished(task)
    assert end.state is CANCELED
    assert not psutil.pid_exists(pid)
    gate.set()


async def test_a_service_that_cannot_be_started_fails(driver: Driver) -> None:
    for ready in ("stdout:x", "file:x"):
        end = await driver.run_one(driver.service(["no-such-program"], ready=ready))
        assert isinstance(end.error, FileNotFoundError)


async def test_nothing_is_left_of_services() -> None:
    process = psutil.Process()
    threads = set(threading.enumerate())
    async with LocalExecutionBackend() as backend, Driver(backend) as driver:
        await driver.run(driver.command("true"))  # what all programs share is there
        before = process.num_fds()
        for ready in ("stdout:ready", "stdout:never", "file:never", "tcp:1"):
            task = driver.service("echo ready; sleep 60", ready=ready)
            await driver.submit(task)
            assert await driver.running(task)
            await driver.cancel(task)
            await driver.finished(task)

        def look() -> None:
            end = time.monotonic() + 10  # one of the looks for a port may be under way
            while process.num_fds() != before and time.monotonic() < end:
                time.sleep(0.01)

        await asyncio.to_thread(look)
        del look
        assert process.num_fds() <= before
    ours = [thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")]
    for thread in set(ours) - threads:
        thread.join(20)
        assert not thread.is_alive()
