"""Runners of functions: on threads of this process, on a shared event loop, or on an executor.

The backend's threads are daemon threads that are not joined at exit, so a function that cannot be
stopped does not delay the end of the main program. Each thread has an event loop for the coroutine
functions that it runs. Coroutine functions that request no cores run on one shared loop.

A user's executor may run calls in this process or send them to other processes, so an
`ExecutorCall` packs its call only when the executor pickles the object. The executor belongs to the
user and is not shut down here.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from types import CoroutineType
from typing import Any, cast

from rhapsody.backends.local.jobs import JobRunner, LocalJob, no_environment
from rhapsody.context import call_context, enter_task
from rhapsody.errors import TaskLostError
from rhapsody.sdk.calls import call_spec
from rhapsody.sdk.capture import record_in
from rhapsody.sdk.loops import SharedLoop, WorkerLoop, without_own_frames
from rhapsody.sdk.runner import CallResult, Meter, WatchedPaths, watch_files
from rhapsody.sdk.threads import start_thread
from rhapsody.task import TaskDescription, Usage

HOST_NAME: str = os.uname().nodename
"""This machine's name."""


class ThreadWorkers(JobRunner):
    """Runner of functions on worker threads, which are started as needed.

    Args:
        deliver: Called on the worker thread with each job that has ended.
        successor: Called on the worker thread with each job that has ended. Returns the next job if
            it needs exactly the slots of the ended job, otherwise `None`. The thread starts the
            returned job without waiting for the loop.
        name: The prefix of the threads' names.
    """

    def __init__(
        self,
        deliver: Callable[[LocalJob], object],
        successor: Callable[[LocalJob], LocalJob | None],
        name: str,
    ) -> None:
        self._deliver = deliver
        self._successor = successor
        self._name = name
        self._jobs: SimpleQueue[LocalJob | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._busy = 0
        self._running: set[str] = set()  # names of the threads that run a job
        self._lock = threading.Lock()  # decides whether `cancel` or the worker cancels a coroutine

    def run(self, job: LocalJob) -> None:
        """Pass a job to a free thread, or start a thread for it."""
        job.task["worker"] = HOST_NAME  # until a thread has taken it
        if self._busy == len(self._threads):
            name = f"{self._name}-{len(self._threads) + 1}"
            self._threads.append(start_thread(partial(self._work, name), name))
        self._busy += 1
        self._jobs.put(job)

    def ended(self, job: LocalJob) -> None:
        """Count a thread as free, unless it continues with another job."""
        if job.successor is None:
            self._busy -= 1

    def cancel(self, job: LocalJob) -> None:
        """Cancel a coroutine. A function continues unless it checks `TaskContext.cancelled`."""
        with self._lock:
            job.cancelled = True
            handle, context = job.handle, job.context
        if context is not None:
            context.request_cancel()
        if handle is not None:
            loop, task = handle
            with suppress(RuntimeError):  # the loop is closed: the coroutine has ended
                loop.call_soon_threadsafe(task.cancel)

    def stop(self, timeout: float) -> None:
        """Let all threads end. Wait up to `timeout` seconds for those that are not running jobs."""
        for _ in self._threads:
            self._jobs.put(None)
        end = time.monotonic() + timeout
        for thread in self._threads:
            if thread.name not in self._running:
                thread.join(max(0.0, end - time.monotonic()))

    def _work(self, name: str) -> None:
        """Run jobs one after the other, on one of the threads."""
        loop, meter, running = WorkerLoop(), Meter(shared=True), self._running
        try:
            successor = None
            while (job := successor or self._jobs.get()) is not None:
                running.add(name)
                job.worker = job.task["worker"] = name
                if job.error is None:  # otherwise preparing the job failed
                    call_context(job.task).run(self._call, job, loop, meter)
                running.discard(name)
                successor = job.successor = self._successor(job)
                self._deliver(job)
                del job  # do not keep the job alive while waiting for the next one
        finally:
            loop.close()

    def _call(self, job: LocalJob, loop: WorkerLoop, meter: Meter) -> None:
        with self._lock:
            if job.cancelled:
                return
        task, context = job.task, job.context
        function = task["function"]
        assert function is not None
        assert context is not None
        try:
            enter_task(context)  # not reset, because each job has its own context
            record_in(job.recorder)
            if "watch" in task:
                task["opened"] = watch_files(task["watch"])
            if "keep_arguments" in task:
                task["keep_arguments"]()
            begin, start = meter.begin(task["name"]), time.time()
            try:
                value = function(*task["args"], **task["kwargs"])
                if type(value) is CoroutineType:
                    value = loop.run(value, partial(self._started, job))
            finally:
                _measure(task, start, meter.end(task["name"], begin))
            job.value = value
        except BaseException as error:  # whatever a task raises is its result
            job.error = without_own_frames(error)
        finally:
            del job, task  # the traceback of an error refers to this frame

    def _started(
        self, job: LocalJob, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]
    ) -> None:
        with self._lock:
            job.handle = loop, task
            cancelled = job.cancelled
        if cancelled:
            loop.call_soon(task.cancel)  # after the first step of the coroutine


def _measure(task: TaskDescription, start: float, used: Mapping[str, Any] | None) -> None:
    """Set the interval and the usage of a call that has ended.

    Args:
        task: The task.
        start: When the call began, in seconds since the epoch.
        used: The resources that it has used; `None` if they were not measured.
    """
    if "watch" in task and isinstance(opened := task.get("opened"), WatchedPaths):
        opened.end()
    values = task.get("worker_values")
    if values is not None and values.seconds:
        start += values.seconds
        used = {**(used or {}), "build_seconds": values.seconds}
    task["interval"] = start, time.time()
    if used is not None:
        task["usage"] = cast("Usage", used)


class SharedThread(JobRunner):
    """Runner of coroutine functions that request no cores, all on one loop in one thread.

    Args:
        deliver: Called on the runner's thread with each job that has ended.
        name: The name of the thread.
    """

    stoppable = True

    def __init__(self, deliver: Callable[[LocalJob], object], name: str) -> None:
        self._deliver = deliver
        self._loop = SharedLoop(name)
        self._name = name
        self._open = 0

    def run(self, job: LocalJob) -> None:
        """Start a coroutine on the shared loop."""
        job.worker = self._name
        self._open += 1
        self._loop.call(partial(self._start, job))

    def cancel(self, job: LocalJob) -> None:
        """Cancel a coroutine."""
        job.cancelled = True
        if job.context is not None:
            job.context.request_cancel()
        self._loop.call(partial(self._cancel, job))

    def ended(self, job: LocalJob) -> None:
        """Count a coroutine as ended."""
        self._open -= 1

    def stop(self, timeout: float) -> None:
        """End the thread, unless a coroutine is still running. Wait up to `timeout` seconds."""
        if not self._open:
            self._loop.stop(timeout)

    # On the loop's thread.

    def _start(self, job: LocalJob) -> None:
        if job.cancelled:
            self._deliver(job)
            return
        task = job.task
        function, args, kwargs = task["function"], task["args"], task["kwargs"]
        assert function is not None
        job.handle = self._loop.start(
            partial(self._call, job, function, args, kwargs),
            partial(self._ended, job),
            call_context(task),
        )

    def _cancel(self, job: LocalJob) -> None:
        if job.handle is not None:
            job.handle.cancel()

    async def _call(
        self, job: LocalJob, function: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        assert job.context is not None
        enter_task(job.context)
        record_in(job.recorder)
        if "watch" in job.task:
            job.task["opened"] = watch_files(job.task["watch"])
        if "keep_arguments" in job.task:
            job.task["keep_arguments"]()
        start = time.time()
        try:
            return await function(*args, **kwargs)
        finally:
            _measure(job.task, start, None)

    def _ended(self, job: LocalJob, value: Any, error: BaseException | None) -> None:
        job.handle = None
        job.value = value
        if error is not None:
            job.error = without_own_frames(error)
        self._deliver(job)


class ExecutorWorkers(JobRunner):
    """Runner that submits functions to an executor supplied by the user.

    Args:
        deliver: Called with each job that has ended, on any thread.
        executor: The user's executor.
    """

    def __init__(self, deliver: Callable[[LocalJob], object], executor: Executor) -> None:
        self._deliver = deliver
        self._executor = executor

    def run(self, job: LocalJob) -> None:
        """Submit a job's call to the executor.

        Raises:
            TaskLostError: The executor is broken.
        """
        try:
            job.handle = future = self._executor.submit(ExecutorCall(job))
        except BrokenExecutor as error:
            raise self._lost(job, error) from error
        future.add_done_callback(partial(self._done, job))

    def cancel(self, job: LocalJob) -> None:
        """Cancel a call that has not started.

        A running function continues unless it checks `TaskContext.cancelled`.
        """
        job.cancelled = True
        if job.context is not None:
            job.context.request_cancel()
        if job.handle is not None:
            job.handle.cancel()

    def _done(self, job: LocalJob, future: Future[Any]) -> None:
        try:
            reply = future.result()
        except BaseException as error:  # an error of the executor, or its cancellation
            job.error = (
                self._lost(job, error)
                if isinstance(error, BrokenExecutor)
                else error.with_traceback(None)
            )
        else:
            if type(reply) is CallResult:
                job.worker = f"process {reply.pid}"
                job.take(reply)
            elif reply is not None:
                job.error = reply
        self._deliver(job)

    @staticmethod
    def _lost(job: LocalJob, error: BaseException) -> TaskLostError:
        lost = TaskLostError(
            f"the executor lost task {job.task['name']!r} and cannot be used again ({error}); pass "
            "a new one, or use LocalExecutionBackend('process')"
        )
        lost.__cause__ = error
        return lost


class ExecutorCall:
    """Call that is submitted to an executor.

    A thread executor calls this object in this process. A process executor pickles it; in the
    worker process, the unpickled object is a function that makes the call.

    Args:
        job: The job whose function is called.
    """

    def __init__(self, job: LocalJob) -> None:
        self._job = job

    def __call__(self) -> BaseException | None:
        """Make the call and store its value. Return the exception that it raised, or `None`."""
        return call_context(self._job.task).run(self._call)

    def _call(self) -> BaseException | None:
        job = self._job
        task, context = job.task, job.context
        function = task["function"]
        assert function is not None
        assert context is not None
        job.worker = threading.current_thread().name
        try:
            if job.task.get("environment"):
                raise no_environment(job)
            if "keep_arguments" in task:
                task["keep_arguments"]()
            meter = _local.meter
            begin, start = meter.begin(task["name"]), time.time()
            try:
                enter_task(context)
                record_in(job.recorder)
                if "watch" in task:
                    task["opened"] = watch_files(task["watch"])
                value = function(*task["args"], **task["kwargs"])
                if type(value) is CoroutineType:
                    value = _run(value)
            finally:
                _measure(task, start, meter.end(task["name"], begin))
            job.value = value
        except BaseException as error:  # whatever a task raises is its result
            return without_own_frames(error)
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        from rhapsody.backends.local import packing, worker

        job = self._job
        # The unpickled function makes the call and returns a `CallResult`.
        order = call_spec(
            job.task,
            cores=job.request.cores,
            environment=job.environment(),
            directory=job.spill,
        )
        call, _ = packing.pack_call(job.task)
        return partial, (worker.execute, order, call.arguments)


class _Local(threading.local):
    """Event loop and meter of each thread of the executor. The loop is closed with its thread."""

    def __init__(self) -> None:
        self.loop = WorkerLoop()
        self.meter = Meter(shared=True)


_local = _Local()


def _run(coroutine: Any) -> Any:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _local.loop.run(coroutine)
    coroutine.close()
    raise RuntimeError(
        "the executor called a coroutine function on a thread with a running event loop; use an "
        "executor whose threads run no event loop"
    )
