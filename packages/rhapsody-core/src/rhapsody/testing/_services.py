"""Checks of services: readiness, serving, stopping."""

from __future__ import annotations

import asyncio
import shlex
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from rhapsody.errors import CapabilityError
from rhapsody.task import TaskDescription
from rhapsody.testing._driver import Driver, Finished
from rhapsody.testing._executables import text_of
from rhapsody.testing._rules import FUNCTION_SERVICES, SERVICES, SHARED, cancels
from rhapsody.testing._running import check
from rhapsody.testing._tasks import CANCELED, FAILED, RUNNING, Ticking
from rhapsody.testing._trial import Trial

STOPPABLE = cancels("service", "running")


class Services:
    """Executables that run until they are cancelled."""

    @check(
        "a service without `ready` is reported running and goes on",
        SERVICES,
        STOPPABLE,
        dry=True,
    )
    async def test_a_service_runs_until_it_is_cancelled(self, trial: Trial) -> None:
        driver = await trial.driver()
        service = driver.service("sleep 600")
        await _serve(trial, driver, service)
        trial.require(CANCELED not in driver.history(service), "it ended by itself")
        await _stop(trial, driver, service)

    @check("`ready='stdout:REGEX'` returns the group or the match", SERVICES, STOPPABLE)
    async def test_it_is_ready_when_its_output_says_so(self, trial: Trial) -> None:
        driver = await trial.driver()
        for ready, expected in ((r"stdout:port (\d+)", "4711"), ("stdout:po.t 4", "port 4")):
            service = driver.service("echo starting; echo port 4711; sleep 600", ready=ready)
            await _serve(trial, driver, service, expected)
            await _stop(trial, driver, service)

    @check("`ready='file:NAME'` returns the path", SERVICES, SHARED, STOPPABLE)
    async def test_it_is_ready_when_a_file_is_there(self, trial: Trial) -> None:
        driver = await trial.driver()
        service = driver.service(
            "echo here > part; mv part 'the file'; sleep 600", ready="file:the file"
        )
        value = await _serve(trial, driver, service)
        trial.require(
            isinstance(value, str)
            and Path(value).is_absolute()
            and text_of(Path(value)) == "here\n",
            f"its readiness is {value!r}, not the path of the file",
        )
        await _stop(trial, driver, service)

    @check("`ready='tcp:PORT'` returns host and port", SERVICES, SHARED, STOPPABLE)
    async def test_it_is_ready_when_it_listens(self, trial: Trial) -> None:
        driver = await trial.driver()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
        service = driver.service(command, ready=f"tcp:{port}")
        value = await _serve(trial, driver, service)
        trial.require(
            isinstance(value, tuple) and len(value) == 2 and value[1] == port,
            f"its readiness is {value!r}, not (host, {port})",
        )
        await _connect(value)
        await _stop(trial, driver, service)

    @check("`ready='tcp:PORT'` is refused if something listens there", SERVICES, SHARED)
    async def test_a_port_in_use_is_refused(self, trial: Trial) -> None:
        driver = await trial.driver()
        with socket.create_server(("127.0.0.1", 0)) as stranger:
            service = driver.service("sleep 600", ready=f"tcp:{stranger.getsockname()[1]}")
            await driver.submit(service)
            trial.doing("waiting for a service whose port is in use")
            value, end = await _ready_or_ended(driver, service)
        if end is None:
            trial.require(False, f"its readiness is {value!r}, and it listens nowhere")
        else:
            trial.require(end.state is FAILED, f"{end}")
            trial.require("ready='tcp'" in str(end.error), f"no cure in {end.error!r}")

    @check(
        "`ready='tcp'` gives the service a free port, or is a CapabilityError",
        SERVICES,
        SHARED,
        STOPPABLE,
    )
    async def test_it_is_given_a_free_port(self, trial: Trial) -> None:
        driver = await trial.driver()
        listen = f"exec {shlex.quote(sys.executable)} -m http.server {{port}} --bind 127.0.0.1"
        service = driver.service(f'test "$PORT" = "{{port}}" && {listen}', ready="tcp")
        await driver.submit(service)
        trial.doing("waiting for a service with ready='tcp'")
        value, end = await _ready_or_ended(driver, service)
        if end is not None:
            trial.require(isinstance(end.error, CapabilityError), f"{end}: {end.error!r}")
            return
        trial.require(
            isinstance(value, tuple) and len(value) == 2, f"its readiness is {value!r}, no address"
        )
        await _connect(value)
        await _stop(trial, driver, service)

    @check("a callable `ready` sets its return value as the result", SERVICES, STOPPABLE)
    async def test_it_is_ready_when_a_callable_says_so(self, trial: Trial) -> None:
        driver = await trial.driver()
        gate = threading.Event()

        def wait(task: Any) -> tuple[str, bool]:
            return "up", gate.wait(trial.kit.time_limit)

        async def wait_too(task: Any) -> tuple[str, bool]:
            await asyncio.sleep(0)
            return "up", True

        asyncio.get_running_loop().call_later(trial.kit.settle, gate.set)
        for ready in (wait, wait_too):
            service = driver.service("sleep 600", ready=ready)
            await _serve(trial, driver, service, ("up", True))
            await _stop(trial, driver, service)

    @check("a service is not reported as ready before it is", SERVICES, SHARED, STOPPABLE)
    async def test_it_is_not_ready_too_early(self, trial: Trial) -> None:
        driver = await trial.driver()
        gate = trial.work_dir / "gate"
        command = f"while [ ! -e '{gate}' ]; do sleep 0.05; done; echo ready; sleep 600"
        service = driver.service(command, ready="stdout:ready")
        await driver.submit(service)
        ready = asyncio.ensure_future(driver.ready(service))
        await trial.clock.elapse(trial.kit.settle)
        trial.require(not ready.done(), "it was ready before it had said so")
        gate.touch()
        await ready
        await _stop(trial, driver, service)

    @check("a service that ends before it is ready fails", SERVICES)
    async def test_a_service_that_ends_too_early_fails(self, trial: Trial) -> None:
        driver = await trial.driver()
        service = driver.service("echo broken >&2; exit 3", ready="stdout:never")
        await driver.submit(service)
        trial.doing("waiting for a service that ends before it is ready")
        try:
            value = await driver.ready(service)
        except Exception:  # whatever says so
            value = None
        end = await driver.finished(service)
        trial.require(value is None, f"its readiness is {value!r}")
        trial.require(end.state is FAILED, f"{end}")

    @check("a service that ends later is reported, once", SERVICES, SHARED)
    async def test_a_service_that_ends_later_is_reported(self, trial: Trial) -> None:
        driver = await trial.driver()
        gate = trial.work_dir / "gate"
        command = f"echo ready; while [ ! -e '{gate}' ]; do sleep 0.05; done; exit 3"
        service = driver.service(command, ready="stdout:ready")
        await _serve(trial, driver, service)
        gate.touch()
        end = await driver.finished(service)
        trial.require(end.state is FAILED and end.exit_code == 3, f"{end}")

    @check("a service that is stopped is really stopped", SERVICES, SHARED, STOPPABLE)
    async def test_a_stopped_service_does_nothing_more(self, trial: Trial) -> None:
        driver = await trial.driver()
        service = Ticking(trial, driver, "service")
        await driver.submit(service.task)
        await service.began()
        await _stop(trial, driver, service.task)
        trial.require(await service.is_still(), "its processes go on after the terminal state")

    @check("a function can be a service", FUNCTION_SERVICES, SHARED)
    async def test_a_function_can_be_a_service(self, trial: Trial) -> None:
        driver = await trial.driver()
        service = Ticking(trial, driver, "function_service")
        await driver.submit(service.task)
        trial.require(await driver.running(service.task), "it is not reported running")
        await service.began()
        if trial.capabilities.cancellation("function_service") == "running":
            await _stop(trial, driver, service.task)
            trial.require(await service.is_still(), "it goes on after the terminal state")
        else:
            service.release()
            await driver.finished(service.task)


async def _serve(
    trial: Trial, driver: Driver, service: TaskDescription, expected: Any = None
) -> Any:
    """Submits a service and gives its readiness."""
    await driver.submit(service)
    trial.doing(f"waiting for a service with ready={service.get('ready')!r}")
    value = await driver.ready(service)
    trial.require(RUNNING in driver.history(service), "it was not reported running")
    if expected is not None:
        trial.require(value == expected, f"its readiness is {value!r}, not {expected!r}")
    return value


async def _ready_or_ended(driver: Driver, service: TaskDescription) -> tuple[Any, Finished | None]:
    """The readiness of a service, or how it ended where it is not ready."""
    try:
        return await driver.ready(service), None
    except Exception:  # whatever says so
        return None, await driver.finished(service)


async def _connect(address: Any) -> None:
    _, writer = await asyncio.open_connection(*address)
    writer.close()
    await writer.wait_closed()


async def _stop(trial: Trial, driver: Driver, service: TaskDescription) -> None:
    trial.doing("waiting for a cancelled service to end")
    given = await driver.cancel(service)
    trial.require(given is True, f"cancel_task of a service that serves gave {given!r}")
    end = await driver.finished(service)
    trial.require(end.state is CANCELED, f"stopped by cancel_task: {end}")
