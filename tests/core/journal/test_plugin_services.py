"""Results of tasks that use services: what a service depends on counts for these tasks."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from rhapsody import InputFile, OutputFile, WorkflowEngine
from tests._support.recorded import LOG, engine, note, ran

pytestmark = pytest.mark.asyncio

MODEL = "model.txt"

SERVE = "echo listening; exec sleep 60"


@pytest.fixture(autouse=True)
def nothing_ran(here: Path) -> None:
    (here / LOG).touch()
    (here / MODEL).write_text("old")


def content() -> str:
    return Path(MODEL).read_text()


def ask_task(flow: WorkflowEngine) -> Any:
    @flow.function_task
    def ask(host: object = None) -> str:
        note("ask")
        descriptor = os.open(MODEL, os.O_RDONLY)  # not noticed, unlike `open`
        answer = os.read(descriptor, 100).decode()
        os.close(descriptor)
        return answer

    return ask


def serve_task(flow: WorkflowEngine, **settings: Any) -> Any:
    @flow.executable_task(service=True, ready="stdout:(listening)", **settings)
    def serve(*used: object) -> str:
        return f": {' '.join(map(str, used))}; {SERVE}"

    return serve


async def of_input_file(flow: WorkflowEngine) -> str:
    answer: str = await ask_task(flow)(serve_task(flow)(InputFile(MODEL)))
    return answer


async def of_input_file_of_a_command(flow: WorkflowEngine) -> str:
    @flow.executable_task
    def ask(host: str, directory: str) -> str:
        return f"cd {directory}; echo ask >> {LOG}; : {host}; cat {MODEL}"

    answer: str = await ask(serve_task(flow)(InputFile(MODEL)), os.getcwd())
    return answer


async def of_producer(flow: WorkflowEngine) -> str:
    @flow.function_task
    def train(model: str, result: str) -> None:
        Path(result).write_text(Path(model).read_text())

    trained = train(InputFile(MODEL), OutputFile("trained.txt"))
    answer: str = await ask_task(flow)(serve_task(flow)(trained.file("trained.txt")))
    return answer


async def of_environment(flow: WorkflowEngine) -> str:
    serve = serve_task(flow, environment={"MODEL": content()})
    answer: str = await ask_task(flow)(serve())
    return answer


async def of_variables(flow: WorkflowEngine) -> str:
    os.environ["MODEL_OF_THE_SERVICE"] = content()
    answer: str = await ask_task(flow)(serve_task(flow)())
    return answer


async def of_file_in_the_command(flow: WorkflowEngine) -> str:
    model = f"{os.getcwd()}/{MODEL}"

    @flow.executable_task(service=True, ready="stdout:(listening)")
    def serve() -> str:
        return f": --model={model}; {SERVE}"

    answer: str = await ask_task(flow)(serve())
    return answer


def program_with_the_model() -> str:
    program = Path("bin", "server").resolve()
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n# {content()}\n{SERVE}")
    program.chmod(0o700)
    return str(program)


async def of_program(flow: WorkflowEngine) -> str:
    program = program_with_the_model()

    @flow.executable_task(service=True, ready="stdout:(listening)")
    def serve() -> list[str]:
        return [program]

    answer: str = await ask_task(flow)(serve())
    return answer


async def of_argument(flow: WorkflowEngine) -> str:
    answer: str = await ask_task(flow)(serve_task(flow)(content()))
    return answer


async def of_ready_text(flow: WorkflowEngine) -> str:
    @flow.executable_task(service=True, ready=f"stdout:(listening|{content()})")
    def serve() -> str:
        return SERVE

    answer: str = await ask_task(flow)(serve())
    return answer


async def of_ready_function(flow: WorkflowEngine) -> str:
    version = content()

    @flow.executable_task(service=True, ready=lambda task: f"{task['name']} {version}")
    def serve() -> str:
        return SERVE

    answer: str = await ask_task(flow)(serve())
    return answer


async def of_opened_file(flow: WorkflowEngine) -> str:
    @flow.executable_task(service=True, ready="stdout:(listening)")
    def serve() -> str:
        with open(MODEL) as file:
            return f": {json.dumps(file.read())}; {SERVE}"

    answer: str = await ask_task(flow)(serve())
    return answer


async def of_file_opened_by_a_coroutine(flow: WorkflowEngine) -> str:
    @flow.executable_task(service=True, ready="stdout:(listening)")
    async def serve() -> str:
        await asyncio.sleep(0)
        return f": {await asyncio.to_thread(content)}; {SERVE}"

    answer: str = await ask_task(flow)(serve())
    return answer


async def of_service_of_a_service(flow: WorkflowEngine) -> str:
    serve = serve_task(flow)
    answer: str = await ask_task(flow)(serve(serve(InputFile(MODEL))))
    return answer


async def of_after(flow: WorkflowEngine) -> str:
    service = serve_task(flow)(InputFile(MODEL))
    answer: str = await ask_task(flow).options(after=[service])()
    return answer


async def of_block(flow: WorkflowEngine) -> str:
    ask = ask_task(flow)

    @flow.block
    async def asks(host: str) -> str:
        answer: str = await ask(host)
        return answer

    @flow.block
    async def outer(host: str) -> str:
        return await asks(host)

    return await outer(serve_task(flow)(InputFile(MODEL)))


WAYS = [
    of_input_file, of_input_file_of_a_command, of_producer, of_environment, of_variables,
    of_file_in_the_command, of_program, of_argument, of_ready_text, of_ready_function,
    of_opened_file, of_file_opened_by_a_coroutine, of_service_of_a_service, of_after, of_block,
]  # fmt: skip


@pytest.mark.parametrize("program", WAYS)
async def test_a_service_that_changed_makes_the_tasks_that_use_it_run_again(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: Callable[[WorkflowEngine], Awaitable[str]],
) -> None:
    monkeypatch.setenv("MODEL_OF_THE_SERVICE", "")
    answers = []
    for version in ("old", "old", "new", "new"):
        (here / MODEL).write_text(version)
        async with engine(resume=True) as flow:
            answers.append(await program(flow))
    assert answers == ["old", "old", "new", "new"]
    assert ran() == {"ask": 2}


async def test_a_free_port_in_the_command_of_a_service_does_not_count() -> None:
    ports = []
    with socket.create_server(("localhost", 0)):  # so that the second port differs
        for _ in range(2):
            async with engine(resume=True) as flow:

                @flow.executable_task(service=True, ready="stdout:port ([0-9]+)")
                def serve() -> str:
                    with socket.create_server(("localhost", 0)) as server:
                        return f"echo port {server.getsockname()[1]}; exec sleep 60"

                ports.append(await (service := serve()))
                await ask_task(flow)(service)
    assert len(set(ports)) == 2
    assert ran() == {"ask": 1}


async def test_a_file_of_a_service_that_changes_while_it_runs_is_not_recorded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(2):
        async with engine(resume=True) as flow:

            @flow.function_task
            def ask(host: object) -> None:
                note("ask")
                Path(MODEL).write_text(f"changed {ran()['ask']}")

            await ask(serve_task(flow)(InputFile(MODEL)))
    assert ran() == {"ask": 2}
    assert "it uses service 'serve'" in caplog.text


async def test_a_service_that_cannot_be_compared_is_named(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        async with engine(resume=True) as flow:

            @flow.executable_task(service=True, ready="stdout:(listening)")
            def serve(used: object) -> str:
                return SERVE

            await ask_task(flow)(serve(line for line in "abc"))
    assert ran() == {"ask": 2}
    assert "it uses service 'serve'" in caplog.text
