"""Tests of the context of a running task."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest

from rhapsody.context import TaskContext, current_task, task_context


def test_outside_a_task_there_is_no_current_one() -> None:
    with pytest.raises(RuntimeError, match="outside a task"):
        current_task()


def test_inside_a_task_it_says_what_the_task_is_and_whether_to_stop() -> None:
    context = TaskContext(uid="e.task.000001.2", name="t", attempt=2, sandbox="/box", deadline=9.5)
    with task_context(context):
        task = current_task()
        assert (task.uid, task.name, task.attempt) == ("e.task.000001.2", "t", 2)
        assert (task.sandbox, task.deadline) == ("/box", 9.5)
        assert task.cancelled is False
        other = threading.Thread(target=task.request_cancel)
        other.start()
        other.join(timeout=10)
        assert task.cancelled is True
        with task_context(TaskContext(uid="inner", name="i")):
            assert current_task().uid == "inner"
        assert current_task() is context
    with pytest.raises(RuntimeError):
        current_task()


def test_the_context_is_left_when_the_task_raises() -> None:
    with pytest.raises(KeyError), task_context(TaskContext(uid="u", name="n")):
        raise KeyError("x")
    with pytest.raises(RuntimeError):
        current_task()


@pytest.mark.asyncio
async def test_tasks_on_one_loop_each_see_themselves() -> None:
    gate = asyncio.Event()

    async def body(uid: str) -> str:
        with task_context(TaskContext(uid=uid, name="n")):
            await gate.wait()
            return current_task().uid

    runs = [asyncio.create_task(body(f"u.{n}")) for n in range(5)]
    gate.set()
    async with asyncio.timeout(10):
        assert await asyncio.gather(*runs) == [f"u.{n}" for n in range(5)]


def test_a_thread_sees_the_task_only_in_a_copy_of_its_context() -> None:
    seen: list[object] = []

    def look() -> None:
        try:
            seen.append(current_task().uid)
        except RuntimeError:
            seen.append(None)

    with task_context(TaskContext(uid="u", name="n")):
        copied = contextvars.copy_context()
        for target in (look, lambda: copied.run(look)):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join(timeout=10)
    assert seen[-1] == "u"
