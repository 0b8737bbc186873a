"""Tools for tests of backends and workflows: a driver, an event recorder, a capability table.

The conformance kit uses the driver, which supports neither dependencies nor retries. Nothing in
this module needs pytest.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import sys
import tempfile
import threading
import uuid
import venv
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

from rhapsody import TaskDescription, TasksMainStates, hookimpl
from rhapsody.backends import Capabilities
from rhapsody.plugins import AttemptId, TaskCall, TaskEvent, TaskId

if TYPE_CHECKING:
    from rhapsody import WorkflowEngine

_TERMINAL = (TasksMainStates.DONE, TasksMainStates.FAILED, TasksMainStates.CANCELED)


class Fault(NamedTuple):
    """Report that breaks a rule of the contract.

    Attributes:
        rule: The rule that was broken.
        detail: A description of the report.
    """

    rule: str
    detail: str


@dataclass(frozen=True, slots=True)
class Report:
    """One call of the driver's state callback.

    Attributes:
        uid: The task's uid.
        native: The native state.
        state: The canonical state, or `None` if the backend's mapper does not contain `native`.
        thread: The identifier of the calling thread.
        during_submit: True if the call of `submit_tasks` with this task had not returned.
        task: A shallow copy of the task's description.
    """

    uid: str
    native: Any
    state: TasksMainStates | None
    thread: int
    during_submit: bool
    task: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Finished:
    """Finished task, as the backend has reported it.

    Attributes:
        uid: The task's uid.
        state: The canonical state in which the task ended.
        task: A shallow copy of the task's description, with the results.
    """

    uid: str
    state: TasksMainStates
    task: dict[str, Any]

    @property
    def value(self) -> Any:
        """The return value of a function, or `None` if the backend reported none."""
        return self.task.get("return_value")

    @property
    def error(self) -> BaseException | None:
        """The exception of a failed task, or `None` if the backend reported none."""
        error = self.task.get("exception")
        return error if isinstance(error, BaseException) else None

    @property
    def stdout(self) -> str | None:
        """The standard output of the task, or `None` if the backend reported none."""
        return self.task.get("stdout")

    @property
    def stderr(self) -> str | None:
        """The standard error of the task, or `None` if the backend reported none."""
        return self.task.get("stderr")

    @property
    def exit_code(self) -> int | None:
        """The exit code of an executable, or `None` if the backend reported none."""
        return self.task.get("exit_code")

    def __str__(self) -> str:
        keys = ("return_value", "exception", "exit_code", "stdout", "stderr")
        shown = (f"{key}={_short(self.task[key])}" for key in keys if key in self.task)
        words = ", ".join(shown)
        return f"task {self.task.get('name')!r} ended {self.state} with {words or 'no results'}"


@dataclass(slots=True)
class _Followed:
    """State of one task that a driver has submitted."""

    description: TaskDescription
    reports: list[Report] = field(default_factory=list)
    finished: Finished | None = None
    ready: Future[Any] | None = None


class Driver:
    """Driver of a backend: calls the backend in the same way as the engine.

    `async with Driver(backend) as driver` starts the backend if necessary and registers a callback.
    On exit, the callback is unregistered, and the backend keeps running. The driver's methods wait
    without a time limit; use `asyncio.timeout` to set one.

    Args:
        backend: A backend, started or not.
        work_dir: The directory for sandboxes. Default: a temporary directory, which is removed on
            exit.

    Attributes:
        backend: The backend, started on entry.
        work_dir: The directory for sandboxes.
        reports: All reports of tasks of this driver, in order.
        faults: The reports that break a rule of the contract.
        strangers: The uids of reported tasks that this driver did not submit.
    """

    def __init__(
        self,
        backend: Any,
        *,
        work_dir: Path | str | None = None,
    ) -> None:
        self.backend: Any = backend
        self.reports: list[Report] = []
        self.faults: list[Fault] = []
        self.strangers: list[str] = []
        self._own_dir = work_dir is None
        self.work_dir: Path = Path(work_dir if work_dir is not None else ".")
        # Contains capital letters and punctuation, so that a changed uid is detected.
        self._uid = f"Driver-{uuid.uuid4().hex[:8]}_K"
        self._numbers = itertools.count(1)
        self._tasks: dict[str, _Followed] = {}
        self._submitting: set[str] = set()
        self._one_submission = asyncio.Lock()
        self._inbox: deque[tuple[Report, Any]] = deque()
        self._changed = asyncio.Event()
        self._thread: int
        self._loop: asyncio.AbstractEventLoop
        self._states: Any

    async def __aenter__(self) -> Self:
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self.backend = await started(self.backend)
        self._states = self.backend.get_task_states_map()
        if self._own_dir:
            self.work_dir = Path(tempfile.mkdtemp(prefix="rhapsody-driver-"))
        self.backend.register_callback(self._report)
        return self

    async def __aexit__(self, *error: object) -> None:
        unregister = getattr(self.backend, "unregister_callback", None)
        if unregister is not None:
            unregister(self._report)
        if self._own_dir:
            shutil.rmtree(self.work_dir, ignore_errors=True)

    # Descriptions.

    def describe(self, name: str, /, **keys: Any) -> TaskDescription:
        """Return a description with a new uid and the given keys."""
        number = next(self._numbers)
        description = {
            "uid": str(AttemptId(TaskId(self._uid, number), 1)),
            "name": name,
            "function": None,
            "executable": None,
            "args": (),
            "kwargs": {},
            "is_service": False,
            "task_backend_specific_kwargs": {},
            "metadata": {"dependencies": [], "input_files": [], "output_files": []},
            "attempt": 1,
            **keys,
        }
        return cast("TaskDescription", description)

    def call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskDescription:
        """Describe a call of a function. The caller may add keys such as `resources`."""
        name = getattr(function, "__name__", type(function).__name__)
        return self.describe(name, function=function, args=args, kwargs=kwargs)

    def command(self, command: str | Sequence[str], /, **keys: Any) -> TaskDescription:
        """Describe a shell command (a string) or a program (a list)."""
        if not isinstance(command, str):
            keys["arguments"] = list(command[1:])
            command = command[0]
        return self.with_sandbox(self.describe("command", executable=command, **keys))

    def service(self, command: str | Sequence[str], /, **keys: Any) -> TaskDescription:
        """Describe a command that runs until it is canceled."""
        return self.command(command, is_service=True, **keys)

    def with_sandbox(self, task: TaskDescription) -> TaskDescription:
        """Add a sandbox to a description, as the engine does for every executable."""
        task.setdefault("sandbox", os.fspath(self.work_dir / task["uid"]))
        return task

    # Driving.

    async def submit(self, *tasks: TaskDescription) -> None:
        """Submit the tasks as one batch."""
        await self.submit_batch(list(tasks))

    async def submit_batch(self, tasks: list[TaskDescription]) -> None:
        """Submit tasks as one batch. The backend receives this list itself, not a copy."""
        async with self._one_submission:
            self._tasks.update({task["uid"]: _Followed(task) for task in tasks})
            self._submitting.update(task["uid"] for task in tasks)
            try:
                await self.backend.submit_tasks(tasks)
            finally:
                self._submitting.clear()

    async def run(self, *tasks: TaskDescription) -> list[Finished]:
        """Submit the tasks, wait until all have ended, and return the finished tasks in order."""
        await self.submit(*tasks)
        return [await self.finished(task) for task in tasks]

    async def run_one(self, task: TaskDescription) -> Finished:
        """Submit one task, wait until it has ended, and return the finished task."""
        return (await self.run(task))[0]

    async def finished(self, task: TaskDescription) -> Finished:
        """Wait until the task has ended, and return the finished task."""
        followed = self._tasks[task["uid"]]
        while followed.finished is None:
            await self._change()
        return followed.finished

    async def running(self, task: TaskDescription) -> bool:
        """Wait until the task is reported RUNNING.

        Returns:
            `True` if RUNNING was reported, `False` if the task ended without such a report.
        """
        while TasksMainStates.RUNNING not in self.history(task):
            if self._tasks[task["uid"]].finished is not None:
                return False
            await self._change()
        return True

    async def ready(self, task: TaskDescription) -> Any:
        """Wait until a service is ready.

        Returns:
            The value with which the service became ready.

        Raises:
            RuntimeError: The service ended before it was ready. If the backend reported an
                exception for the service, that exception is raised instead.
        """
        followed = self._tasks[task["uid"]]
        while followed.ready is None or not followed.ready.done():
            if followed.finished is not None:
                raise followed.finished.error or RuntimeError(str(followed.finished))
            await self._change()
        return followed.ready.result()

    async def cancel(self, task: TaskDescription | str) -> Any:
        """Call the backend's `cancel_task`, and return its result."""
        return await self.backend.cancel_task(task if isinstance(task, str) else task["uid"])

    # Reports received so far.

    def history(self, task: TaskDescription) -> list[TasksMainStates | None]:
        """Return the canonical states reported for the task, in order."""
        return [report.state for report in self.of(task)]

    def of(self, task: TaskDescription) -> list[Report]:
        """Return the reports of the task, in order."""
        return list(self._tasks[task["uid"]].reports)

    def uids(self) -> set[str]:
        """Return the uids of all submitted tasks."""
        return set(self._tasks)

    def unfinished(self) -> list[str]:
        """Return a description of each task that has not ended, with its reported states."""
        return [
            f"{followed.description['name']} "
            f"({', '.join(str(report.native) for report in followed.reports) or 'no report'})"
            for followed in self._tasks.values()
            if followed.finished is None
        ]

    # The callback.

    def _report(self, task: Any, state: Any, service_callback: Any = None) -> None:
        """Receive a report on any thread, and process it on the loop's thread."""
        content = task.as_dict() if hasattr(task, "as_dict") else task
        if not isinstance(content, dict) or "uid" not in content:
            self.faults.append(
                Fault("the callback receives the task", f"it received {_short(task)}")
            )
            return
        report = Report(
            uid=str(content["uid"]),
            native=state,
            state=self._canonical(content, state),
            thread=threading.get_ident(),
            during_submit=content["uid"] in self._submitting,
            task=dict(content),
        )
        self._inbox.append((report, service_callback))
        if report.thread == self._thread:
            self._process_inbox()
        else:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._process_inbox)

    def _canonical(self, task: dict[str, Any], state: Any) -> TasksMainStates | None:
        try:
            return TasksMainStates(self._states.to_main_state(state))
        except ValueError as error:
            rule = "every reported state is known to get_task_states_map()"
            detail = f"task {task.get('name')!r} was reported {state!r}: {error}"
            self.faults.append(Fault(rule, detail))
            return None

    def _process_inbox(self) -> None:
        while self._inbox:
            self._process(*self._inbox.popleft())

    def _process(self, report: Report, service_callback: Any) -> None:
        followed = self._tasks.get(report.uid)
        if followed is None:
            self.strangers.append(report.uid)
            return
        self._judge(followed, report)
        followed.reports.append(report)
        self.reports.append(report)
        if report.state is TasksMainStates.RUNNING and followed.ready is None:
            followed.ready = Future()  # the backend may set it from any thread
            followed.ready.add_done_callback(self._readiness_known)
            if service_callback is None:
                followed.ready.set_result(None)
            else:
                service_callback(followed.ready, report.task, report.native)
        self._wake()

    def _judge(self, followed: _Followed, report: Report) -> None:
        before = [str(r.native) for r in followed.reports if r.state in _TERMINAL]
        task = f"task {followed.description['name']!r}"
        if before and report.state in _TERMINAL:
            rule = "exactly one terminal callback per task"
            detail = f"{task} was reported {[*before, str(report.native)]}"
            self.faults.append(Fault(rule, detail))
        elif before:
            rule = "nothing is reported after a task's terminal state"
            detail = f"{task} was reported {report.native} after {before[0]}"
            self.faults.append(Fault(rule, detail))
        elif report.state in _TERMINAL:
            followed.finished = Finished(report.uid, report.state, report.task)

    def _readiness_known(self, _: object) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _change(self) -> None:
        """Wait until the next report arrives or a service becomes ready."""
        await self._changed.wait()


async def started(backend: Any) -> Any:
    """Start a backend if it is awaitable, as the engine does, and return it."""
    return await backend if hasattr(type(backend), "__await__") else backend


def _short(value: object, limit: int = 200) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 20]}... ({len(text)} characters)"


class EventRecorder:
    """Observer that records all events: `WorkflowEngine.create(observers=[recorder])`.

    Attributes:
        calls: All calls, in order.
        events: All events, in order.
        batches: The same events, in the batches in which they were delivered.
        started: The engines that have started.
        finished: The engines that have finished, with their summaries.
    """

    def __init__(self) -> None:
        self.calls: list[TaskCall] = []
        self.events: list[TaskEvent] = []
        self.batches: list[tuple[TaskEvent, ...]] = []
        self.started: list[WorkflowEngine] = []
        self.finished: list[tuple[WorkflowEngine, Any]] = []

    @hookimpl
    def rhapsody_workflow_started(self, engine: WorkflowEngine) -> None:
        """Record the engine."""
        self.started.append(engine)

    @hookimpl
    def rhapsody_task_calls(self, engine: WorkflowEngine, calls: Sequence[TaskCall]) -> None:
        """Record the calls."""
        self.calls.extend(calls)

    @hookimpl
    def rhapsody_task_events(self, engine: WorkflowEngine, events: Sequence[TaskEvent]) -> None:
        """Record the batch and its events."""
        self.batches.append(tuple(events))
        self.events.extend(events)

    @hookimpl
    def rhapsody_workflow_finished(self, engine: WorkflowEngine, summary: Any) -> None:
        """Record the engine and its summary."""
        self.finished.append((engine, summary))

    def states(self, task: Any) -> list[TasksMainStates]:
        """Return the states that a task has entered, in order.

        Args:
            task: A uid, a name, or a future.
        """
        return [event.state for event in self.of(task)]

    def of(self, task: Any) -> list[TaskEvent]:
        """Return the events of one task, or of all tasks with a given name, in order.

        Args:
            task: A uid, a name, or a future.
        """
        key = getattr(task, "uid", task)
        return [event for event in self.events if key in (event.uid, event.name)]


def python_environment(path: Path) -> Path:
    """Create a virtual environment in which the modules of this process can be imported.

    Only in this environment, the module `rhapsody_kit_only_here` with a variable `PLACE` exists.

    Returns:
        The path.
    """
    venv.create(path, symlinks=True)
    (packages,) = path.glob("lib/python*/site-packages")
    places = [os.path.abspath(place) for place in sys.path if os.path.isdir(place)]
    (packages / "rhapsody-kit.pth").write_text("\n".join(places))
    (packages / "rhapsody_kit_only_here.py").write_text("PLACE = __file__\n")
    return path


_MEANINGS = {
    "functions": "coroutine functions",
    "sync_functions": "ordinary functions",
    "mpi_functions": "functions on several MPI ranks",
    "executables": "shell commands and programs",
    "services": "executables as services",
    "function_services": "functions as services",
    "function_environments": "functions in containers and environments",
    "cancel_functions": "cancels ordinary functions",
    "cancel_async_functions": "cancels coroutine functions",
    "cancel_executables": "cancels executables",
    "cancel_services": "cancels services",
    "sandboxes": "a directory for each executable",
    "cwd": "runs executables in a given directory",
    "files": "links files into sandboxes",
    "shared_file_system": "shares the engine's file system",
    "copies_files_out": "copies files out of sandboxes",
    "task_settings": "keys of `task_description`",
    "result_settings": "keys that may change results",
    "resources": "supported resources",
    "binds": "enforced resources",
    "captures_output": "captures the output of functions",
    "reports_running": "reports when a task starts",
    "worker_values": "reports when worker values are built",
    "unfinished_dependencies": "accepts unfinished tasks as arguments",
}


def capability_table(backend: Any) -> str:
    """Return a backend's capabilities as a Markdown table, for its README.

    Args:
        backend: A backend, its class, or a `Capabilities`.

    Raises:
        TypeError: `backend` is none of these objects.
    """
    capabilities = (
        backend if isinstance(backend, Capabilities) else getattr(backend, "capabilities", None)
    )
    if not isinstance(capabilities, Capabilities):
        raise TypeError(f"backend must have `capabilities`, got {backend!r}")
    rows = [("capability", "meaning", "declared"), ("---", "---", "---")]
    for key, value in capabilities.as_dict().items():
        if key == "result_settings" and value is None:
            value = ["all"]
        rows.append((f"`{key}`", _MEANINGS.get(key, ""), _word(value)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return "unchecked" if value is None else str(value)
