"""A program that type checkers accept, with the types they must find.

Checked by `nox -s types`, not run.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_type

from rhapsody import (
    InputFile,
    InputFiles,
    LocalExecutionBackend,
    NoopExecutionBackend,
    OutputDir,
    OutputFile,
    Resources,
    RetryPolicy,
    TaskDescription,
    TaskFuture,
    TasksMainStates,
    WorkerValue,
    WorkflowEngine,
    current_task,
    literal,
    run,
    wait,
)
from rhapsody.plugins import (
    BackendSpec,
    CommandLine,
    CommandOption,
    LookupTask,
    ObservedEngine,
    Recorded,
    Summary,
    TaskEvent,
    hooks,
)


def what_plugins_read_of_an_engine(flow: WorkflowEngine) -> ObservedEngine:
    return flow


async def worker_values(flow: WorkflowEngine) -> None:
    @flow.worker_value
    def model(path: str) -> list[int]:
        return [len(path)]

    @flow.worker_value
    def connection() -> Iterator[bytes]:
        yield b""

    @flow.worker_value(per="thread")
    @contextlib.contextmanager
    def lines() -> Generator[str, None, None]:
        yield ""

    assert_type(model("weights"), WorkerValue[list[int]])
    assert_type(connection(), WorkerValue[bytes])
    assert_type(lines(), WorkerValue[str])
    assert_type(await flow.function_task(len)(model("weights")), int)


async def ways_to_make_an_engine() -> None:
    assert_type(await WorkflowEngine.create(), WorkflowEngine)
    await WorkflowEngine.create("noop", dry_run=True, implicit_data=False)
    await WorkflowEngine.create([LocalExecutionBackend("process"), "noop"], retries=2)
    await WorkflowEngine.create(backends={"mine": NoopExecutionBackend()})
    async with WorkflowEngine.create(await NoopExecutionBackend()) as flow:
        assert_type(flow, WorkflowEngine)
    async with asyncio.TaskGroup() as group:
        assert_type(group.create_task(WorkflowEngine.create()), asyncio.Task[WorkflowEngine])


def doubled(x: int) -> int:
    return 2 * x


def from_plain_code() -> None:
    assert_type(asyncio.run(WorkflowEngine.create()), WorkflowEngine)

    async def main(flow: WorkflowEngine) -> int:
        return await flow.function_task(doubled)(1)

    def called(flow: WorkflowEngine) -> TaskFuture[int]:
        return flow.function_task(doubled)(1)

    assert_type(run(main, backend="noop", retries=2, timeout="1 min"), int)
    assert_type(run(called, profile="frontera"), int)
    assert_type(run(lambda flow: flow.uid, backend=LocalExecutionBackend("process")), str)


@dataclass
class Model:
    score: float


async def functions(flow: WorkflowEngine) -> None:
    @flow.function_task
    async def add(x: int, y: int = 1) -> int:
        return x + y

    @flow.function_task
    def train(rate: float, *, name: str) -> Model:
        return Model(rate)

    @flow.function_task
    def nothing() -> None: ...

    one = add(1)
    assert_type(one, TaskFuture[int])
    assert_type(await one, int)
    assert_type(add(1, y=2), TaskFuture[int])

    # Futures where values are expected, in containers, and the backend's own settings.
    assert_type(add(one), TaskFuture[int])
    assert_type(add(one, y=add(2)), TaskFuture[int])
    assert_type(await add(add(add(1))), int)
    assert_type(train(0.1, name="a"), TaskFuture[Model])
    assert_type(train(one, name="a", task_description={"ranks": 2}), TaskFuture[Model])
    assert_type((await train(0.1, name="a")).score, float)
    assert_type(nothing(), TaskFuture[None])
    assert_type(await flow.function_task(lambda: "text")(), str)


async def functions_with_settings(flow: WorkflowEngine, before: TaskFuture[str]) -> None:
    @flow.function_task(retries=2, timeout=1.5, resources={"cores": 2}, service=False)
    async def add(x: int, y: int = 1) -> int:
        return x + y

    @flow.function_task(
        name="other",
        retries=RetryPolicy(attempts=2, on=(OSError, TimeoutError)),
        resources=Resources(cores=2),
        after=[before],
        limit=["license:2"],
        fallback=None,
        capture="files",
    )
    def text(x: int) -> str:
        return str(x)

    @flow.function_task()
    def empty() -> bytes:
        return b""

    assert_type(await add(1), int)
    assert_type(await text(add(1)), str)
    assert_type(await empty(), bytes)
    assert_type(await add.options(retries=1, after=[before])(1), int)
    several = [RetryPolicy(3, on=MemoryError), RetryPolicy(1, on=OSError)]
    growing = add.options(retries=several, resources=lambda attempt: {"cores": 2 * attempt})
    assert_type(await growing(1), int)
    assert_type(await add.options(resources=lambda attempt: Resources(attempt))(1), int)
    assert_type(await add.options(other_backends=("dask", "local"))(1), int)
    assert_type(await text.options(name="x").options(backend="noop")(add(1)), str)


class Holder:
    def method(self, x: int) -> float:
        return float(x)

    async def method_async(self, x: int) -> float:
        return float(x)


async def other_callables(flow: WorkflowEngine) -> None:
    holder = Holder()
    assert_type(await flow.function_task(holder.method)(1), float)
    assert_type(await flow.function_task(holder.method_async)(1), float)
    assert_type(await flow.function_task(functools.partial(holder.method, 1))(), float)
    assert_type(await flow.function_task(len)([1]), int)


async def executables(flow: WorkflowEngine, number: TaskFuture[int]) -> None:
    @flow.executable_task
    def text(x: int) -> str:
        return f"echo {x}"

    @flow.executable_task
    async def words(x: int, out: OutputFile) -> list[str]:
        return ["echo", str(x), out.filename]

    @flow.executable_task
    def draw(plots: OutputDir, tables: InputFiles) -> str:
        return f"draw {plots} {tables}"

    @flow.executable_task(service=True, ready="tcp:80", ready_timeout=5)
    def server() -> str:
        return "serve"

    @flow.executable_task
    async def either(plain: bool) -> str | list[str]:
        return "ls" if plain else ["ls"]

    assert_type(text(1), TaskFuture[str])
    assert_type(await text(number), str)
    assert_type(await words(number, OutputFile("x")), str)
    assert_type(await words(number, OutputFile("*.csv", many=True, save="results/")), str)
    assert_type(await draw(OutputDir("plots/", save=False), InputFile("*.csv")), str)
    assert_type(server(), TaskFuture[str])
    assert_type(await either(True), str)
    assert_type(await text.options(stdin="x")(1), str)


async def blocks(flow: WorkflowEngine, number: TaskFuture[int]) -> None:
    @flow.block
    async def part(x: int) -> list[int]:
        return [x]

    @flow.block(name="sync")
    def sync_part(x: int, future: object) -> int:
        assert_type(wait(number), int)
        assert_type(wait(number, timeout=2.5), int)
        return x

    assert_type(part(1), TaskFuture[list[int]])
    assert_type(await part(number), list[int])
    assert_type(await sync_part(number, literal([number])), int)

    @flow.block
    def returns_future(x: int) -> TaskFuture[int]:
        return number

    @flow.block(name="async")
    async def returns_future_later(x: int) -> TaskFuture[int]:
        return number

    assert_type(await returns_future(1), int)
    assert_type(await returns_future_later(1), int)


async def many(flow: WorkflowEngine) -> None:
    @flow.function_task
    async def add(x: int, y: int = 1) -> int:
        return x + y

    @flow.executable_task
    def show(x: int) -> str:
        return f"echo {x}"

    assert_type(flow.map(add, [1, 2]), list[TaskFuture[int]])
    assert_type(flow.map(add, range(3), range(3)), list[TaskFuture[int]])
    assert_type(flow.map(show, range(3)), list[TaskFuture[str]])
    async for number in flow.imap(add, range(10), window=3):
        assert_type(number, int)
    first, second = await asyncio.gather(add(1), show(2))
    assert_type(first, int)
    assert_type(second, str)
    assert_type(await asyncio.gather(*flow.map(add, [1])), list[int])
    async with flow.scope("part") as label:
        assert_type(label, str)


async def what_a_future_has(future: TaskFuture[int]) -> None:
    assert_type(future.uid, str)
    assert_type(future.id, str)
    assert_type(future.name, str)
    assert_type(future.state, TasksMainStates)
    assert_type(future.attempt, int)
    assert_type(future.backend, str | None)
    assert_type(future.stdout, str | None)
    assert_type(future.stderr, str | None)
    assert_type(future.exit_code, int | None)
    assert_type(future.sandbox, str | None)
    assert_type(await future.ended(), None)
    assert_type(future.cancel(), bool)
    assert_type(future.result(), int)


def inside_a_task(given: InputFile) -> None:
    here = current_task()
    assert_type(here.uid, str)
    assert_type(here.attempt, int)
    assert_type(here.sandbox, str | None)
    assert_type(here.deadline, float | None)
    assert_type(here.cancelled, bool)
    with open(given) as file:
        assert_type(file.read(), str)


def with_several(given: InputFiles) -> None:
    assert_type(given[0], Path)
    assert_type(given.file, InputFile)
    assert_type(os.fspath(given), str)


@hooks.backends
def one_backend() -> BackendSpec:
    return BackendSpec(name="demo", import_path="demo:Demo")


@hooks.run_options
def options() -> list[CommandOption]:
    return [CommandOption("notify_url")]


@hooks.observers
def add_observers(
    observers: Sequence[object],
    options: Mapping[str, Any],
    engine_options: Mapping[str, Any],
    sources: Mapping[str, str],
) -> Sequence[object]:
    return [Observer()]


@hooks.commands
def add_commands(cli: CommandLine) -> None: ...


class Observer:
    @hooks.task_events
    def events(self, engine: ObservedEngine, events: Sequence[TaskEvent]) -> None: ...

    @hooks.select_backend(tryfirst=True)
    def select(
        self, engine: ObservedEngine, task: TaskDescription, candidates: Sequence[str]
    ) -> str:
        return candidates[0]

    @hooks.lookup_results
    async def find(self, engine: ObservedEngine, tasks: Sequence[LookupTask]) -> list[Recorded]:
        return [Recorded(1) for _ in tasks]

    @hooks.workflow_finished
    async def finish(self, engine: ObservedEngine, summary: Summary) -> None: ...

    def call(self, engine: ObservedEngine, task: TaskDescription) -> None:
        assert_type(self.select(engine, task, ["local"]), str | None)
