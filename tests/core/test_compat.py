"""Names kept for code that calls them: each works, and none polls."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import rhapsody
from rhapsody import NoopExecutionBackend, TasksMainStates, WorkflowEngine
from tests._support.scripted import Inline, Scripted, in_thread, turns, until, within

pytestmark = pytest.mark.asyncio


def future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


async def test_run_returns_at_shutdown_and_the_engine_runs_without_it() -> None:
    flow = await WorkflowEngine.create(Inline())

    @flow.function_task
    def plus(x: int) -> int:
        return x + 1

    assert await within(plus(1)) == 2
    running = [asyncio.create_task(flow.run()) for _ in range(2)]
    assert await within(plus(plus(1))) == 3
    await turns()
    assert not any(task.done() for task in running)
    await within(flow.shutdown())
    await within(asyncio.gather(*running))
    await within(flow.run())


async def test_cancelling_run_leaves_the_engine_alone() -> None:
    async with WorkflowEngine.create(Inline()) as flow:

        @flow.function_task
        def plus(x: int) -> int:
            return x + 1

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(flow.run(), 0.01)
        assert await within(plus(1)) == 2
        again = asyncio.create_task(flow.run())
        await turns()
        assert not again.done()
    await within(again)


async def test_submit_flushes_what_is_ready() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part(x: Any = None) -> Any: ...

        first = part()
        part(first)
        assert backend.tasks == []
        await within(flow.submit())
        assert [task["uid"].split(".")[-2] for task in backend.tasks] == ["000001"]
        await within(flow.submit())
        assert len(backend.tasks) == 1
        backend.gate.clear()
        part()
        submitting = asyncio.create_task(flow.submit())
        await until(lambda: len(backend.tasks) == 2)
        part()
        await turns()
        assert not submitting.done(), "the backend has not taken them yet"
        backend.gate.set()
        await within(submitting)
        assert len(backend.tasks) == 3
        await flow.shutdown()


@pytest.mark.parametrize("synchronous", [False, True])
async def test_execute_block_runs_a_function_as_a_block(synchronous: bool) -> None:
    async with WorkflowEngine.create(Inline()) as flow:

        @flow.function_task
        def plus(x: int, y: int) -> int:
            return x + y

        async def asynchronous_body(x: int, *, y: int) -> int:
            return await plus(x, y)

        def synchronous_body(x: int, *, y: int) -> int:
            return rhapsody.wait(plus(x, y))

        body = synchronous_body if synchronous else asynchronous_body
        result = future()
        await within(flow.execute_block(result, body, 1, y=2))
        assert await within(result) == 3


async def test_execute_block_gives_the_future_what_the_function_raises() -> None:
    async with WorkflowEngine.create(Inline()) as flow:

        async def body() -> None:
            raise LookupError("own")

        result = future()
        await within(flow.execute_block(result, body))
        with pytest.raises(LookupError, match="own"):
            await within(result)


async def test_cancelling_the_future_of_execute_block_cancels_the_block() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part() -> Any: ...

        async def body() -> Any:
            return await part()

        result = future()
        executing = asyncio.create_task(flow.execute_block(result, body))
        task = await backend.next()
        result.cancel()
        await within(asyncio.wait([executing]))
        await turns()
        assert result.cancelled()
        assert backend.stops == [task["uid"]]


@pytest.mark.parametrize("threaded", [False, True])
async def test_task_callbacks_takes_updates(threaded: bool) -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part() -> Any: ...

        result = part()
        task = await backend.next()
        task["return_value"] = 42
        if threaded:
            in_thread(flow.task_callbacks, task, "DONE")
        else:
            flow.task_callbacks(task, "RUNNING", service_callback=None)
            flow.task_callbacks(task, "DONE")
        assert await within(result) == 42


async def test_task_callbacks_takes_an_object_with_as_dict() -> None:
    class Foreign:
        def __init__(self, task: Any) -> None:
            self.task = task

        def as_dict(self) -> dict[str, Any]:
            return dict(self.task)

    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part() -> Any: ...

        result = part()
        task = await backend.next()
        flow.task_callbacks(Foreign(task), TasksMainStates.RUNNING)
        await turns()
        assert result.state is TasksMainStates.RUNNING
        task["return_value"] = 42
        flow.task_callbacks(Foreign(task), TasksMainStates.DONE)
        assert await within(result) == 42


async def test_task_callbacks_takes_the_uid_that_components_shows() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part() -> Any: ...

        results = [part(), part()]
        await backend.next()
        one, two = flow.components
        flow.task_callbacks({"uid": one}, "RUNNING")
        assert results[0].state is TasksMainStates.RUNNING
        flow.task_callbacks({"uid": one, "return_value": 42}, "DONE")
        assert await within(results[0]) == 42
        flow.task_callbacks(two, TasksMainStates.CANCELED)
        await within(asyncio.wait([results[1]]))
        assert results[1].cancelled()
        assert flow.stats.unknown == flow.stats.late == 0


async def test_task_callbacks_takes_the_uid_of_a_task_that_was_called_just_now() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part() -> Any: ...

        result = part()
        (uid,) = flow.components
        flow.task_callbacks({"uid": uid}, "RUNNING")
        flow.task_callbacks({"uid": uid, "return_value": 42}, "DONE")
        assert await within(result) == 42
        await backend.next()
        assert flow.stats.unknown == flow.stats.late == 0


@pytest.mark.parametrize("name", ["success", "failure", "cancellation"])
async def test_reports_for_a_finished_future_are_logged(name: str, caplog: Any) -> None:
    async with WorkflowEngine.create(Scripted()) as flow:
        (settled := future()).set_result(1)
        for each in (f"handle_task_{name}", f"handle_component_{name}"):
            getattr(flow, each)({"uid": "task.000007"}, settled)
        assert [record.getMessage() for record in caplog.records] == [
            f"task task.000007 was reported as {state}, but its future is already done"
            for state in 2 * [{"s": "DONE", "f": "FAILED", "c": "CANCELED"}[name[0]]]
        ]
        assert settled.result() == 1


async def test_task_callbacks_refuses_what_names_no_task_or_no_state() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part(x: Any = None) -> Any: ...

        result = part()
        part(result)
        task = await backend.next()
        for unknown in ("task.000002", "task.000099", f"{flow.uid}.task.000099.1", "other"):
            with pytest.raises(ValueError, match="no backend has a task with the uid"):
                flow.task_callbacks({"uid": unknown}, "DONE")
        no_tasks: list[Any] = [3, None, {"uid": []}, {}]
        for wrong in no_tasks:
            with pytest.raises(TypeError, match="task"):
                flow.task_callbacks(wrong, "DONE")
        for state in (3, None, ["DONE"]):
            with pytest.raises(TypeError, match="state must be"):
                flow.task_callbacks(task, state)
        with pytest.raises(ValueError, match="no native state 'ENDED'"):
            flow.task_callbacks(task, "ENDED")
        assert not result.done()
        backend.done(task, 1)
        assert await within(result) == 1
        flow.task_callbacks(task, "DONE")
        assert flow.stats.late == 1, "a backend may report twice"
        backend.done(await backend.next(), 2)


@pytest.mark.parametrize(
    ("left", "result"),
    [
        ({"return_value": 42}, 42),
        ({"return_value": None}, None),
        ({"stdout": "out\n", "exit_code": 0}, "out\n"),
    ],
)
async def test_handle_task_success_sets_the_result(left: dict[str, Any], result: Any) -> None:
    async with WorkflowEngine.create(Scripted()) as flow:
        flow.handle_task_success({"uid": "x", "name": "x", **left}, settled := future())
        assert settled.done()
        assert await settled == result


async def test_handle_task_failure_sets_the_exception_of_the_task() -> None:
    async with WorkflowEngine.create(Scripted()) as flow:
        own = LookupError("own")
        flow.handle_task_failure({"uid": "x", "exception": own}, one := future())
        assert one.exception() is own
        flow.handle_task_failure({"uid": "x", "stderr": "the last words"}, two := future())
        assert isinstance(two.exception(), RuntimeError)
        assert "the last words" in str(two.exception())


async def test_handle_task_failure_prefers_its_argument() -> None:
    async with WorkflowEngine.create(Scripted()) as flow:
        task = {"uid": "x", "exception": LookupError("own"), "stderr": "words"}
        flow.handle_task_failure(task, one := future(), "told so")
        assert type(one.exception()) is RuntimeError
        assert "told so" in str(one.exception())
        given = KeyError("given")
        flow.handle_task_failure(task, two := future(), override_error_message=given)
        assert two.exception() is given


async def test_handle_task_cancellation_cancels() -> None:
    async with WorkflowEngine.create(Scripted()) as flow:
        assert flow.handle_task_cancellation({"uid": "x"}, settled := future()) is True
        assert settled.cancelled()
        assert flow.handle_task_cancellation({"uid": "x"}, settled) is False


async def test_the_handlers_leave_a_settled_future_as_it_is() -> None:
    async with WorkflowEngine.create(Scripted()) as flow:
        task = {"uid": "x", "return_value": 2, "exception": LookupError("own")}
        settled = future()
        flow.handle_task_success(task, settled)
        flow.handle_task_failure(task, settled)
        flow.handle_task_cancellation(task, settled)
        flow.handle_task_success({"uid": "x", "return_value": 3}, settled)
        assert await settled == 2


async def test_cancelling_a_task_by_its_handler_says_whether_it_was() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part() -> Any: ...

        result = part()
        task = await backend.next()
        assert flow.handle_task_cancellation(task, result) is True
        await within(asyncio.wait([result]))
        assert result.cancelled()
        assert flow.handle_task_cancellation(task, result) is False


async def test_a_callback_may_be_registered_by_either_name() -> None:
    async with await NoopExecutionBackend() as backend:
        told: list[str] = []
        named: Any = backend
        named.register_callback(callback=lambda task, state: told.append("callback"))
        backend.register_callback(func=lambda task, state: told.append("func"))
        backend.task_state_cb({"uid": "x"}, TasksMainStates.RUNNING)
        assert told == ["callback", "func"]
        for wrong in ({}, {"func": None}, {"callback": 5}):
            with pytest.raises(TypeError, match="register_callback: func must be callable"):
                named.register_callback(**wrong)


async def test_a_handler_may_settle_a_tasks_own_future() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part(x: Any = None) -> Any: ...

        first = part()
        second = part(first)
        task = await backend.next()
        flow.handle_task_success({**task, "return_value": 42}, first)
        assert await within(first) == 42
        backend.done(task, "later")
        follower = await backend.next()
        assert follower["args"] == (42,)
        backend.done(follower, 1)
        assert await within(second) == 1


async def test_the_old_way_of_using_them_together_works() -> None:
    flow = await WorkflowEngine.create(Inline())
    running = asyncio.create_task(flow.run())
    submitting = asyncio.create_task(flow.submit())

    @flow.function_task
    async def plus(x: int) -> int:
        return x + 1

    @flow.block
    async def block(x: int) -> int:
        return await plus(await plus(x))

    assert await within(asyncio.gather(*[block(i) for i in range(3)])) == [2, 3, 4]
    await within(submitting)
    await within(flow.shutdown(skip_execution_backend=False))
    await within(running)


async def test_handlers_have_the_names_of_the_sibling_project_too() -> None:
    async with WorkflowEngine.create(Scripted()) as flow:
        done, failed, cancelled = future(), future(), future()
        flow.handle_component_success({"uid": "x", "return_value": 42}, done)
        flow.handle_component_failure({"uid": "x"}, failed, "told so")
        assert flow.handle_component_cancellation({"uid": "x"}, cancelled) is True
        assert await done == 42
        assert str(failed.exception()) == "told so"
        assert cancelled.cancelled()
