"""One task in the hands of the local backend, from submission to its end.

A job carries what the parts of the backend have to know of a task. What is done
with it is up to them: `backend` decides when it starts and reports its states,
`threads`, `processes`, `executors` and `executables` run it.
"""

from __future__ import annotations

from time import time
from typing import Any, Protocol

from rhapsody.backends.local.outputs import ProgramOutput
from rhapsody.backends.local.slots import Request
from rhapsody.context import TaskContext
from rhapsody.errors import CapabilityError
from rhapsody.sdk.capture import Recorder
from rhapsody.task import TaskDescription


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
        started: Its slots were taken and it was about to be handed to its runner.
        given: Its runner has it.
        announced: The running state was reported.
        over: It has ended, and its terminal state was reported.
        value: What a function returned.
        error: What it raised, or why it could not be run.
        failed: An executable ran and failed: there is no exception.
        output: What a program writes to, where that is read at its end.
        handle: Whatever its runner needs to get hold of it.
        pid: The process that runs it, where that is known.
        port: The free port that a service was given.
        worker: The same in words, for people.
        attempts: How many worker processes were gone before one had begun with it.
    """

    __slots__ = (
        "announced",
        "attempts",
        "cancelled",
        "context",
        "error",
        "failed",
        "given",
        "gpus",
        "handle",
        "number",
        "output",
        "over",
        "pid",
        "port",
        "recorder",
        "request",
        "runner",
        "spill",
        "started",
        "task",
        "uid",
        "value",
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
        self.started: bool = False
        self.given: bool = False
        self.announced: bool = False
        self.over: bool = False
        self.value: Any = None
        self.error: BaseException | None = None
        self.failed: bool = False
        self.output: ProgramOutput | None = None
        self.handle: Any = None
        self.pid: int | None = None
        self.port: int | None = None
        self.worker: str | None = None
        self.attempts: int = 0

    def __repr__(self) -> str:
        return f"<Job {self.uid}>"

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
        if capture is not False:
            self.recorder = Recorder(self.spill, files=capture == "files")
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


def refuse_environment(job: Job) -> None:
    """Raises for a function on a thread that asks for variables of its own.

    Raises:
        CapabilityError: It says where it can have them.
    """
    if job.task.get("environment"):
        raise CapabilityError(
            f"task {job.task['name']!r} sets environment variables, which threads share with the "
            "whole program; run it in processes: LocalExecutionBackend('process')"
        )


def task_environment(job: Job, all_gpus: tuple[str, ...]) -> dict[str, str]:
    """The variables that a task in a process of its own gets.

    Thread counts for the number of cores; the GPUs it was given, and none at all
    where the backend hands out GPUs and it asked for none; then its own, and the
    port that a service was given.
    """
    environment: dict[str, str] = {}
    if job.request.cores:
        environment = dict.fromkeys(THREAD_COUNTS, str(job.request.cores))
    if all_gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(job.gpus)
    environment.update(job.task.get("environment", {}))
    if job.port is not None:
        environment["PORT"] = str(job.port)
    return environment


THREAD_COUNTS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
"""Variables that say how many threads numeric libraries use."""
