"""The program that makes the calls of a graph, and notes how each has ended.

    rhapsody run tests/system/chaos/program.py -- SEED TASKS DIRECTORY

In the directory it leaves `log.txt`, to which each attempt of a task adds a line, and `ends.json`.
It needs this tree in PYTHONPATH; tasks need nothing of it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rhapsody
from rhapsody import InputFile, OutputDir, OutputFile, WorkflowEngine
from rhapsody.errors import DependencyFailureError
from tests.system.chaos.graphs import INNER, MODULUS, Call, make_graph
from tests.system.chaos.model import CANCELLED, DEPENDENCY, End

READY = r"stdout:ready (\d+)"


def helpers(log: str, marks: str) -> tuple[Callable[..., int], Callable[..., bool]]:
    """Return the functions of tasks, which are created here so that they are pickled by value."""

    def run(number: int, *values: Any) -> int:
        """Record an attempt with one write, which others cannot interrupt; return its value."""
        import os

        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"ran {number} {os.getpid()}\n".encode())
        os.close(file)
        return (sum(map(int, values)) + number) % MODULUS

    def fails_yet(number: int, failures: int) -> bool:
        """Return whether fewer attempts than these have been made, and count one."""
        import os

        for count in range(failures):
            try:
                os.close(os.open(f"{marks}/{number}.{count}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            return True
        return False

    return run, fails_yet


def function_tasks(flow: WorkflowEngine, log: str, marks: str) -> dict[str, Any]:
    """The kinds of calls that are functions."""
    run, fails_yet = helpers(log, marks)

    @flow.function_task
    def function(number: int, *values: Any) -> int:
        return run(number, *values)

    @flow.function_task
    async def coroutine(number: int, *values: Any) -> int:
        await asyncio.sleep(0)
        return run(number, *values)

    @flow.function_task
    def fails(number: int, *values: Any) -> int:
        raise ValueError(f"bad {run(number, *values)}")

    @flow.function_task(fallback=lambda error: int(error.args[0]) * 7 % MODULUS)
    def falls_back(number: int, *values: Any) -> int:
        run(number, *values)
        raise ValueError(number)

    @flow.function_task
    def flaky(number: int, failures: int, *values: Any) -> int:
        value = run(number, *values)
        if fails_yet(number, failures):
            raise OSError("try again")
        return value

    @flow.function_task(retries=1)
    async def exhausted(number: int, *values: Any) -> int:
        raise OSError(f"never {run(number, *values)}")

    @flow.function_task(timeout=0.5)
    async def too_long(number: int, *values: Any) -> None:
        run(number, *values)
        await asyncio.sleep(3600)

    @flow.function_task(limit="one:2")
    def limited(number: int, *values: Any) -> int:
        return run(number, *values)

    return {
        "function": function,
        "coroutine": coroutine,
        "fails": fails,
        "falls back": falls_back,
        "flaky": flaky,
        "exhausted": exhausted,
        "too long": too_long,
        "limited": limited,
    }


def program_tasks(flow: WorkflowEngine, log: str, marks: str) -> dict[str, Any]:
    """The kinds of calls that are programs."""

    def ran(number: int) -> str:
        return f"echo ran {number} >> {log}"

    def total(number: int, values: Sequence[Any]) -> int:
        return int((sum(map(int, values)) + number) % MODULUS)

    @flow.executable_task
    def program(number: int, *values: Any) -> str:
        return f"{ran(number)} && echo {total(number, values)}"

    @flow.executable_task
    def failing_program(number: int, *values: Any) -> str:
        return f"{ran(number)} && echo on purpose >&2; exit 3"

    @flow.executable_task
    def falls_back(number: int, *values: Any) -> str:
        return f"{ran(number)}; exit 1"

    @flow.executable_task
    def flaky(number: int, failures: int, *values: Any) -> str:
        once = [f"mkdir {marks}/{number}.{count} 2>&- && exit 1" for count in range(failures)]
        return "; ".join([ran(number), *once, f"echo {total(number, values)}"])

    @flow.executable_task
    def make(number: int, file: OutputFile, *values: Any) -> str:
        return f"{ran(number)} && echo {number} > {file} && echo {total(number, values)}"

    @flow.executable_task
    def make_several(number: int, plots: OutputDir, tables: OutputFile, *values: Any) -> str:
        files = f"mkdir {plots} && echo {number} > {plots}/a && echo {number} > {number}.1.csv"
        last = f"echo 1 > {number}.2.csv && echo {total(number, values)}"
        return f"{ran(number)} && {files} && {last}"

    @flow.executable_task
    def read_by_program(number: int, plots: InputFile, tables: InputFile, *values: Any) -> str:
        known = f"{ran(number)} && first=$(cat {plots}/a) && sum=0"
        rest = f"for each in $(cat {tables}); do sum=$((sum + each)); done"
        return f"{known} && {rest}; echo $(((first + sum + {total(number, values)}) % {MODULUS}))"

    @flow.executable_task(service=True, ready=READY)
    def service(number: int) -> str:
        return f"echo ready {number}; exec sleep 3600"

    return {
        "program": program,
        "failing program": failing_program,
        "program falls back": falls_back,
        "flaky program": flaky,
        "make": make,
        "save": make,
        "make several": make_several,
        "read by program": read_by_program,
        "service": service,
    }


def file_functions(flow: WorkflowEngine, log: str, marks: str) -> dict[str, Any]:
    """The kinds of calls that are functions with files."""
    run, _ = helpers(log, marks)

    @flow.function_task
    def make_by_function(number: int, file: Any, *values: Any) -> int:
        with open(file, "w") as out:
            out.write(f"{number}\n")
        return run(number, *values)

    @flow.function_task
    def read(number: int, file: Any, *values: Any) -> int:
        with open(file) as made:
            return int((run(number, *values) + int(made.read())) % MODULUS)

    return {"make by function": make_by_function, "read": read}


def blocks(flow: WorkflowEngine, tasks: dict[str, Any]) -> dict[str, Any]:
    """The kinds of calls that are blocks, which call tasks of other kinds."""
    function, program = tasks["function"], tasks["program"]

    @flow.block
    async def block(number: int, *values: Any) -> int:
        first = await function(number, *values)
        return int(await program(number + INNER, first))

    @flow.block
    def thread_block(number: int, *values: Any) -> int:
        first = rhapsody.wait(function(number, *values))
        return int(rhapsody.wait(function(number + INNER, first)))

    @flow.block
    async def nested_block(number: int, *values: Any) -> int:
        return (await block(number, *values) + 1) % MODULUS

    @flow.block
    async def failing_block(number: int, *values: Any) -> int:
        await asyncio.gather(function(number, *values), program(number + INNER, 1))
        raise ValueError("on purpose")

    return {
        "block": block,
        "thread block": thread_block,
        "nested block": nested_block,
        "failing block": failing_block,
    }


def arguments(call: Call, results: str) -> list[Any]:
    """Return the arguments of a call before the values of its dependencies."""
    number = call.number
    match call.kind:
        case "flaky" | "flaky program":
            return [number, call.failures]
        case "make" | "make by function":
            return [number, OutputFile(f"made{number}.txt")]
        case "save":
            return [number, OutputFile(f"made{number}.txt", save=f"{results}/")]
        case "make several":
            return [number, OutputDir(f"plots{number}"), OutputFile(f"{number}.*.csv", many=True)]
        case "read":
            return [number, InputFile(f"made{call.needs[0]}.txt")]
        case "read by program":
            made = call.needs[0]
            return [number, InputFile(f"plots{made}"), InputFile(f"{made}.*.csv")]
        case _:
            return [number]


def with_options(task: Any, call: Call, futures: Sequence[Any]) -> Any:
    """The task of a call with the call's own settings."""
    options: dict[str, Any] = {}
    if call.after:
        options["after"] = [futures[number] for number in call.after]
    if call.priority and "block" not in call.kind:
        options["priority"] = call.priority
    if call.kind.startswith("flaky"):
        options["retries"] = call.failures
    if call.kind == "program falls back":
        options["fallback"] = call.number * 7 % MODULUS
    return task.options(**options) if options else task


def end_of(future: Any) -> End:
    """Return the end of a future in the terms of the model."""
    if future.cancelled():
        return CANCELLED
    error = future.exception()
    if error is None:
        return "done", int(future.result())
    if isinstance(error, DependencyFailureError):
        return DEPENDENCY
    return "failed", type(error).__name__


@dataclass
class Run:
    """The calls of a graph that are made.

    Attributes:
        graph: The graph.
        futures: Those of the calls that were made.
        cancelled: The calls that were cancelled before they had ended.
    """

    graph: Sequence[Call]
    futures: list[Any] = field(default_factory=list)
    cancelled: set[int] = field(default_factory=set)

    def cancel(self, number: int) -> None:
        """Cancels a call."""
        if self.futures[number].cancel():
            self.cancelled.add(number)

    def cancel_attempt(self, uid: str) -> None:
        """Cancels the call that an attempt belongs to, unless that is a service."""
        of = uid.partition(".task.")[2].partition(".")[0]
        for number, future in enumerate(self.futures):
            if future.uid == f"task.{of}" and self.graph[number].kind != "service":
                self.cancel(number)

    async def to_its_end(
        self, flow: WorkflowEngine, place: Path, ended: Callable[[int, Any], None]
    ) -> dict[int, End]:
        """Makes the calls, waits for all, and stops the services.

        Args:
            flow: The engine.
            place: Where tasks note what they do.
            ended: Called with each future that is done.

        Returns:
            The outcome of each call.
        """
        tasks = self._tasks(flow, place)
        for call in self.graph:
            if call.pause:
                await asyncio.sleep(0)
            if call.wait_for is not None:
                await asyncio.wait([self.futures[call.wait_for]])
            needs = [self.futures[number] for number in call.needs]
            task = with_options(tasks[call.kind], call, self.futures)
            try:
                future = task(*arguments(call, str(place / "results")), *needs)
            except RuntimeError:  # the engine is being shut down
                break
            future.add_done_callback(lambda done, number=call.number: ended(number, done))
            self.futures.append(future)
            for number in call.cancels:
                self.cancel(number)
        await asyncio.wait(self.futures)
        ends = {number: end_of(future) for number, future in enumerate(self.futures)}
        services = [self.futures[n] for n in ends if self.graph[n].kind == "service"]
        for service in services:
            service.cancel()
        await asyncio.gather(*(service.ended() for service in services))
        return ends

    def _tasks(self, flow: WorkflowEngine, place: Path) -> dict[str, Any]:
        """The task of each kind of call."""
        log, marks = str(place / "log.txt"), place / "marks"
        marks.mkdir(exist_ok=True)
        tasks = function_tasks(flow, log, str(marks)) | program_tasks(flow, log, str(marks))
        tasks |= file_functions(flow, log, str(marks))
        return tasks | blocks(flow, tasks)


async def main(flow: WorkflowEngine) -> None:
    """Run the graph under `rhapsody run`; print a line for each result."""
    seed, size, place = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    log = open(place / "log.txt", "ab", buffering=0)  # noqa: ASYNC230, SIM115 - closed below

    def ended(number: int, future: Any) -> None:
        if not future.cancelled() and future.exception() is None:
            if graph[number].kind not in ("service", "falls back", "program falls back"):
                log.write(f"seen {number}\n".encode())
            print(number, flush=True)

    graph = make_graph(seed, size)
    run = Run(graph)
    ends = await run.to_its_end(flow, place, ended)
    log.close()
    report = {"ends": list(ends.items()), "cancelled": sorted(run.cancelled)}
    (place / "ends.json").write_text(json.dumps(report))
