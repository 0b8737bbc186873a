"""Services: ready, serving, ended, one way or the other."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rhapsody import CapabilityError, TaskFailedError, TaskTimeoutError, WorkflowEngine
from tests._support.engine_fixtures import engine, local_threads
from tests._support.machine import alive, connect, exists, free_port
from tests._support.scripted import (
    RUNS_ALL,
    ManualClock,
    Scripted,
    Stubborn,
    outcome,
    turns,
    until,
    within,
)

pytestmark = pytest.mark.asyncio

FOREVER = "exec sleep 1000"


def server(flow: Any, command: str = "serve", **settings: Any) -> Any:
    """A service task of that command."""
    return flow.executable_task(service=True, **settings)(lambda: command)


# Ready, as the engine sees it.


async def test_the_backend_receives_the_service_flag_and_the_readiness() -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        server(flow, name="plain")()
        server(flow, name="waits", ready="stdout:up")()
        plain, waits = await backend.given("plain"), await backend.given("waits")
        assert plain["is_service"] is True
        assert waits["ready"] == "stdout:up"
        assert "ready" not in plain


async def test_without_a_condition_it_is_ready_with_none_as_soon_as_it_runs() -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        future = server(flow, name="plain")()
        task = await backend.given("plain")
        await turns()
        assert not future.done()
        backend.runs(task)
        assert await future is None
        assert future.state == "RUNNING"


@pytest.mark.parametrize("from_thread", [False, True])
async def test_the_readiness_information_is_the_result(from_thread: bool) -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        future = server(flow, name="waits", ready="tcp:80")()
        readiness = backend.serves(await backend.given("waits"))
        await turns()
        assert not future.done()
        if from_thread:
            thread = threading.Thread(target=readiness.set_result, args=(("host", 80),))
            thread.start()
        else:
            readiness.set_result(("host", 80))
        assert await future == ("host", 80)
        assert future.state == "RUNNING"
        if from_thread:
            await asyncio.to_thread(thread.join)


async def test_a_service_that_cannot_say_that_it_is_ready_fails_and_is_stopped() -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        future = server(flow, name="waits", ready="tcp:80")()
        task = await backend.given("waits")
        backend.serves(task).set_exception(ConnectionError("probe"))
        error = await outcome(future)
        assert isinstance(error, ConnectionError)
        await future.ended()
        assert backend.stops == [task["uid"]]


async def test_a_dependent_runs_with_the_information_while_the_service_serves() -> None:
    backend = Scripted()
    async with engine(backend) as flow:

        @flow.function_task
        async def client(where: Any) -> Any: ...

        service = server(flow, name="waits", ready="tcp:80")()
        used = client(service)
        readiness = backend.serves(await backend.given("waits"))
        assert backend.names() == ["waits"]
        readiness.set_result("there")
        task = await backend.given("client")
        assert task["args"] == ("there",)
        backend.done(task, "served")
        assert await used == "served"
        assert service.state == "RUNNING"


# Its end.


async def test_cancelling_stops_it_and_keeps_the_readiness_result() -> None:
    backend = Stubborn()
    async with engine(backend) as flow:
        future = server(flow, name="plain")()
        task = await backend.given("plain")
        backend.serves(task).set_result("info")
        assert await future == "info"
        assert future.cancel() is True
        await until(lambda: backend.stops)
        assert backend.stops == [task["uid"]]
        ended = asyncio.ensure_future(future.ended())
        await turns()
        assert not ended.done()
        backend.stopped(task)
        await ended
        assert not future.cancelled()
        assert await future == "info"
        assert future.cancel() is False


async def test_cancelling_before_it_is_ready_cancels_the_future() -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        future = server(flow, name="waits", ready="tcp:80")()
        readiness = backend.serves(await backend.given("waits"))
        assert future.cancel() is True
        assert future.cancelled()
        await future.ended()
        assert len(backend.stops) == 1
        readiness.set_result("too late")
        await turns()
        assert future.cancelled()


async def test_the_end_of_the_engine_ends_services() -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        future = server(flow, name="plain")()
        backend.serves(await backend.given("plain")).set_result("info")
        await future
        assert backend.stops == []
    assert len(backend.stops) == 1
    assert future.result() == "info"
    assert flow.summary is not None
    assert flow.summary.still_running == ()


@pytest.mark.parametrize("way", ["FAILED", "DONE", "exception", "CANCELED"])
async def test_one_that_dies_before_it_is_ready_fails_its_future(way: str) -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        future = server(flow, name="waits", ready="tcp:80")()
        task = await backend.given("waits")
        backend.serves(task)
        task["stdout"], task["stderr"] = "", "no such port"
        if way == "exception":
            backend.failed(task, OSError("its own"))
        else:
            if way != "CANCELED":
                task["exit_code"] = 1 if way == "FAILED" else 0
            backend.report(task, way)
        error = await outcome(future)
        if way == "exception":
            assert isinstance(error, OSError)
        elif way == "CANCELED":
            assert isinstance(error, asyncio.CancelledError)
        else:
            assert isinstance(error, TaskFailedError)
            assert "waits" in str(error)
        await future.ended()


@pytest.mark.parametrize("way", ["FAILED", "DONE"])
async def test_one_that_dies_later_is_reported_and_keeps_its_result(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        future = server(flow, name="mortal")()
        task = await backend.given("mortal")
        backend.serves(task).set_result("info")
        await future
        task["stdout"], task["stderr"], task["exit_code"] = "", "out of memory", 1
        with caplog.at_level(logging.WARNING, logger="rhapsody"):
            backend.report(task, way)
            await future.ended()
            await turns()
        assert "mortal" in caplog.text
        assert await future == "info"
        assert future.cancel() is False


async def test_one_that_is_not_ready_in_time_is_stopped_and_fails() -> None:
    backend, clock = Scripted(), ManualClock()
    async with engine(backend, clock=clock) as flow:
        future = server(flow, name="slow", ready="tcp:80", ready_timeout=5)()
        task = await backend.given("slow")
        await clock.advance(100)  # before it runs, its time does not count
        assert not future.done()
        backend.serves(task)
        await clock.advance(4.9)
        assert not future.done()
        await clock.advance(0.2)
        error = await outcome(future)
        assert isinstance(error, TaskTimeoutError)
        assert isinstance(error, TimeoutError)
        assert "slow" in str(error)
        assert "5 s" in str(error)
        await future.ended()
        assert backend.stops == [task["uid"]]


async def test_a_service_has_a_minute_to_be_ready_unless_something_else_is_said() -> None:
    backend, clock = Scripted(), ManualClock()
    async with engine(backend, clock=clock) as flow:
        future = server(flow, name="slow", ready="tcp:80")()
        backend.serves(await backend.given("slow"))
        await clock.advance(59)
        assert not future.done()
        await clock.advance(2)
        assert isinstance(await outcome(future), TimeoutError)


async def test_a_service_that_is_ready_serves_for_longer_than_a_task_may_run() -> None:
    backend, clock = Scripted(), ManualClock()
    async with engine(backend, clock=clock, timeout=5) as flow:
        future = server(flow, name="plain")()
        backend.serves(await backend.given("plain")).set_result("info")
        assert await future == "info"
        await clock.advance(10_000)
        assert future.state == "RUNNING"
        assert backend.stops == []


async def test_a_time_out_of_a_service_is_refused_where_it_is_written() -> None:
    async with engine(Scripted()) as flow:
        with pytest.raises(ValueError, match="ready_timeout"):
            server(flow, timeout=5)
        with pytest.raises(ValueError, match="ready_timeout"):
            server(flow).options(timeout=5)
        with pytest.raises(ValueError, match="ready_timeout"):
            flow.function_task(timeout=5)(lambda: None).options(service=True)


async def test_services_do_not_count_in_what_is_pending() -> None:
    backend = Scripted()
    async with engine(backend, max_pending=1) as flow:

        @flow.function_task
        async def client(where: Any) -> Any: ...

        service = server(flow, name="plain")()
        backend.serves(await backend.given("plain")).set_result("info")
        left, right = client(service), client(service)
        for number in (1, 2):
            await until(lambda: len(backend.tasks) == number + 1)  # noqa: B023
            backend.done(backend.tasks[-1], number)
        assert [await left, await right] == [1, 2]


# Capabilities.


async def test_a_backend_without_services_refuses_them() -> None:
    without = dataclasses.replace(RUNS_ALL, services=False)
    backends = [Scripted("plain", without), Scripted("able")]
    async with engine(backends) as flow:  # type: ignore[arg-type]
        error = await outcome(server(flow, name="mine")())
        assert isinstance(error, CapabilityError)
        for part in ("mine", "plain", "able", "service"):
            assert part in str(error)
        assert backends[0].tasks == []


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_function_services_only_where_the_capability_says_so(asynchronous: bool) -> None:
    async def serve_async() -> None: ...

    def serve() -> None: ...

    backend = Scripted(capabilities=dataclasses.replace(RUNS_ALL, function_services=False))
    async with engine(backend) as flow:
        either: Any = serve_async if asynchronous else serve
        error = await outcome(flow.function_task(service=True)(either)())
        assert isinstance(error, CapabilityError)
        assert isinstance(error, ValueError)
        assert "scripted" in str(error)
    backend = Scripted()
    async with engine(backend) as flow:
        future = flow.function_task(service=True, name="serve")(either)()
        backend.serves(await backend.given("serve")).set_result("up")
        assert await future == "up"


# Readiness for real.


@pytest.mark.parametrize(
    ("ready", "result"),
    [
        ("stdout:listening on (\\d+)", "8080"),
        ("stdout:listening on \\d+", "listening on 8080"),
        ("stdout:on", "on"),
        ("stdout:(?:listening) (on) (\\d+)", "on"),
        ("stdout:^second", "second"),
    ],
)
async def test_ready_by_what_it_prints(ready: str, result: str) -> None:
    async with engine(local_threads()) as flow:
        command = f"echo starting; echo listening on 8080; echo second; {FOREVER}"
        future = server(flow, command, ready=ready)()
        assert await future == result
        assert future.cancel() is True
        await future.ended()


async def test_ready_by_a_file_in_its_sandbox() -> None:
    async with engine(local_threads()) as flow:
        future = server(
            flow, f"sleep 0.1; echo x > part; mv part up.txt; {FOREVER}", ready="file:up.txt"
        )()
        path = await future
        assert os.path.isabs(path)
        assert Path(path).read_text() == "x\n"  # noqa: ASYNC240 - a small one
        assert os.path.basename(path) == "up.txt"


async def test_ready_by_a_port() -> None:
    port = free_port()
    script = (
        "import socket, time\n"
        "s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
        f"time.sleep(0.1); s.bind(('127.0.0.1', {port})); s.listen()\n"
        "while True: s.accept()[0].close()\n"
    )
    async with engine(local_threads()) as flow:

        @flow.executable_task(service=True, ready=f"tcp:{port}")
        def listen() -> list[str]:
            import sys

            return [sys.executable, "-c", script]

        where: Any = await listen()
        host, found = where
        assert found == port
        async with asyncio.timeout(10):
            await connect(host, found)


async def test_ready_on_a_free_port_of_its_host() -> None:
    command = [sys.executable, "-m", "http.server", "{port}", "--bind", "127.0.0.1"]
    async with engine(local_threads()) as flow:
        first = flow.executable_task(service=True, ready="tcp")(lambda: command)()
        second = flow.executable_task(service=True, ready="tcp")(lambda: command)()
        where: list[Any] = [await first, await second]
        assert where[0] != where[1]
        for host, port in where:
            await connect(host, port)


async def test_a_service_does_not_start_while_its_port_is_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        async with engine(local_threads()) as flow:
            error = await outcome(server(flow, FOREVER, name="web", ready=f"tcp:{port}")())
    assert isinstance(error, OSError)
    for part in ("web", str(port), "ready='tcp'"):
        assert part in str(error)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_ready_when_a_callable_says_so(asynchronous: bool) -> None:
    gate = threading.Event()

    def probe(task: Any) -> str:
        assert gate.wait(20)
        return f"{task['name']} is open"

    async def probe_async(task: Any) -> str:
        return await asyncio.to_thread(probe, task)

    async with engine(local_threads()) as flow:
        ready = probe_async if asynchronous else probe
        future = server(flow, FOREVER, name="door", ready=ready)()
        await turns()
        assert not future.done()
        gate.set()
        assert await future == "door is open"


async def test_what_a_callable_raises_fails_the_service_and_stops_it() -> None:
    def probe(*_: Any) -> None:
        raise ConnectionError("nobody there")

    async with engine(local_threads()) as flow:
        future = server(flow, FOREVER, ready=probe)()
        error = await outcome(future)
        assert isinstance(error, ConnectionError)
        await future.ended()


async def test_one_that_really_dies_before_it_is_ready_says_why() -> None:
    async with engine(local_threads()) as flow:
        future = server(flow, "echo no port >&2; exit 3", ready="stdout:up")()
        error = await outcome(future)
        assert isinstance(error, TaskFailedError)
        assert (error.exit_code, error.stderr) == (3, "no port\n")


async def test_a_service_that_is_not_ready_in_time_is_ended() -> None:
    clock = ManualClock()
    async with engine(local_threads(), clock=clock) as flow:
        note = Path("pid").absolute()  # noqa: ASYNC240
        command = f"echo $$ > {note}.part; mv {note}.part {note}; {FOREVER}"
        future = server(flow, command, ready="stdout:never", ready_timeout=5)()
        await within(exists(note))
        await until(lambda: future.state == "RUNNING")
        await clock.advance(6)
        assert isinstance(await outcome(future), TimeoutError)
        await future.ended()
        assert not alive(int(note.read_text()))


async def test_a_cancelled_service_is_really_gone_and_what_it_started_too() -> None:
    async with engine(local_threads()) as flow:
        future = server(flow, "sleep 1000 & echo $!; wait", ready="stdout:(\\d+)")()
        child = int(await future)
        assert alive(child)
        assert future.cancel() is True
        await future.ended()
        assert not alive(child)


async def test_with_the_engine_a_service_is_really_gone() -> None:
    async with engine(local_threads()) as flow:
        pid = int(await server(flow, "echo $$; exec sleep 1000", ready="stdout:(\\d+)")())
        assert alive(pid)
    assert not alive(pid)


async def test_an_error_of_any_form_about_readiness_fails_the_service_alone() -> None:
    class OddError(Exception):
        def __init__(self, first: str, second: str) -> None:
            super().__init__(first, second)

    def broken(future: Any, task: Any, state: Any) -> None:
        future.set_exception(OddError("no", "port"))

    class Helpless(Scripted):
        async def cancel_task(self, uid: str) -> bool:
            return False

    backend = Helpless()
    async with engine(backend) as flow:
        service = server(flow, name="odd")()
        other = server(flow, name="other")()
        backend.report(await backend.given("odd"), "RUNNING", broken)
        assert isinstance(await outcome(service), OddError)
        backend.ready(await backend.given("other"), "address")
        assert await other == "address"


async def test_a_service_made_ready_by_a_daemon_thread_wakes_an_idle_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.executable_task(service=True)
        async def server() -> str:
            return "serve"

        future = server()
        task = await backend.next()
        selector, asleep = flow.loop._selector, threading.Event()  # type: ignore[attr-defined]
        select = selector.select

        def noting(timeout: float | None) -> Any:
            if timeout is None or timeout > 1:
                asleep.set()
            return select(timeout)

        def ready(service: Any, *_: Any) -> None:
            def later() -> None:
                asleep.wait(20)
                service.set_result("address")

            threading.Thread(target=later, daemon=True).start()

        monkeypatch.setattr(selector, "select", noting)
        backend.report(task, "RUNNING", ready)
        began = time.monotonic()
        assert await within(future) == "address"  # nothing else wakes the loop before 20 s
        assert time.monotonic() - began < 10


async def test_a_backend_that_raises_instead_of_announcing_a_service_fails_it_alone() -> None:
    def broken(future: Any, task: Any, state: Any) -> None:
        raise ConnectionError("no probe")

    backend = Scripted()
    async with engine(backend) as flow:
        service, other = server(flow, name="odd")(), server(flow, name="other")()
        task = await backend.given("odd")
        backend.report(task, "RUNNING", broken)
        assert isinstance(await outcome(service), ConnectionError)
        assert backend.stops == [task["uid"]]
        backend.ready(await backend.given("other"), "address")
        assert await other == "address"


async def test_a_readiness_that_the_backend_cancels_is_counted_and_changes_nothing() -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        future = server(flow, name="waits")()
        task = await backend.given("waits")
        backend.serves(task).cancel()
        await until(lambda: flow.stats.late == 1)
        assert not future.done()
        backend.done(task)
        assert isinstance(await outcome(future), TaskFailedError)
