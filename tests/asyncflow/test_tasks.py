# mypy: allow-untyped-decorators
"""Sessions and tasks of rhapsody-py on Rhapsody's engine."""

from __future__ import annotations

import asyncio
import copy
import pickle
from pathlib import Path
from typing import Any

import pytest

import rhapsody
from rhapsody import AITask, ComputeTask, TaskExecutionError, TaskValidationError
from rhapsody.api import BaseTask, Session, SessionError
from rhapsody_asyncflow import InferenceBackend
from tests._support.scripted import within

from .test_engine import content
from .test_prompts import Server, server  # noqa: F401 - a fixture

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def backend_named(name: str) -> Any:
    return rhapsody.get_backend(name)


async def double(x: int) -> int:
    return 2 * x


async def started(**options: Any) -> Session:
    return Session(backends=[await backend_named("concurrent")], **options)


async def test_commands_and_functions_run(tmp_path: Path) -> None:
    tasks: list[Any] = [
        ComputeTask(executable="/bin/echo", arguments=["a b", 3]),
        ComputeTask(function=double, args=(2,)),
        ComputeTask(function=max, args=[3, 1], kwargs={"key": abs}),
        {"uid": "mine", "executable": "pwd"},
        ComputeTask(
            executable="echo $COLOR | tr a-z A-Z",
            task_backend_specific_kwargs={"shell": True, "env": {"COLOR": "red"}, "cwd": "/"},
        ),
    ]
    async with await started() as session:
        futures = await session.submit_tasks(tasks)
        assert await within(session.wait_tasks(tasks)) == tasks
        assert [await future for future in futures] == tasks
    assert {task["state"] for task in tasks} == {"DONE"}
    assert tasks[0].stdout == tasks[0].return_value == "a b 3\n"
    assert (tasks[1].return_value, tasks[1].stdout, tasks[1].exit_code) == (4, "4", 0)
    assert tasks[2]["return_value"] == 3
    assert tasks[3]["stdout"] == f"{tmp_path}\n"
    assert tasks[4].stdout == "RED\n"


async def test_failures_are_in_the_task() -> None:
    failed = ComputeTask(executable="sh", arguments=["-c", "echo no >&2; exit 3"])
    raised = ComputeTask(function=int, args=("x",))
    async with await started() as session:
        await session.submit_tasks([failed, raised])
        await within(session.wait_tasks([failed, raised]))
        assert (failed.state, failed.exit_code, failed.stderr) == ("FAILED", 3, "no\n")
        assert isinstance(failed.exception, TaskExecutionError)
        with pytest.raises(TaskExecutionError, match="failed with exit code 3: no"):
            await failed
        with pytest.raises(ValueError, match="invalid literal"):
            await raised


async def test_output_goes_to_files(tmp_path: Path) -> None:
    task = ComputeTask(executable="echo", arguments=["a"], capture_stdio=True)
    async with await started(uid="s", work_dir=tmp_path / "work") as session:
        await session.submit_tasks([task])
        await within(session.wait_tasks([task]))
        assert content(Path(task.stdout)) == "a\n"
        assert Path(task.stdout).is_relative_to(tmp_path / "work" / "s")


async def test_wait_tasks_has_a_timeout_and_close_cancels() -> None:
    slow = ComputeTask(executable="sleep", arguments=["60"])
    session = await started()
    await session.submit_tasks([slow])
    with pytest.raises(TimeoutError, match="0/1 tasks completed"):
        await session.wait_tasks([slow], timeout=0.01)
    await within(session.close())
    await within(asyncio.wait([slow.__dict__["_future"]]))
    assert slow.state == "CANCELED"
    with pytest.raises(SessionError, match="closed"):
        await session.submit_tasks([slow])


async def test_mistakes_are_refused() -> None:
    async with await started() as session:
        with pytest.raises(
            ValueError, match=r"'gpu' requested by task .* Available backends: local"
        ):
            await session.submit_tasks([ComputeTask(executable="true", backend="gpu")])
        with pytest.raises(SessionError, match="have not been submitted"):
            await session.wait_tasks([ComputeTask(executable="true")])
        with pytest.raises(SessionError, match="before the first"):
            session.add_backend(await backend_named("noop"))
        assert await session.submit_tasks([]) == []
        with pytest.raises(NotImplementedError, match="rhapsody report"):
            await session.start_telemetry()
    with pytest.raises(SessionError, match="no backend"):
        await Session().submit_tasks([ComputeTask(executable="true")])
    with pytest.raises(RuntimeError, match="has not been submitted"):
        await ComputeTask(executable="true")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "either 'executable' or 'function'"),
        ({"executable": "a", "function": int}, "not both"),
        ({"executable": 3}, "executable must be a string"),
        ({"executable": "a", "arguments": "b"}, "arguments must be a list"),
        ({"function": int, "args": 3}, "args must be a tuple or list"),
        ({"function": int, "kwargs": 3}, "kwargs must be a dict"),
        ({"function": 3}, "function must be callable"),
        ({"executable": "a", "uid": ""}, "uid must be a non-empty string"),
    ],
)
async def test_fields_are_checked(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(TaskValidationError, match=words):
        ComputeTask(**fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": ""}, "prompt is required"),
        ({"prompt": "a"}, "one of 'model', 'inference_endpoint' and 'backend'"),
        ({"prompt": ["a", 3], "model": "m"}, "a string or list of strings"),
        ({"prompt": "a", "model": "m", "temperature": -1}, "a non-negative number"),
        ({"prompt": "a", "model": "m", "max_tokens": 0}, "a positive integer"),
        ({"prompt": "a", "model": "m", "top_p": 2}, "between 0 and 1"),
        ({"prompt": "a", "model": "m", "top_k": 0.5}, "a positive integer"),
        ({"prompt": "a", "model": "m", "stop_sequences": "x"}, "must be a list"),
    ],
)
async def test_fields_of_prompts_are_checked(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(TaskValidationError, match=words):
        AITask(**fields)


async def test_tasks_are_dicts_and_objects() -> None:
    task = BaseTask.from_dict({"executable": "echo", "color": "red"})
    assert isinstance(task, ComputeTask)
    assert task.color == task["color"] == "red"
    task.color = "blue"
    assert task["color"] == "blue"
    assert "color='blue'" in repr(task)
    with pytest.raises(AttributeError, match="has no attribute 'size'"):
        _ = task.size
    for other in (pickle.loads(pickle.dumps(task)), copy.copy(task)):
        assert other == task
        assert hash(other) == hash(task)
        assert dict(other) == dict(task)
    assert task != ComputeTask(executable="echo")
    with pytest.raises(TaskValidationError, match="to determine its type"):
        BaseTask.from_dict({"uid": "x"})


async def test_prompts_are_answered(server: Server) -> None:  # noqa: F811 - the fixture
    tasks = [
        AITask(prompt="abc", inference_endpoint=server.url, temperature=0.5),
        AITask(prompt=["a", "bb"], model="tiny", inference_endpoint=server.url),
    ]
    async with Session() as session:
        await session.submit_tasks(tasks)
        await within(session.wait_tasks(tasks))
    assert [task.response for task in tasks] == ["3", ["1", "2"]]
    assert [each.get("temperature") for _, each in server.requests].count(0.5) == 1
    ai = InferenceBackend(server.url, name="ai")
    task = BaseTask.from_dict({"prompt": "abcd", "backend": "ai"})
    async with Session([await backend_named("local"), ai]) as session:
        await session.submit_tasks([task])
        assert (await within(task.__dict__["_future"])).response == "4"
