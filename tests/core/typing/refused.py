"""Mistakes that type checkers find: each ignored error below must be one.

Checked by `nox -s types`, not run.
"""

from __future__ import annotations

from collections.abc import Sequence

from rhapsody import TaskFuture, WorkflowEngine, run, wait
from rhapsody.plugins import CommandOption, ObservedEngine, Summary, TaskEvent, hooks


async def mistakes(flow: WorkflowEngine, number: TaskFuture[int]) -> None:
    @flow.function_task
    async def add(x: int, y: int = 1) -> int:
        return x + y

    @flow.executable_task
    def show(x: int) -> str:
        return f"echo {x}"

    text: str = await add(1)  # type: ignore[assignment]
    length: int = await show(1)  # type: ignore[assignment]
    print(text, length)
    (await add(1)).append(2)  # type: ignore[attr-defined]

    @flow.executable_task  # type: ignore[arg-type]
    def no_command() -> None: ...

    @flow.executable_task  # type: ignore[arg-type]
    def not_a_command() -> int:
        return 3

    flow.function_task(retires=2)  # type: ignore[call-overload]
    flow.function_task(service="yes")  # type: ignore[call-overload]
    flow.function_task("echo")  # type: ignore[call-overload]
    flow.block(42)  # type: ignore[call-overload]
    add.options(retires=2)  # type: ignore[call-arg]
    add.options(timeout=[60])  # type: ignore[arg-type]
    flow.map(print, [1])  # type: ignore[arg-type]
    wait(5)  # type: ignore[arg-type]
    number.uid = "x"  # type: ignore[misc]
    flow.uid = "x"  # type: ignore[misc]
    WorkflowEngine.create(max_pendign=3)  # type: ignore[call-arg]
    WorkflowEngine.create(keep_sandboxes="some")  # type: ignore[arg-type]
    run(len)  # type: ignore[arg-type]
    run(print, max_pendign=3)  # type: ignore[call-overload]
    run(print, keep_sandboxes="some")  # type: ignore[call-overload]


@hooks.run_options  # type: ignore[arg-type]
def rhapsody_run_options() -> Sequence[str]:
    return ["notify_url"]


@hooks.task_events  # type: ignore[arg-type]
def rhapsody_task_events(engine: ObservedEngine, event: Sequence[TaskEvent]) -> None: ...


class Observer:
    @hooks.task_events  # type: ignore[arg-type]
    def wrong_name(self, engine: ObservedEngine, event: Sequence[TaskEvent]) -> None: ...

    @hooks.task_events  # type: ignore[arg-type]
    def no_engine(self, events: Sequence[TaskEvent]) -> None: ...

    @hooks.task_events  # type: ignore[arg-type]
    def of_strings(self, engine: ObservedEngine, events: Sequence[str]) -> None: ...

    @hooks.task_events  # type: ignore[arg-type]
    async def as_coroutine(self, engine: ObservedEngine, events: Sequence[TaskEvent]) -> None: ...

    @hooks.workflow_finished  # type: ignore[arg-type]
    def with_options(self, engine: ObservedEngine, options: Sequence[CommandOption]) -> None: ...

    @hooks.workflow_finished  # type: ignore[arg-type]
    def with_a_result(self, engine: ObservedEngine, summary: Summary) -> bool:
        return True

    @hooks.workflow_finished(trylats=True)  # type: ignore[call-overload, untyped-decorator]
    def last(self, engine: ObservedEngine, summary: Summary) -> None: ...
