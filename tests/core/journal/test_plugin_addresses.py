"""Results and arguments that contain the address of a service, in resumed runs."""

from __future__ import annotations

import asyncio
import os
from collections import namedtuple
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from rhapsody import InputFile, LocalExecutionBackend, OutputFile, WorkflowEngine
from rhapsody.builtin.journal.store import opened
from tests._support.recorded import LOG, engine, note, ran

pytestmark = pytest.mark.asyncio

MODEL = "model.txt"
FREE = "$((20000 + $$))"  # another port in each run
FIXED = "28123"


@pytest.fixture(autouse=True)
def nothing_ran(here: Path) -> None:
    (here / LOG).touch()
    (here / MODEL).write_text("old")


@dataclass
class Client:
    url: str


Pair = namedtuple("Addr", "host port")  # type: ignore[name-match]


def local_client(url: str) -> Any:
    @dataclass
    class Local:
        port: int

    return Local(int(url.rpartition(":")[2]))


def serve(flow: WorkflowEngine, port: str) -> Any:
    @flow.executable_task(service=True, ready="stdout:(http://localhost:[0-9]+)")
    def server(model: InputFile, port: str) -> str:
        return f"echo http://localhost:{port}; exec sleep 60"

    return server(InputFile(MODEL), port)


def shaped(url: str, form: str) -> Any:
    note("endpoint")
    port = int(url.rpartition(":")[2])
    forms: dict[str, Any] = {
        "text": url,
        "part of a text": f"the server listens on {url}/v1",
        "dict": {"nested": [{"url": url}]},
        "key": {url: 1},
        "host and port": ("localhost", port),
        "port": port,
        "port as text": f"--port={port}",
        "object": Client(url),
        "object of a local class": local_client(url),
        "named tuple with another name": Pair("localhost", port),
        "bytes": url.encode(),
        "path": Path("/tmp", f"{port}.sock"),
    }
    return forms[form]


FORMS = (
    "text", "part of a text", "dict", "key", "host and port", "port", "port as text", "object",
    "object of a local class", "named tuple with another name", "bytes", "path",
)  # fmt: skip
COMPARABLE = [form for form in FORMS if form != "object of a local class"]


def endpoint_task(flow: WorkflowEngine, **settings: Any) -> Any:
    @flow.function_task(**settings)
    def endpoint(url: str, form: str) -> Any:
        return shaped(url, form)

    return endpoint


def ask_task(flow: WorkflowEngine) -> Any:
    @flow.function_task
    def ask(address: object) -> str:
        note("ask")
        descriptor = os.open(MODEL, os.O_RDONLY)  # not noticed, unlike `open`
        answer = os.read(descriptor, 100).decode()
        os.close(descriptor)
        return answer

    return ask


@pytest.mark.parametrize("form", COMPARABLE)
async def test_a_result_that_contains_an_address_is_not_reused_with_another_address(
    form: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        async with engine(resume=True) as flow:
            service = serve(flow, FREE)
            answer = await endpoint_task(flow)(service, form)
            assert answer == shaped(await service, form)
    assert ran() == {"endpoint": 4}
    assert caplog.text.count("task 'endpoint' runs again") == 1
    with opened(Path("run.sqlite")) as journal:
        (why,) = [each.what for each in journal.explain("endpoint")]
    assert "address of service 'server'" in why


@pytest.mark.parametrize("form", FORMS)
async def test_a_result_that_contains_an_address_is_reused_while_the_address_is_the_same(
    form: str,
) -> None:
    for _ in range(2):
        async with engine(resume=True) as flow:
            assert await ask_task(flow)(endpoint_task(flow)(serve(flow, FIXED), form)) == "old"
    assert ran() == {"endpoint": 1, "ask": 1}


async def of_function(flow: WorkflowEngine, service: Any) -> Any:
    return await endpoint_task(flow)(service, "text")


async def of_function_with_version(flow: WorkflowEngine, service: Any) -> Any:
    return await endpoint_task(flow, version="1")(service, "text")


async def of_command(flow: WorkflowEngine, service: Any) -> Any:
    @flow.executable_task
    def endpoint(url: str) -> str:
        return f"printf '%s' {url}"

    return await endpoint(service)


async def of_block(flow: WorkflowEngine, service: Any) -> Any:
    @flow.block
    async def endpoints(url: str) -> Any:
        @flow.function_task
        def endpoint() -> str:
            return url

        return await endpoint()

    return await endpoints(service)


async def of_output_file(flow: WorkflowEngine, service: Any) -> Any:
    @flow.function_task
    def write(url: str, file: str) -> None:
        Path(file).write_text(f"url = {url}\n")

    @flow.function_task
    def read(file: str) -> str:
        return Path(file).read_text().split()[-1]

    return await read(write(service, OutputFile("url.txt")).file("url.txt"))


@pytest.mark.parametrize("backend", ["thread", "process"])
@pytest.mark.parametrize(
    "program",
    [of_function, of_function_with_version, of_command, of_block, of_output_file],
)
async def test_readers_receive_the_current_address(
    program: Callable[[WorkflowEngine, Any], Awaitable[Any]], backend: Any
) -> None:
    addresses = []
    for _ in range(2):
        async with engine(backend=LocalExecutionBackend(backend), resume=True) as flow:
            service = serve(flow, FREE)
            addresses.append(await service)
            assert await program(flow, service) == addresses[-1]
    assert len(set(addresses)) == 2


async def asked_for_result(flow: WorkflowEngine, service: Any) -> Any:
    return await ask_task(flow)(endpoint_task(flow)(service, "dict"))


async def asked_for_port(flow: WorkflowEngine, service: Any) -> Any:
    return await ask_task(flow)(endpoint_task(flow)(service, "port"))


async def asked_for_object(flow: WorkflowEngine, service: Any) -> Any:
    return await ask_task(flow)(endpoint_task(flow)(service, "object"))


async def asked_for_awaited(flow: WorkflowEngine, service: Any) -> Any:
    return await ask_task(flow)(await service)


async def asked_in_block(flow: WorkflowEngine, service: Any) -> Any:
    ask = ask_task(flow)

    @flow.block
    async def asks(endpoint: Any) -> Any:
        return await ask(endpoint["nested"])

    return await asks(endpoint_task(flow)(service, "dict"))


async def asked_through_closure(flow: WorkflowEngine, service: Any) -> Any:
    url = await service
    ask = ask_task(flow).function

    @flow.function_task
    def asks() -> Any:
        return url and ask(None)

    return await asks()


async def asked_by_command(flow: WorkflowEngine, service: Any) -> Any:
    directory = os.getcwd()

    @flow.executable_task
    def ask(url: str) -> str:
        return f"cd {directory}; echo ask >> {LOG}; : {url}; cat {MODEL}"

    return await ask(endpoint_task(flow)(service, "text"))


async def asked_for_input_file(flow: WorkflowEngine, service: Any) -> Any:
    @flow.function_task
    def write(url: str, file: str) -> None:
        Path(file).write_text(url)

    return await ask_task(flow)(write(service, OutputFile("url.txt")).file("url.txt"))


async def asked_through_service(flow: WorkflowEngine, service: Any) -> Any:
    @flow.executable_task(service=True, ready="stdout:(listening)")
    def proxy(url: str) -> str:
        return "echo listening; exec sleep 60"

    return await ask_task(flow)(proxy(endpoint_task(flow)(service, "text")))


def ask_at(url: str) -> str:
    note("ask")
    descriptor = os.open(MODEL, os.O_RDONLY)  # not noticed, unlike `open`
    answer = os.read(descriptor, 100).decode()
    os.close(descriptor)
    return answer if url else ""


def called(function: Callable[[], str]) -> str:
    return function()


@dataclass
class Asking(Client):
    def ask(self) -> str:
        return ask_at(self.url)

    def __call__(self) -> str:
        return ask_at(self.url)


async def asked_by_partial(flow: WorkflowEngine, service: Any) -> Any:
    return await flow.function_task(partial(ask_at, await service))()


async def asked_by_default(flow: WorkflowEngine, service: Any) -> Any:
    url = await service

    @flow.function_task
    def asks(url: str = url) -> str:
        return ask_at(url)

    return await asks()


async def asked_by_keyword_default(flow: WorkflowEngine, service: Any) -> Any:
    url = await service

    @flow.function_task
    def asks(*, url: str = url) -> str:
        return ask_at(url)

    return await asks()


async def asked_by_method(flow: WorkflowEngine, service: Any) -> Any:
    return await flow.function_task(Asking(await service).ask)()


async def asked_by_callable(flow: WorkflowEngine, service: Any) -> Any:
    return await flow.function_task(name="asking")(Asking(await service))()


async def asked_by_argument_with_closure(flow: WorkflowEngine, service: Any) -> Any:
    url = await service
    return await flow.function_task(called)(lambda: ask_at(url) if flow else "")


async def asked_by_argument_with_default(flow: WorkflowEngine, service: Any) -> Any:
    return await flow.function_task(called)(lambda url=await service: ask_at(url))


async def asked_by_view(flow: WorkflowEngine, service: Any) -> Any:
    return await ask_task(flow)(MappingProxyType({"url": await service}))


async def asked_by_environment(flow: WorkflowEngine, service: Any) -> Any:
    os.environ["SERVER_URL"] = await service
    try:
        return await flow.function_task(name="asks")(lambda: ask_at(os.environ["SERVER_URL"]))()
    finally:
        del os.environ["SERVER_URL"]


@dataclass
class Asker:
    client: Any

    def ask(self) -> str:
        return ask_at(str(self.client.port))


class EnvironmentAsker:
    def ask(self) -> str:
        return ask_at(os.environ["SERVER_URL"])


async def asked_by_environment_of_method(flow: WorkflowEngine, service: Any) -> Any:
    os.environ["SERVER_URL"] = await service
    try:
        return await flow.function_task(EnvironmentAsker().ask)()
    finally:
        del os.environ["SERVER_URL"]


async def asked_by_environment_of_argument(flow: WorkflowEngine, service: Any) -> Any:
    os.environ["SERVER_URL"] = await service
    try:
        return await flow.function_task(asked)(EnvironmentAsker())
    finally:
        del os.environ["SERVER_URL"]


URL = ""


class GlobalAsker:
    def ask(self) -> str:
        return ask_at(URL)

    def __call__(self) -> str:
        return ask_at(URL)


def ask_global(_: int) -> str:
    return ask_at(URL)


def asked(asker: Any) -> str:
    return str(asker.ask())


async def asked_by_global(
    flow: WorkflowEngine, service: Any, function: Callable[..., str], *args: object
) -> Any:
    global URL
    URL = await service
    try:
        return await flow.function_task(name="asks")(function)(*args)
    finally:
        URL = ""


async def asked_by_global_of_method(flow: WorkflowEngine, service: Any) -> Any:
    return await asked_by_global(flow, service, GlobalAsker().ask)


async def asked_by_global_of_callable(flow: WorkflowEngine, service: Any) -> Any:
    return await asked_by_global(flow, service, GlobalAsker())


async def asked_by_global_of_partial(flow: WorkflowEngine, service: Any) -> Any:
    return await asked_by_global(flow, service, partial(ask_global, 1))


async def asked_by_global_of_argument(flow: WorkflowEngine, service: Any) -> Any:
    return await asked_by_global(flow, service, asked, GlobalAsker())


async def asked_by_global_of_function(flow: WorkflowEngine, service: Any) -> Any:
    return await asked_by_global(flow, service, called, partial(ask_global, 1))


async def asked_by_local_object(flow: WorkflowEngine, service: Any) -> Any:
    return await flow.function_task(called)(Asker(local_client(await service)).ask)


async def asked_beside_local_object(flow: WorkflowEngine, service: Any) -> Any:
    values = [local_client("x:1"), os, await service]
    return await flow.function_task(name="asks")(lambda values: ask_at(values[-1]))(values)


async def asked_by_partial_argument(flow: WorkflowEngine, service: Any) -> Any:
    return await flow.function_task(called)(partial(ask_at, await service))


def client(port: int) -> Callable[[], str]:
    return partial(ask_at, f"http://localhost:{port}")


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def nested(inner: Callable[[], str]) -> Callable[[], str]:
    return inner


async def asked_through_worker_value(flow: WorkflowEngine, service: Any) -> Any:
    return await flow.function_task(called)(flow.worker_value(client)(port_of(await service)))


async def asked_through_nested_value(flow: WorkflowEngine, service: Any) -> Any:
    inner = flow.worker_value(client)(port_of(await service))
    return await flow.function_task(called)(flow.worker_value(nested)(inner))


async def asked_through_value_with_closure(flow: WorkflowEngine, service: Any) -> Any:
    port = port_of(await service)

    @flow.worker_value
    def connection() -> Callable[[], str]:
        return client(port)

    return await flow.function_task(called)(connection())


async def asked_through_value_of_result(flow: WorkflowEngine, service: Any) -> Any:
    port = flow.function_task(port_of)(service)
    return await flow.function_task(called)(flow.worker_value(client)(port))


WAYS = [
    asked_through_worker_value, asked_through_nested_value, asked_through_value_with_closure,
    asked_through_value_of_result,
    asked_by_partial, asked_by_default, asked_by_keyword_default, asked_by_method,
    asked_by_callable, asked_by_argument_with_closure, asked_by_argument_with_default,
    asked_by_environment, asked_by_environment_of_method, asked_by_environment_of_argument,
    asked_by_global_of_method, asked_by_global_of_callable, asked_by_global_of_partial,
    asked_by_global_of_argument, asked_by_global_of_function, asked_by_local_object,
    asked_beside_local_object,
    asked_by_view, asked_by_partial_argument,
    asked_for_result, asked_for_port, asked_for_object, asked_for_awaited, asked_in_block,
    asked_through_closure, asked_by_command, asked_for_input_file, asked_through_service,
]  # fmt: skip


@pytest.mark.parametrize("program", WAYS)
async def test_a_service_that_changed_makes_tasks_run_again_that_receive_its_address(
    here: Path, program: Callable[[WorkflowEngine, Any], Awaitable[Any]]
) -> None:
    answers = []
    for version in ("old", "old", "new", "new"):
        (here / MODEL).write_text(version)
        async with engine(resume=True) as flow:
            answers.append(await program(flow, serve(flow, FIXED)))
    assert answers == ["old", "old", "new", "new"]
    assert ran()["ask"] == 2


async def test_a_port_among_many_numbers_is_not_regarded_as_an_address(here: Path) -> None:
    for _ in range(2):
        async with engine(resume=True) as flow:

            @flow.function_task
            def table(url: str) -> list[int]:
                note("table")
                return [int(url.rpartition(":")[2]), *range(10000, 10100)]

            @flow.function_task
            def status(url: str) -> dict[str, Any]:
                note("status")
                return {"url": url, "table": [*range(10000, 10100)]}

            service = serve(flow, FREE)
            await table(service)
            await status(service)
    assert ran() == {"table": 1, "status": 2}


async def test_the_address_after_a_restart_counts(here: Path) -> None:
    stop = here / "stop"
    for _ in range(2):
        async with engine(resume=True) as flow:

            @flow.executable_task(
                service=True, ready="stdout:(http://localhost:[0-9]+)", restarts=1
            )
            def server() -> str:
                wait = f"while [ ! -e {stop} ]; do sleep 0.02; done; rm {stop}; exit 1"
                return f"echo http://localhost:{FREE}; {wait}"

            service = server()
            first = await service
            stop.touch()
            while service.attempt == 1:  # noqa: ASYNC110 - the service runs in another process
                await asyncio.sleep(0.02)
            assert await endpoint_task(flow)(service, "text") != first
    assert ran() == {"endpoint": 2}


async def test_the_address_of_a_service_does_not_affect_other_tasks(here: Path) -> None:
    for version in ("old", "new"):
        (here / MODEL).write_text(version)
        async with engine(resume=True) as flow:

            @flow.function_task
            def other(number: int, text: str) -> str:
                note("other")
                return text

            service = serve(flow, FIXED)
            await service
            await other(281234, f"localhost 1{FIXED} {FIXED}.5")
    assert ran() == {"other": 1}
