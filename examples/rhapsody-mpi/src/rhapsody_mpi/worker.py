"""What a worker process does with one task. Knows nothing of MPI: bytes come, bytes go."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import platform
import time
import traceback
from collections.abc import Coroutine, Iterator
from typing import Any

import cloudpickle  # type: ignore[import-untyped]

from rhapsody.backends.base import Session
from rhapsody.backends.programs import LocalPrograms
from rhapsody.context import TaskContext, task_context
from rhapsody.data import make_sandbox
from rhapsody.errors import TaskFailedError
from rhapsody.task import TaskDescription, is_async

LOOK = 0.2
"""Seconds between two looks whether a coroutine or a program is to stop."""


def work(pickled: bytes, stop: str) -> bytes:
    """Runs a task to its end.

    Args:
        pickled: Its description.
        stop: A file that is made when the task is to stop.

    Returns:
        What the description gets in addition, pickled: the outcome, and who had it.
    """
    task: TaskDescription = cloudpickle.loads(pickled)
    outcome: dict[str, Any] = {"worker": f"{platform.node()}/{os.getpid()}"}
    try:
        with _environment(task):
            run = _run_program if task["function"] is None else _run_function
            run(task, stop, outcome)
        pickled = cloudpickle.dumps(outcome)
        cloudpickle.loads(pickled)
    except BaseException as error:  # whatever a task raises is its outcome
        outcome.pop("return_value", None)
        outcome["exception"] = _portable(error)
        pickled = cloudpickle.dumps(outcome)
    return pickled


@contextlib.contextmanager
def _environment(task: TaskDescription) -> Iterator[None]:
    """Adds the task's variables: a worker has one task at a time."""
    before = dict(os.environ)
    os.environ.update(task.get("environment", {}))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class _Context(TaskContext):
    """What a function can know of itself; whether it is to stop is looked up each time."""

    __slots__ = ("stop",)
    stop: str

    @property
    def cancelled(self) -> bool:
        """Whether somebody cancelled the task."""
        return os.path.exists(self.stop)


def _run_function(task: TaskDescription, stop: str, outcome: dict[str, Any]) -> None:
    function, streams = task["function"], (io.StringIO(), io.StringIO())
    assert function is not None
    if "sandbox" in task:
        make_sandbox(task["sandbox"])
    context = _Context(
        uid=task["uid"],
        name=task["name"],
        attempt=task.get("attempt", 1),
        sandbox=task.get("sandbox"),
        deadline=time.time() + task["timeout"] if "timeout" in task else None,
    )
    context.stop = stop
    try:
        with (
            task_context(context),
            contextlib.redirect_stdout(streams[0]),
            contextlib.redirect_stderr(streams[1]),
        ):
            value = function(*task["args"], **task["kwargs"])
            if is_async(function):
                value = asyncio.run(_until_stopped(value, stop))
            outcome["return_value"] = value
    finally:
        if task.get("capture", True) is not False:
            outcome["stdout"], outcome["stderr"] = (stream.getvalue() for stream in streams)


class _Programs(LocalPrograms):
    """Core's way to run a program on the machine one is on."""

    def __init__(self) -> None:
        self.session = Session()


def _run_program(task: TaskDescription, stop: str, outcome: dict[str, Any]) -> None:
    done = asyncio.run(_until_stopped(_Programs().run_program(task), stop))
    outcome["exit_code"], outcome["stdout"], outcome["stderr"] = done


async def _until_stopped(coroutine: Coroutine[Any, Any, Any], stop: str) -> Any:
    running = asyncio.ensure_future(coroutine)
    while not (await asyncio.wait([running], timeout=LOOK))[0]:
        if os.path.exists(stop):  # noqa: ASYNC240 - the worker has nothing else to do
            running.cancel()
    return await running


def _portable(error: BaseException) -> BaseException:
    """The error with its traceback as a note, or its text where it cannot travel."""
    text = "".join(traceback.format_exception(error))
    with contextlib.suppress(Exception):  # whatever pickling it raises
        error.add_note(f"on the worker:\n{text}")
        travelled = cloudpickle.loads(cloudpickle.dumps(error))
        if type(travelled) is type(error):
            return error
    return TaskFailedError(f"{type(error).__name__}: {error}", stderr=text)
