"""Services that end unexpectedly: restarts, and the effect on their dependents."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from rhapsody import DependencyFailureError, TaskFailedError, TaskLostError, WorkflowEngine
from tests._support.engine_fixtures import engine, local_threads
from tests._support.machine import alive, exists
from tests._support.scripted import ManualClock, Scripted, outcome, turns, until, within

pytestmark = pytest.mark.asyncio


def server(flow: Any, restarts: int = 0, **settings: Any) -> Any:
    """A service task."""
    settings = {"name": "server", "ready": "tcp:80", "restarts": restarts, **settings}
    return flow.executable_task(service=True, **settings)(lambda: "serve")


def asker(flow: Any, **settings: Any) -> Any:
    """A task that depends on a service."""
    return flow.function_task(name="client", **settings)(lambda where, *_: None)


async def ready(backend: Scripted, attempt: int, value: Any) -> Any:
    """Make an attempt of the service ready, and return its description."""
    task = await backend.given("server", attempt)
    backend.serves(task).set_result(value)
    await turns()
    return task


# The service.


async def test_a_service_that_ends_is_started_again_as_another_attempt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        service = server(flow, restarts=2)()
        first = await ready(backend, 1, "one")
        assert await service == "one"
        with caplog.at_level(logging.WARNING, logger="rhapsody"):
            backend.failed(first, OSError("broke"))
            second = await backend.given("server", 2)
        assert (
            "'server' (task.000001) ended unexpectedly and will be restarted: OSError: broke"
            in (caplog.text)
        )
        assert second["sandbox"] != first["sandbox"]
        assert service.attempt == 2
        assert await service == "one"  # it was resolved once
        backend.serves(second).set_result("two")
        await turns()
        assert service.state == "RUNNING"
        assert service.sandbox == second["sandbox"]
        assert (flow.stats.done, flow.stats.failed, flow.stats.tasks) == (1, 0, 1)
        assert flow.stats.retried == 1


async def test_an_end_without_an_error_and_a_lost_worker_start_it_again_too() -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        server(flow, restarts=2)()
        first = await ready(backend, 1, "one")
        first["exit_code"] = 0
        backend.done(first)
        second = await ready(backend, 2, "two")
        backend.failed(second, TaskLostError("its worker ended"))
        third = await ready(backend, 3, "three")
        backend.failed(third, TaskLostError("again"))
        await turns()
        assert len(backend.named("server")) == 3


async def test_it_is_stopped_by_its_own_future_and_ends_when_that_says_so() -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        service = server(flow, restarts=1)()
        first = await ready(backend, 1, "one")
        await service
        ended = asyncio.ensure_future(service.ended())
        await turns()
        backend.failed(first, OSError("broke"))
        second = await ready(backend, 2, "two")
        await turns()
        assert not ended.done()
        assert service.cancel() is True
        await within(ended)
        assert backend.stops == [second["uid"]]
        assert await service == "one"
        assert service.cancel() is False
        # What was stopped on purpose has not failed: its last word stays good.
        client = asker(flow)(service)
        task = await backend.given("client")
        assert task["args"] == ("two",)
        backend.done(task, "fine")
        assert await client == "fine"


async def test_cancelling_it_before_it_is_ready_again_cancels_what_waits() -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        service = server(flow, restarts=1)()
        backend.failed(await ready(backend, 1, "one"), OSError("broke"))
        second = await backend.given("server", 2)
        backend.serves(second)
        client = asker(flow)(service)
        await turns()
        assert service.cancel() is True
        with pytest.raises(asyncio.CancelledError):
            await within(client)
        await within(service.ended())
        assert backend.stops == [second["uid"]]
        assert service.result() == "one"
        assert (flow.stats.done, flow.stats.cancelled, flow.stats.tasks) == (1, 1, 2)


async def test_a_restart_that_does_not_become_ready_counts_as_one() -> None:
    backend, clock = Scripted(), ManualClock()
    async with engine(backend, clock=clock) as flow:
        service = server(flow, restarts=2, ready_timeout=5)()
        backend.failed(await ready(backend, 1, "one"), OSError("broke"))
        client = asker(flow)(service)
        backend.failed(await backend.given("server", 2), OSError("port in use"))
        await clock.advance(0)
        backend.serves(await backend.given("server", 3))
        await clock.advance(6)
        error = await outcome(client)
        assert isinstance(error, DependencyFailureError)
        assert "service 'server' is no longer running: TaskTimeoutError" in str(error)
        await within(service.ended())
        assert len(backend.named("server")) == 3
        assert service.result() == "one"
        assert (flow.stats.done, flow.stats.failed, flow.stats.tasks) == (1, 1, 2)


async def test_nothing_is_started_again_at_the_end_of_the_engine() -> None:
    backend = Scripted()
    backend.stopping = lambda task: backend.failed(task, OSError("it was stopped"))
    async with engine(backend) as flow:
        service = server(flow, restarts=5)()
        await ready(backend, 1, "one")
        await service
    assert len(backend.named("server")) == 1


@pytest.mark.parametrize("value", [-1, True, 1.5, "1", None])
async def test_bad_numbers_of_restarts_are_refused(value: Any) -> None:
    async with engine(Scripted()) as flow:
        with pytest.raises((TypeError, ValueError), match="restarts must be"):
            server(flow, restarts=value)


async def test_restarts_are_for_services_alone() -> None:
    async with engine(Scripted()) as flow:
        for decorate in (flow.function_task, flow.executable_task):
            with pytest.raises(ValueError, match=r"restarts=1 applies only to services"):
                decorate(restarts=1)(lambda: "true")


# Its dependents.


async def test_dependents_that_have_not_started_wait_for_the_new_value() -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        client, slow = asker(flow), flow.function_task(name="slow")(lambda: None)
        service, other = server(flow, restarts=1)(), slow()
        waits = client(service, other)
        first = await ready(backend, 1, "one")
        await service
        runs = client(service)
        running = await backend.given("client")
        assert running["args"] == ("one",)
        backend.failed(first, OSError("broke"))
        called_later = client(service)
        after = client.options(after=[service])("nothing")
        backend.done(await backend.given("slow"))
        await other
        second = await backend.given("server", 2)
        await turns()
        assert len(backend.named("client")) == 1  # the others wait
        backend.serves(second).set_result("two")
        await until(lambda: len(backend.named("client")) == 4)
        values = [task["args"] for task in backend.named("client")]
        assert sorted(value[0] for value in values[1:]) == ["nothing", "two", "two"]
        backend.done(running, "of the first")
        for number, task in enumerate(backend.named("client")[1:]):
            backend.done(task, number)
        assert await runs == "of the first"
        await asyncio.gather(waits, called_later, after)
        assert not any(task.get("attempt") != 1 for task in backend.named("client"))


async def test_one_that_failed_with_its_service_says_so_and_is_tried_with_the_new_value() -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        service = server(flow, restarts=1)()
        first = await ready(backend, 1, "one")
        client = flow.executable_task(name="client", retries=1)(lambda where: f"ask {where}")
        tried, alone = client(service), asker(flow)(service)
        await until(lambda: len(backend.named("client")) == 2)
        one, other = backend.named("client")
        for task in (one, other):
            backend.runs(task)
        assert one["arguments"][-1].endswith("ask one")
        backend.failed(first, OSError("broke"))
        for task in (one, other):
            backend.failed(task, ConnectionError("reset"))
        error = await outcome(alone)
        notes = "\n".join(error.__notes__)
        assert "task's service 'server' ended at " in notes
        assert "and was restarted: OSError: broke" in notes
        await ready(backend, 2, "two")
        again = await backend.given("client", 2)
        assert again["arguments"][-1].endswith("ask two")
        backend.runs(again)
        backend.failed(again, ConnectionError("of its own"))
        error = await outcome(tried)
        assert "task's service" not in "\n".join(error.__notes__)  # it had the new one


async def test_dependents_of_an_ended_service_fail_with_its_error() -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        service, other = server(flow)(), flow.function_task(name="slow")(lambda: None)()
        client = asker(flow)
        waits = client(service, other)
        first = await ready(backend, 1, "one")
        await service
        runs = client(service)
        running = await backend.given("client")
        first["exit_code"], first["stderr"], first["stdout"] = 3, "no space", ""
        backend.report(first, "FAILED")
        await service.ended()
        backend.done(running, "in time")
        assert await runs == "in time"
        backend.done(await backend.given("slow"))
        for future in (waits, client(service), flow.block(lambda where: where)(service)):
            error: Any = await outcome(future)
            assert isinstance(error, DependencyFailureError)
            assert "did not run because service 'server' is no longer running" in str(error)
            assert error.failed_dependencies == ["server"]
            assert isinstance(error.root_cause, TaskFailedError)
            assert "ended unexpectedly: exit code 3" in str(error.root_cause)
            assert error.root_cause.stderr == "no space"
        assert len(backend.named("client")) == 1


@pytest.mark.parametrize("restarts", [0, 1])
async def test_the_account_says_how_a_service_ended(
    restarts: int, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = Scripted()
    async with WorkflowEngine.create(backend, progress=True) as flow:
        service = server(flow, restarts=restarts)()
        for number in range(1, restarts + 2):
            description = await ready(backend, number, "one")
            description["exit_code"] = 3
            backend.report(description, "FAILED")
        await service.ended()
    attempt = ", attempt 2" if restarts else ""
    assert f"  server() (task.000001){attempt}: ended unexpectedly: exit code 3\n" in (
        capsys.readouterr().err
    )


async def test_dependents_of_a_service_that_ended_without_an_error_run() -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        service = server(flow)()
        first = await ready(backend, 1, "one")
        await service
        backend.done(first)
        await service.ended()
        late = asker(flow)(service)
        asked = await backend.given("client")
        backend.done(asked, "heard")
        assert await within(late) == "heard"


async def test_a_block_waits_for_its_service_as_well() -> None:
    backend = Scripted()
    async with engine(backend) as flow:

        @flow.block
        async def uses(where: str) -> str:
            return f"used {where}"

        service = server(flow, restarts=1)()
        backend.failed(await ready(backend, 1, "one"), OSError("broke"))
        await backend.given("server", 2)
        block = uses(service)
        await turns()
        assert not block.done()
        await ready(backend, 2, "two")
        assert await within(block) == "used two"


async def test_dependents_that_wait_hold_no_place_under_a_limit() -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        service = server(flow, restarts=1, limit="seat:2")()
        first = await ready(backend, 1, "one")
        await service
        client = asker(flow, limit="seat:2")
        clients = [client(service) for _ in range(3)]
        running = await backend.given("client")
        backend.failed(first, OSError("broke"))  # its place goes to the next client
        await ready(backend, 2, "two")
        backend.done(running, 0)
        for number in (1, 2):
            await until(lambda: len(backend.named("client")) == number + 1)  # noqa: B023
            task = backend.named("client")[number]
            assert task["args"] == ("two",)
            backend.done(task, number)
        assert sorted(await asyncio.gather(*clients)) == [0, 1, 2]


async def test_a_service_that_uses_another_waits_for_it_and_gets_its_value() -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        base = server(flow, restarts=1)()
        first = await ready(backend, 1, "one")
        build = flow.executable_task(service=True, name="upper", restarts=1)
        upper = build(lambda where: f"use {where}")(base)
        task = await backend.given("upper")
        backend.serves(task).set_result("up")
        await upper
        backend.failed(first, OSError("broke"))
        backend.failed(task, ConnectionError("reset"))
        await turns()
        assert len(backend.named("upper")) == 1
        await ready(backend, 2, "two")
        again = await backend.given("upper", 2)
        assert again["arguments"][-1].endswith("use two")


async def test_one_that_is_made_in_a_block_ends_with_the_block() -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        gate = asyncio.Event()

        @flow.block
        async def around() -> None:
            await server(flow, restarts=1)()
            await gate.wait()

        block = around()
        backend.failed(await ready(backend, 1, "one"), OSError("broke"))
        second = await ready(backend, 2, "two")
        await turns()
        block.cancel()
        await until(lambda: backend.stops)
        assert backend.stops == [second["uid"]]


# For real.


async def test_a_killed_service_is_started_again_in_a_fresh_sandbox(tmp_path: Path) -> None:
    command = 'echo "pid $$ in $PWD"; exec sleep 1000'
    async with engine(local_threads()) as flow:
        gate, restarted = tmp_path / "gate", tmp_path / "restarted"
        service = flow.executable_task(
            service=True, restarts=1, ready=r"stdout:pid (\d+ in .*)", name="server"
        )(lambda: command)()

        @flow.executable_task
        def client(where: str) -> str:
            return f"touch {gate}; until test -e {restarted}; do sleep 0.02; done; exit 1"

        @flow.executable_task
        def late(where: str) -> str:
            return f"echo {where}"

        pid, _, sandbox = (await service).split(maxsplit=2)
        alone = client(service)
        await within(exists(gate))
        os.kill(int(pid), signal.SIGKILL)
        await until(lambda: service.attempt == 2)
        restarted.touch()
        error = await outcome(alone)
        assert "task's service 'server' ended at" in "\n".join(error.__notes__)
        other_pid, _, other = (await late(service)).split(maxsplit=2)
        assert other_pid != pid
        assert other.strip() != sandbox
        assert alive(int(other_pid))
        assert service.attempt == 2
        assert service.sandbox == other.strip()
    assert not alive(int(other_pid))
