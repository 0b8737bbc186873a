"""One task in the hands of the local backend, from submission to its end.

A job carries what the parts of the backend have to know of a task. What is done
with it is up to them: `backend` decides when it starts and reports its states,
`threads`, `processes`, `executors` and `executables` run it.
"""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING, Any, Protocol

from rhapsody.backends.local.slots import Request
from rhapsody.context import TaskContext
from rhapsody.errors import CapabilityError
from rhapsody.sdk import calls
from rhapsody.sdk.capture import Recorder, recorder_for
from rhapsody.sdk.executables import task_environment
from rhapsody.task import TaskDescription

if TYPE_CHECKING:
    from rhapsody.backends.local.worker import Call
    from rhapsody.sdk.runner import CallResult


class Job:
    """A task, and how it stands.

    Attributes:
        task: The description, which results are written into.
        uid: Its uid.
        request: What it takes while it runs.
        runner: What runs it.
        number: Its place in the queue.
        gpus: The GPUs it was given.
        context: What the task can know of itself, made when it starts.
        spill: The directory for large output of a function; made when there is some.
        recorder: What keeps the output of a function in this process.
        cancelled: Somebody asked for its end.
        waits: It is in the queue.
        successor: The job that its thread or worker process goes on with, and that has its slots.
        given: Its runner has it.
        announced: The running state was reported, or the job does not come so far.
        over: It has ended, and its terminal state was reported.
        value: What a function returned.
        error: What it raised, or why it could not be run.
        failed: An executable ran and failed: there is no exception.
        handle: Whatever its runner needs to get hold of it.
        pid: The process that runs it, where that is known.
        worker: The same in words, for people.
        attempts: How many worker processes were gone before one had begun with it.
        call: Its call for a worker process, where it is packed already.
        modules: The program's own modules for its call, see `CallSpec.modules`.
    """

    __slots__ = (
        "announced",
        "attempts",
        "call",
        "cancelled",
        "context",
        "error",
        "failed",
        "given",
        "gpus",
        "handle",
        "modules",
        "number",
        "over",
        "pid",
        "recorder",
        "request",
        "runner",
        "spill",
        "successor",
        "task",
        "uid",
        "value",
        "waits",
        "worker",
    )

    def __init__(self, task: TaskDescription, request: Request, runner: Runner) -> None:
        self.task: TaskDescription = task
        self.uid: str = task["uid"]
        self.request: Request = request
        self.runner: Runner = runner
        self.number: int = 0
        self.gpus: tuple[str, ...] = ()
        self.context: TaskContext | None = None
        self.recorder: Recorder | None = None
        self.spill: str = ""
        self.cancelled: bool = False
        self.waits: bool = False
        self.successor: Job | None = None
        self.given: bool = False
        self.announced: bool = False
        self.over: bool = False
        self.value: Any = None
        self.error: BaseException | None = None
        self.failed: bool = False
        self.handle: Any = None
        self.pid: int | None = None
        self.worker: str | None = None
        self.attempts: int = 0
        self.call: Call | None = None
        self.modules: bytes | None = None

    def __repr__(self) -> str:
        return f"<Job {self.uid}>"

    def take(self, outcome: CallResult) -> None:
        """Takes what came back from another process: the output, and the value or the error."""
        self.recorder = None  # nothing was printed here
        calls.report(self.task, outcome)
        self.value, self.error = calls.result(self.task, outcome)

    def environment(self, all_gpus: tuple[str, ...]) -> dict[str, str]:
        """The variables that it gets in a process of its own.

        Where the backend hands out GPUs, one that asked for none sees none.
        """
        gpus = self.gpus if all_gpus else None
        return task_environment(self.task, cores=self.request.cores, gpus=gpus)

    def enter(self) -> TaskContext:
        """Makes the context and the recorder of a function that starts in this process now."""
        task = self.task
        timeout = task.get("timeout")
        sandbox = task.get("sandbox")
        self.context = TaskContext(
            uid=self.uid,
            name=task["name"],
            attempt=task.get("attempt", 1),
            sandbox=sandbox,
            deadline=None if timeout is None else time() + timeout,
        )
        capture = task.get("capture", True)
        self.recorder = (
            Recorder(self.spill) if capture is True else recorder_for(capture, self.spill)
        )
        return self.context


class Runner(Protocol):
    """A part of the backend that runs jobs of some kind.

    All methods are called on the engine's loop. A job's end is told by putting it
    into the backend's mailbox.
    """

    announces: bool
    """It tells by itself when a job has begun; else a job runs once it was handed over."""

    stoppable: bool
    """Its running jobs can be stopped."""

    def run(self, job: Job) -> None:
        """Starts a job. May raise, which fails the job."""

    def cancel(self, job: Job) -> None:
        """Stops a job that was started, or asks it to end. Called once per job."""

    def ended(self, job: Job) -> None:
        """Notes that a job it was given has come back."""


def no_environment(job: Job) -> CapabilityError:
    """Returns the error for a function on a thread that asks for variables of its own."""
    return CapabilityError(
        f"task {job.task['name']!r} sets environment variables, which threads share with the "
        "whole program; run it in processes: LocalExecutionBackend('process')"
    )
