"""Local backend: runs functions on threads or in worker processes, and executables, on this host.

The backend knows all open tasks and assigns the host's slots to them (see `jobs`). This module
starts executables and services; `threads` and `processes` run functions. All state changes happen
on the engine's event loop. Jobs that end on other threads arrive through a mailbox.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from time import monotonic, perf_counter
from typing import Any, Literal

from rhapsody.aio import wait_through
from rhapsody.backends.base import Capabilities, ManagedBackend
from rhapsody.backends.environment_calls import EnvironmentCall
from rhapsody.backends.local.jobs import (
    ONE_FUNCTION,
    RESOURCES,
    HostResources,
    JobRunner,
    LocalJob,
    Queue,
    Request,
    Slots,
    host_resources,
    no_environment,
)
from rhapsody.backends.local.threads import ExecutorWorkers, SharedThread, ThreadWorkers
from rhapsody.backends.programs import SharedSandboxes
from rhapsody.context import TaskContext
from rhapsody.data import make_sandbox
from rhapsody.environments import SETTINGS, in_environment
from rhapsody.errors import CapabilityError, InsufficientWalltimeError
from rhapsody.known import NODES
from rhapsody.plugins.options import BackendOption
from rhapsody.resources import Resources, nodes_of_job, seconds, time_needed
from rhapsody.sdk.capture import Recorder, streams
from rhapsody.sdk.executables import Launch, TaskProgram
from rhapsody.sdk.processes import Program, Reaper
from rhapsody.sdk.services import Readiness, TaskService, parse_ready
from rhapsody.sdk.threads import FAST_FILES, TIME_SLICE, FastCalls, Mailbox, ThreadPool, in_thread
from rhapsody.spelling import suggestion
from rhapsody.task import TaskDescription, is_async

log: logging.Logger = logging.getLogger(__name__)

THREADS = Capabilities(
    services=True,
    function_environments=True,
    cancel_functions="queued",
    cancel_async_functions="running",
    cancel_executables="running",
    cancel_services="running",
    sandboxes=True,
    cwd=True,
    files=True,
    shared_file_system=True,
    task_settings=frozenset({"shell"}),
    resources=frozenset({"cores", "fractional_cores", "gpus", "memory", "walltime"}),
    binds=frozenset({"cores", "gpus"}),
    captures_output=True,
    reports_running=True,
    worker_values=True,
)
"""Capabilities if functions run on threads: running coroutines can be stopped, functions cannot.

Environment variables bind executables to their cores and GPUs. Functions on threads share the
environment of the main program, so their resources are only counted.
"""

PROCESSES = replace(THREADS, cancel_functions="running")
"""Capabilities if functions run in worker processes: all running functions can be stopped.

Environment variables bind functions and executables to their cores and GPUs.
"""

EXECUTOR = replace(THREADS, cancel_async_functions="queued")
"""Capabilities if functions run on a user's executor: running functions cannot be stopped."""


STARTERS = 8
"""Maximum number of threads that create sandboxes and start programs."""

FAST_START = 0.02
"""Seconds in which a program on a fast file system starts, even while the processors are busy."""


class ExecutableRunner(JobRunner):
    """Runner of executable tasks and services.

    Programs of tasks are started on threads as long as this is slow; see `FastCalls`. Services are
    always started on the loop.

    Args:
        deliver: Called on the loop with each job that has ended.
        announce: Called on the loop when a job's program has started, with the job and a function
            that registers the engine's readiness future (`None` for jobs without `ready`).
        grace: Number of seconds between SIGTERM and SIGKILL when a program is stopped.
        reaper: The reaper that kills the programs if this process is killed.
        cores: Number of cores of the backend. Starting more programs at a time takes longer.
    """

    announces = True
    stoppable = True

    def __init__(
        self,
        deliver: Callable[[LocalJob], object],
        announce: Callable[[LocalJob, Callable[..., None] | None], object],
        grace: float,
        reaper: Reaper,
        cores: int,
    ) -> None:
        self._deliver = deliver
        self._announce = announce
        self._grace = grace
        self._launch = partial(Program, reaper=reaper)
        self._starters = ThreadPool(min(STARTERS, cores), "rhapsody-start")
        self._starts = FastCalls()
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, job: LocalJob) -> None:
        """Start the job's program; for a service, also watch for its readiness."""
        if job.request.endless:
            readiness = Readiness()
            job.task["sandbox"] = make_sandbox(job.task["sandbox"])
            program: TaskProgram = TaskService(
                job.task, job.environment(), launch=self._launch, ready=readiness.set
            )
            attach = None if job.task.get("ready") is None else readiness.attach
        elif self._starts.on_loop:
            program, attach = self._start(job, self._launch, os.environ), None
        else:
            self._follow(self._run(job))
            return
        self._started(job, program, attach)
        self._follow(self._finish(job, program))

    async def _run(self, job: LocalJob) -> None:
        launch = partial(self._launch, loop=asyncio.get_running_loop())
        start = partial(self._start_unless_cancelled, job, launch, os.environ.copy())
        try:
            program = await self._starters.run(start, or_here=True)
        except Exception as error:  # such as a missing program or a full disk
            program, job.error = None, error
        if program is None:
            self._deliver(job)
            return
        program.watch()
        self._started(job, program)
        if job.cancelled:
            program.terminate(self._grace)
        await self._finish(job, program)

    def _start_unless_cancelled(
        self, job: LocalJob, launch: Launch, inherited: Mapping[str, str]
    ) -> TaskProgram | None:
        return None if job.cancelled else self._start(job, launch, inherited)

    def _start(self, job: LocalJob, launch: Launch, inherited: Mapping[str, str]) -> TaskProgram:
        """Create the sandbox, and start the program in it. Called on the loop or on a thread."""
        begin = perf_counter()
        job.task["sandbox"] = make_sandbox(job.task["sandbox"])
        made = perf_counter()
        program = TaskProgram(job.task, job.environment(), launch=launch, inherited=inherited)
        files = made - begin + program.seconds_for_files
        self._starts.note(files < FAST_FILES and perf_counter() - begin < FAST_START)
        return program

    def _started(
        self, job: LocalJob, program: TaskProgram, attach: Callable[..., None] | None = None
    ) -> None:
        job.handle = program
        job.worker = f"process {program.pid}"
        self._announce(job, attach)

    def _follow(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel(self, job: LocalJob) -> None:
        """Terminate the program's process group, and kill it after the grace period."""
        job.cancelled = True
        if job.handle is not None:
            job.handle.terminate(self._grace)

    async def stop(self) -> None:
        """Wait until all jobs have ended and their results have been delivered."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._starters.close()

    async def _finish(self, job: LocalJob, program: TaskProgram) -> None:
        try:
            job.failed = await program.wait(self._grace) != 0
        except Exception as error:  # the output cannot be read, or a service was not ready
            job.error = error
        self._deliver(job)


class EnvironmentCalls(ExecutableRunner):
    """Runner of functions in containers and other environments, each in a separate process."""

    def run(self, job: LocalJob) -> None:
        """Start the program that makes the job's call."""
        call = EnvironmentCall(job.task, job.spill, cores=job.request.cores)
        try:
            program = TaskProgram(call.program, job.environment(), launch=self._launch)
        except BaseException:
            call.close()
            raise
        self._started(job, program)
        self._follow(self._take(job, program, call))

    async def _take(self, job: LocalJob, program: TaskProgram, call: EnvironmentCall) -> None:
        try:
            code = await program.wait(self._grace)
            job.take(await in_thread(call.result, code))
        except Exception as error:  # the environment cannot be used, or the process was killed
            job.error = error
        call.close()
        self._deliver(job)


def check_shell(task: TaskDescription) -> None:
    """Check that the setting `shell` of a task, if given, matches its command.

    Raises:
        ValueError: `shell` does not match the command.
    """
    wanted = task["task_backend_specific_kwargs"].get("shell")
    by_shell = "shell" in task or "arguments" not in task
    if wanted not in (None, by_shell):
        command = (
            "a string, which a shell runs" if by_shell else "a list, which runs without a shell"
        )
        raise ValueError(
            f"task {task['name']!r}: task_description sets shell={wanted!r}, but the command is "
            f"{command}; return a {'list of words' if by_shell else 'string'} instead"
        )


_ROUTED = frozenset({"environment", *SETTINGS})
"""Keys of a function's description that determine where it can run."""

EXECUTORS = ("thread", "process")

OPTIONS = (
    BackendOption(
        "executor",
        Literal["thread", "process"],
        "thread",
        "Functions run on threads of this process, or in worker processes.",
    ),
    *RESOURCES,
    BackendOption(
        "grace",
        float | str,
        5.0,
        "Time between SIGTERM and SIGKILL when a task is stopped, in seconds or as text.",
    ),
    BackendOption("name", str, "local", "Name of the backend in an engine."),
)
"""The options of the backend that can be set in files and on the command line."""

ONE_CALL = Request(cores=1, workers=1)
"""Request of a function in an environment; not `ONE_FUNCTION`, whose slots a thread would reuse."""

ONE_PROGRAM = Request(cores=1)
ONE_SERVICE = Request(cores=0, endless=True)


class LocalExecutionBackend(SharedSandboxes, ManagedBackend):
    """Backend that runs tasks on this machine.

    Functions run on `executor`, except those with `container`, `conda`, `venv` or `modules`, which
    run in separate processes. Executables run in separate process groups, whatever the executor.
    Resources are assigned first come, first served: a task that does not fit yet delays the
    tasks behind it. There are two exceptions: tasks that cannot fit before a service ends let all
    others pass, and functions that wait for a worker let executables pass. A service that requests
    no resources is assigned none, because it mostly waits.

    A function that runs on a thread cannot be stopped: unless it checks `current_task().cancelled`,
    it continues and keeps its resources. The same applies to every function and coroutine that runs
    on an executor of `concurrent.futures`. All other tasks can be stopped. All coroutine functions
    that request `cores=0` and no GPUs share one thread.

    The output of an executable is in `.rhapsody.stdout` and `.rhapsody.stderr` in its sandbox. The
    output of a function is written to files only if it exceeds 1 MiB or with `capture="files"`.

    Args:
        executor: `"thread"` (the default), `"process"`, or an executor of
            `concurrent.futures`, which the caller shuts down.
        resources: Resources for tasks: `cores`, `gpus` (a number, or a list of devices), `memory`
            (bytes or text such as `"8 GiB"`; only counted), `workers` (maximum number of function
            tasks at the same time; default: the size of a given executor, otherwise the number of
            cores) and `walltime` (number of seconds for which the backend runs tasks; default: the
            time left in the batch job of this process, if any). Missing values of `cores`, `gpus`
            and `memory` are detected; without `cores` there are at least as many cores as workers.
        grace: Number of seconds between SIGTERM and SIGKILL when a task is stopped.
        name: The backend's name in an engine. Default: `"local"`.

    Attributes:
        thread_grace: Number of seconds for which `shutdown` waits for functions on threads.

    Raises:
        ValueError: The executor is unknown, or a value is too small or malformed.
        TypeError: A value has the wrong type, or a resource is unknown.
    """

    name = "local"
    capabilities: Capabilities = THREADS
    thread_grace: float = 1.0

    def __init__(
        self,
        executor: str | Executor | None = None,
        *,
        resources: Mapping[str, Any] | None = None,
        grace: float | str = 5.0,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self._executor = _checked(executor)
        # The executors of the standard library have this attribute.
        size = getattr(self._executor, "_max_workers", None)
        self.machine: HostResources = host_resources(
            resources, workers=size if isinstance(size, int) else None
        )
        self.grace: float = seconds("grace", grace, zero=True)
        if isinstance(self._executor, Executor):
            self.capabilities = EXECUTOR
        elif self._executor == "process":
            self.capabilities = PROCESSES
        in_threads = type(self._executor) is ThreadPoolExecutor  # others may start processes
        self.shares_memory: bool = self._executor == "thread" or in_threads
        self._slots = Slots(self.machine)
        self._queue: Queue = Queue(self._slots)
        self._ends: float | None = None  # by `monotonic`
        self._pumping = False
        self._mailbox: Mailbox[LocalJob] | None = None
        self._progress: asyncio.Event | None = None
        self._threads: ThreadWorkers | None = None
        self._processes: Any = None

    def seconds_left(self, task: Any = None) -> float | None:
        """Return the number of seconds left of the walltime, or `None` if there is no limit."""
        return None if self._ends is None else max(0.0, self._ends - monotonic())

    def cores_in_use(self) -> tuple[float, int]:
        """Return the number of cores in use, and the total number of cores."""
        return self._slots.cores_in_use, self.machine.cores

    # Starting and stopping.

    async def start(self) -> None:
        """Start the runners of functions and executables."""
        self._loop = asyncio.get_running_loop()
        if (nodes := nodes_of_job()) > 1:
            log.warning(
                "the backend 'local' uses one of the %d nodes of this job; to use all, %s",
                nodes,
                NODES,
            )
        walltime = self.machine.walltime
        walltime = super().seconds_left() if walltime is None else walltime
        self._ends = None if walltime is None else monotonic() + walltime
        mailbox = Mailbox(self._loop, self._ended)
        states = self.get_task_states_map()
        self._running, self._done = states.RUNNING, states.DONE
        self._failed, self._canceled = states.FAILED, states.CANCELED
        put = mailbox.put
        self._shared = SharedThread(put, "rhapsody-waiters")
        self._reaper = Reaper()
        programs = self._ended, self._announce, self.grace, self._reaper, self.machine.cores
        self._executables, self._calls = ExecutableRunner(*programs), EnvironmentCalls(*programs)
        streams.acquire()
        self._mailbox = mailbox  # from here on there is something to stop
        self._functions: JobRunner
        if isinstance(self._executor, Executor):
            self._functions = ExecutorWorkers(put, self._executor)
        elif self._executor == "process":
            await self._start_processes()
        else:
            self._functions = self._threads = ThreadWorkers(put, self._successor, "rhapsody-worker")

    async def _start_processes(self) -> None:
        from rhapsody.backends.local.processes import ProcessWorkers

        self._functions = self._processes = ProcessWorkers(
            self._ended,
            self._announce,
            self._next_short,
            self._withdrawn,
            lambda: self._queue.functions,
            self.grace,
            self.machine.workers,
        )
        opening = asyncio.ensure_future(in_thread(self._processes.open))
        if await wait_through(opening, lambda: None):  # a half-open pool cannot be closed
            raise asyncio.CancelledError
        opening.result()
        self._processes.listen()

    async def stop(self) -> None:
        """Stop every task and release threads, processes and files."""
        if self._mailbox is None:
            return
        self._progress = asyncio.Event()
        if self._processes is not None:
            self._processes.stop_starting()
        for job in self._queue.clear():
            self._end(job, self._canceled)
        for job in list(self.open_tasks.values()):
            if job.runner is not self._processes:  # its jobs are stopped together, below
                self._cancel(job)
        if self._processes is not None:
            await self._processes.close()
        await self._wait_for_ends()
        await self._executables.stop()
        await self._calls.stop()
        await in_thread(self._reaper.stop, or_here=True)
        self._shared.stop(self.thread_grace)
        if self._threads is not None:
            self._threads.stop(self.thread_grace)
        streams.release()

    async def _wait_for_ends(self) -> None:
        """Wait until all tasks have ended, or until the time for stopping them has passed."""
        assert self._progress is not None
        begin = monotonic()
        while self.open_tasks:
            stoppable = any(self._stoppable(job) for job in self.open_tasks.values())
            limit = self.grace + 1.0 if stoppable else self.thread_grace
            self._progress.clear()
            try:
                async with asyncio.timeout(begin + limit - monotonic()):
                    await self._progress.wait()
            except TimeoutError:
                return

    @staticmethod
    def _stoppable(job: LocalJob) -> bool:
        # A coroutine on a worker thread can be canceled, a function cannot.
        return job.runner.stoppable or isinstance(job.handle, tuple)

    @property
    def still_running(self) -> list[str]:
        """The uids of tasks that have not ended; after `shutdown`, those that cannot be stopped."""
        return list(self.open_tasks)

    # Tasks in.

    async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
        """Start the tasks that fit, and queue the others, without waiting for any of them."""
        admitted = self.admit(tasks)
        streams.ensure()
        self._sandboxes = self.session.directory("")
        waiting, queued = bool(self._queue), False
        for task in admitted:
            job = self._job(task)
            if job is None:
                continue
            if waiting or not self._slots.take(job):
                self._queue.push(job)
                waiting = queued = True
            else:
                self._start_job(job)
        if queued:
            self._pump()

    async def close_worker_value(self, key: bytes) -> None:
        """Close a worker value in the worker processes, after the calls sent to them."""
        if self._processes is not None:
            self._processes.close_value(key)

    async def cancel_task(self, uid: str) -> bool:
        """Cancel a task.

        A waiting task is canceled immediately. The terminal state of a running task is reported
        when the task has ended.

        Returns:
            True if the task was known and had not ended, otherwise False.
        """
        job: LocalJob | None = self.open_tasks.get(uid)
        if job is None:
            return False
        if not self._queue.withdraw(job):
            self._cancel(job)
            if not self._queue.withdraw(job):  # it was not returned to the queue
                return True
        self._end(job, self._canceled)
        self._pump()
        return True

    def _cancel(self, job: LocalJob) -> None:
        if not job.cancelled:
            job.runner.cancel(job)

    def _job(self, task: TaskDescription) -> LocalJob | None:
        """Create a job for a task, or report the task as failed and return `None`."""
        uid, resources = task["uid"], task.get("resources")
        job = self.open_tasks[uid] = LocalJob(task, uid, ONE_FUNCTION, self._functions)
        job.gpus = () if self.machine.gpus else None
        plain = task["function"] is not None and resources is None and not task["is_service"]
        if plain and _ROUTED.isdisjoint(task):
            return job
        try:
            self._route(job, resources)
            problem = self._slots.missing(job.request)
            if problem is not None:
                raise CapabilityError(
                    f"task {task['name']!r} does not fit on this machine: {problem}; request "
                    "less, or declare the resources with LocalExecutionBackend(resources={...})"
                )
        except Exception as error:  # fails only this task
            job.error = error
            self._end(job, self._failed)
            return None
        return job

    def _route(self, job: LocalJob, resources: Resources | None) -> None:
        """Set a job's runner and its request for resources.

        Raises:
            CapabilityError: This backend cannot run the job.
            ValueError: `ready` or a resource is malformed, or `shell` does not match the command.
            TypeError: `ready` or a resource is of the wrong type.
        """  # noqa: DOC501 - a CapabilityError
        task, resources = job.task, Resources.of(resources)
        function, service = task["function"], task["is_service"]
        if function is None and task["task_backend_specific_kwargs"]:
            check_shell(task)
        if service and function is not None:
            raise CapabilityError(
                f"task {task['name']!r}: the local backend does not run functions as services; "
                "use an executable task with service=True"
            )
        if resources is not None and resources.ranks > 1:
            raise CapabilityError(
                f"task {task['name']!r} requests {resources.ranks} ranks, but the local backend "
                "has no MPI launcher; use another backend, or call mpirun in an executable task"
            )
        if function is not None and in_environment(task):
            job.runner = self._calls
            job.request = ONE_CALL if resources is None else _request(resources, workers=1)
        elif function is not None:
            if resources is not None:
                waits = resources.cores == 0 and not resources.gpus and is_async(function)
                if waits:
                    job.runner = self._shared
                job.request = _request(resources, workers=0 if waits else 1)
            if task.get("environment") and job.runner in (self._threads, self._shared):
                raise no_environment(job)
        elif service:
            if "ready" in task:
                parse_ready(task["ready"])
            job.runner = self._executables
            job.request = _request(resources, endless=True) if resources else ONE_SERVICE
        else:
            job.runner = self._executables
            job.request = _request(resources) if resources else ONE_PROGRAM

    def _start_job(self, job: LocalJob) -> None:
        """Pass a job, whose slots have been assigned, to its runner."""
        assert self._mailbox is not None
        try:
            self._prepare(job)
            job.runner.run(job)
        except Exception as error:  # fails only this task, such as a missing program
            job.error = error
            self._mailbox.put(job)
            return
        job.dispatched = True
        if not job.runner.announces:
            self._announce(job)

    def _successor(self, job: LocalJob) -> LocalJob | None:
        """Take the next job from the queue if it can use the thread and slots of an ended job.

        Called on the thread that ran the ended job.

        Returns:
            The next job, or `None` if it needs other slots or there is no next job.
        """
        if self._loop.is_closed():
            return None  # the end of the next job could not be reported
        successor = self._queue.take_over(job.request)
        if successor is not None:
            successor.dispatched = True
            try:
                self._prepare(successor)
            except Exception as error:  # fails only this task, such as a full disk
                successor.error = error
                successor.announced = True  # it does not start
        return successor

    def _prepare(self, job: LocalJob) -> None:
        """Prepare a job's sandbox and context, on any thread. If this raises, the job fails."""
        task = job.task
        if self._ends is not None:
            self._require_time(task)
        sandbox, function = task.get("sandbox"), task["function"]
        capture = task.get("capture", True)
        if sandbox or function is None or capture == "files":
            sandbox = task["sandbox"] = sandbox or self.own_sandbox(job.uid)
        if function is not None:
            if sandbox:
                sandbox = task["sandbox"] = make_sandbox(sandbox)
            job.spill = sandbox or self._sandboxes + job.uid
            if job.runner in (self._processes, self._calls):
                return
            job.context = TaskContext.of(task)
            job.recorder = None if capture is False else Recorder(job.spill, capture)

    def _next_short(self, before: LocalJob) -> tuple[LocalJob, bytearray] | None:
        """Take the next job from the queue if it can be sent ahead to the worker of `before`.

        The job starts when `before` has released its slots.

        Returns:
            The job and its packed call, or `None`.
        """
        job = self._queue.first()
        if job is None or job.request is not before.request:
            return None
        try:
            if not self._processes.pack(job):
                return None
            self._prepare(job)
            call = self._processes.frame(job)
        except Exception:  # raised again when the job has its slots
            return None
        self._queue.take_over(job.request)
        job.dispatched = True
        return job, call

    def _withdrawn(self, jobs: list[LocalJob]) -> None:
        """Return jobs that were waiting in a worker process to their places in the queue."""
        for job in jobs:
            job.dispatched = False
        self._queue.put_back(jobs)
        self._pump_soon()

    def _require_time(self, task: TaskDescription) -> None:
        """Check that enough walltime is left for a task that starts now.

        Raises:
            InsufficientWalltimeError: Too little walltime is left. The engine may submit the task
                to another backend.
        """
        needs, left = time_needed(task), self.seconds_left()
        if needs is not None and left is not None and needs > left:
            raise InsufficientWalltimeError(
                f"task {task['name']!r} was held back: it needs {needs:g} s, but the walltime "
                f"ends in {left:.0f} s; run the program again to execute it",
                backend=self.name, needs=needs, left=left,
            )  # fmt: skip

    def _pump(self) -> None:
        """Start queued jobs that fit.

        If this takes more than about 5 ms, stop and schedule another call for the remaining jobs.
        """
        end = perf_counter() + TIME_SLICE
        while self._queue:
            if perf_counter() > end:
                self._pump_soon()
                return
            job = self._queue.pop()
            if job is None:
                return
            self._start_job(job)

    def _pump_soon(self) -> None:
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump_again)

    def _pump_again(self) -> None:
        self._pumping = False
        self._pump()

    # States out.

    def _announce(self, job: LocalJob, attach: Callable[..., None] | None = None) -> None:
        """Report a job as running, unless it has already been reported or has ended.

        `attach` is passed to the engine, which calls it with the future of a service's readiness.
        """
        if not (job.announced or job.over):
            job.announced = True
            if job.worker is not None:
                job.task["worker"] = job.worker
            self.report_state(job.task, self._running, attach)

    def _ended(self, job: LocalJob) -> None:
        """Report the end of a job, and start jobs that fit into its slots. Called on the loop."""
        if job.over:
            return
        task, successor = job.task, job.successor
        if job.dispatched:
            job.runner.ended(job)
        if job.recorder is not None:
            try:
                job.recorder.report(task)
            except OSError as error:  # the files with the output cannot be written
                job.error = error if job.error is None else job.error
        if job.worker is not None:
            task["worker"] = job.worker
        if successor is None:
            self._slots.release(job)
        raised = job.error
        if job.cancelled or (raised is not None and isinstance(raised, asyncio.CancelledError)):
            self._end(job, self._canceled)
        elif raised is not None or job.failed:
            self._end(job, self._failed)
        else:
            if task["function"] is not None:
                task["return_value"] = job.value
            self._end(job, self._done)
        if successor is not None:
            self._announce(successor)
        elif self._queue:
            self._pump()

    def _end(self, job: LocalJob, state: Any) -> None:
        """Report a job's terminal state and remove the job."""
        task, error = job.task, job.error
        if state == self._failed and error is not None:
            task["exception"] = error
        job.over = True
        job.value = job.error = job.handle = job.recorder = job.successor = None
        self.open_tasks.pop(job.uid, None)
        self.report_state(task, state)
        if self._progress is not None:
            self._progress.set()


ConcurrentExecutionBackend = LocalExecutionBackend
"""Alias of `LocalExecutionBackend`: the name that a similar backend has in other projects."""


def _checked(executor: Any) -> str | Executor:
    if executor is None:
        return "thread"
    if isinstance(executor, Executor) or (isinstance(executor, str) and executor in EXECUTORS):
        return executor
    wanted = "'thread', 'process' or an executor of concurrent.futures"
    if not isinstance(executor, str):
        raise TypeError(f"executor must be {wanted}, got {executor!r}")
    hint = suggestion(executor, EXECUTORS)
    raise ValueError(f"executor must be {wanted}, got {executor!r}{hint}")


def _request(resources: Resources, *, workers: int = 0, endless: bool = False) -> Request:
    memory = resources.memory
    return Request(
        cores=resources.cores,
        gpus=resources.gpus,
        memory=memory if isinstance(memory, int) else 0,
        workers=workers,
        endless=endless,
    )
