"""Runs functions on an executor that the user brings.

It may keep calls in this process or send them to others: a call goes as it is
where nobody pickles it, and packs itself where somebody does. The executor is the
user's: it is not shut down here.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from functools import partial
from types import CoroutineType
from typing import Any

from rhapsody.backends.local.jobs import Job, no_environment
from rhapsody.context import task_context
from rhapsody.errors import TaskLostError, is_a, set_traceback
from rhapsody.sdk.calls import call_spec
from rhapsody.sdk.capture import recording
from rhapsody.sdk.loops import WorkerLoop, without_own_frames
from rhapsody.sdk.runner import CallResult


class ExecutorWorkers:
    """Hands functions to an executor.

    Args:
        deliver: Takes each job that has ended; called on any thread.
        executor: The user's executor.
        gpus: All the GPUs there are to give.
    """

    announces = False
    stoppable = False

    def __init__(
        self, deliver: Callable[[Job], object], executor: Executor, gpus: tuple[str, ...]
    ) -> None:
        self._deliver = deliver
        self._executor = executor
        self._gpus = gpus

    def run(self, job: Job) -> None:
        """Submits a call.

        Raises:
            TaskLostError: The executor is broken.
        """
        job.enter()
        try:
            job.handle = future = self._executor.submit(Call(job, self._gpus))
        except BrokenExecutor as error:
            raise self._lost(job, error) from error
        future.add_done_callback(partial(self._done, job))

    def cancel(self, job: Job) -> None:
        """Takes a call out of the executor's queue; one that has begun is only told."""
        job.cancelled = True
        if job.context is not None:
            job.context.request_cancel()
        if job.handle is not None:
            job.handle.cancel()

    def ended(self, job: Job) -> None:
        """Nothing to note."""

    def _done(self, job: Job, future: Future[Any]) -> None:
        try:
            reply = future.result()
        except BaseException as error:  # the executor's own trouble, or its cancellation
            job.error = (
                self._lost(job, error)
                if is_a(error, BrokenExecutor)
                else set_traceback(error, None)
            )
        else:
            if type(reply) is CallResult:
                job.worker = f"process {reply.pid}"
                job.take(reply)
            elif reply is not None:
                job.error = reply
        self._deliver(job)

    @staticmethod
    def _lost(job: Job, error: BaseException) -> TaskLostError:
        lost = TaskLostError(
            f"the executor lost task {job.task['name']!r}: {error} It stays broken: give the "
            "backend a new one, or use LocalExecutionBackend('process'), which replaces workers"
        )
        lost.__cause__ = error
        return lost


class Call:
    """One call, for an executor to make. Makes it in this process unless it is pickled.

    Args:
        job: The job.
        gpus: All the GPUs there are to give.
    """

    def __init__(self, job: Job, gpus: tuple[str, ...]) -> None:
        self._job = job
        self._gpus = gpus

    def __call__(self) -> BaseException | None:
        """Makes the call; what it raised, while what it returned is left in the job."""
        job = self._job
        task, context = job.task, job.context
        function = task["function"]
        assert function is not None
        assert context is not None
        job.worker = threading.current_thread().name
        try:
            if job.task.get("environment"):
                raise no_environment(job)
            with task_context(context), recording(job.recorder):
                value = function(*task["args"], **task["kwargs"])
                if type(value) is CoroutineType:
                    value = _run(value)
            job.value = value
        except BaseException as error:  # whatever a task raises is its result
            return without_own_frames(error)
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        from rhapsody.backends.local import packing, worker

        job = self._job
        # Whoever unpickles it makes the call and gets a `CallResult`.
        environment = job.environment(self._gpus)
        order = call_spec(
            job.task,
            cores=job.request.cores,
            environment=environment,
            directory=job.spill,
        )
        return partial, (worker.execute, order, packing.pack_call(job.task))


class _Local(threading.local):
    """A loop for each of the executor's threads, closed with the thread."""

    def __init__(self) -> None:
        self.loop = WorkerLoop()


_local = _Local()


def _run(coroutine: Any) -> Any:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _local.loop.run(coroutine)
    coroutine.close()
    raise RuntimeError("the executor called an asynchronous function on a thread that runs a loop")
