"""Runs functions in worker processes: pebble's pool, fed and watched.

Pebble sees to the workers: it replaces those that die, and stops one without
harm to the others. Here calls are packed off the engine's loop, the beginning and
the end of each are told to it, and a pool that broke as a whole is replaced. What
happens inside a worker is in `rhapsody.backends.local.worker`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from pebble import ProcessExpired, ProcessPool

from rhapsody.backends.local import groups, worker
from rhapsody.backends.local.aside import in_thread, start_thread
from rhapsody.backends.local.forks import LEFT, WorkerContext
from rhapsody.backends.local.jobs import Job, task_environment
from rhapsody.errors import BackendUnavailableError, TaskLostError, set_traceback

START_TIMEOUT = 60.0
"""Seconds until the first worker of a pool must have answered."""

ATTEMPTS = 3
"""How often a call that no worker has begun with is given to a new pool."""


class ProcessWorkers:
    """A pool of worker processes.

    Args:
        deliver: Takes each job that has ended; called on any thread.
        announced: Called on the loop with each job that a worker has begun with.
        count: How many workers.
        gpus: All the GPUs there are to give.
    """

    announces = True
    stoppable = True

    def __init__(
        self,
        deliver: Callable[[Job], object],
        announced: Callable[[Job], object],
        count: int,
        gpus: tuple[str, ...],
    ) -> None:
        self._deliver = deliver
        self._announced = announced
        self._count = count
        self._gpus = gpus
        self._numbers = itertools.count(1)
        self._running: dict[int, Job] = {}
        self._inbox: SimpleQueue[Job | None] = SimpleQueue()
        self._feeder: threading.Thread | None = None
        self._context: WorkerContext | None = None
        self._pools: dict[bool, ProcessPool] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pids: set[int] = set()
        self._stoppers: list[threading.Thread] = []
        self._reader: Connection | None = None
        self._writer: Connection | None = None
        self._stopping = False

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Starts the workers and waits for the first; blocks, so not on the loop's thread.

        Raises:
            BackendUnavailableError: No worker could be started.
        """
        self._loop = loop
        self._context = WorkerContext()
        self._context.start()
        self._reader, self._writer = self._context.Pipe(duplex=False)
        os.set_blocking(self._reader.fileno(), False)
        pool = self._pools[False] = self._new_pool(single=False)
        try:
            pool.schedule(os.getpid).result(START_TIMEOUT)
        except Exception as error:  # a pool that cannot start tells it in many ways
            raise BackendUnavailableError(
                f"no worker process could be started: {error!r}; does `import rhapsody` work in "
                "a new interpreter? LocalExecutionBackend('thread') needs no processes"
            ) from error

    def listen(self) -> None:
        """Begins to hear the workers. On the loop, after `open`."""
        assert self._loop is not None
        assert self._reader is not None
        self._loop.add_reader(self._reader.fileno(), self._hear)
        self._feeder = threading.Thread(target=self._feed, name="rhapsody-feeder", daemon=True)
        self._feeder.start()

    def run(self, job: Job) -> None:
        """Gives a job to the next worker that is free."""
        job.call = next(self._numbers)
        self._running[job.call] = job
        self._inbox.put(job)

    def cancel(self, job: Job) -> None:
        """Stops the worker that runs the job; another takes its place.

        Where no worker has said yet that it begins, it is stopped when it does.
        """
        job.cancelled = True
        if job.pid is not None:
            self._kill(job)

    def ended(self, job: Job) -> None:
        """Notes that a job has come back. On the loop."""
        self._running.pop(job.call, None)
        if job.request.gpus and job.pid is not None:
            self._forget(job.pid)  # its worker ends by itself

    async def close(self) -> None:
        """Ends the workers, whatever they do."""
        if self._context is None or self._loop is None:
            return
        self._stopping = True
        for job in self._running.values():
            job.cancelled = True
        self._inbox.put(None)
        await in_thread(self._close)
        if self._reader is not None and self._writer is not None:
            self._loop.remove_reader(self._reader.fileno())
            self._reader.close()
            self._writer.close()
            self._reader = self._writer = None
        running, self._running = self._running, {}
        for job in running.values():
            self._deliver(job)

    # On the loop.

    def _hear(self) -> None:
        """Reads which calls have begun."""
        assert self._reader is not None
        try:
            data = os.read(self._reader.fileno(), 4096 * worker.STARTED.size)
        except BlockingIOError:
            return
        for number, pid in worker.STARTED.iter_unpack(data):
            self._note(pid)
            job = self._running.get(number)
            if job is None:
                continue
            job.pid = pid
            job.worker = f"process {pid}"
            self._announced(job)
            if job.cancelled:
                self._kill(job)

    def _kill(self, job: Job) -> None:
        self._stoppers = [thread for thread in self._stoppers if thread.is_alive()]
        stop = partial(self._stop_worker, job)
        self._stoppers.append(start_thread(stop, f"rhapsody-stop-{job.pid}"))

    # On threads of their own.

    def _stop_worker(self, job: Job) -> None:
        # The worker's word that it has begun may overtake pebble's own; a call that is
        # cancelled before pebble knows would be told as ended while it still runs.
        while True:
            future: concurrent.futures.Future[Any] | None = job.handle
            if job.over:
                return
            if future is not None and (future.running() or future.done()):
                break
            time.sleep(0.001)
        if not future.cancel():
            return  # it has just ended
        # A cancelled future is done at once. When pebble has stopped the worker it tells
        # those who wait.
        concurrent.futures.wait([future])
        if job.pid is not None and not _alive(job.pid):  # else the call had just ended
            self._ended_worker(job.pid)
        self._deliver(job)

    def _ended_worker(self, pid: int) -> None:
        """Ends what a worker that is gone had started."""
        self._forget(pid)
        groups.send(pid, signal.SIGKILL)

    def _note(self, pid: int) -> None:
        self._pids.add(pid)
        groups.opened(pid)

    def _forget(self, pid: int) -> None:
        self._pids.discard(pid)
        groups.closed(pid)

    def _feed(self) -> None:
        while True:
            job = self._inbox.get()
            if job is None:
                return
            try:
                self._schedule(job)
            except BaseException as error:  # one job's problem must not end the feeder
                job.error = error
                self._deliver(job)
            del job  # not kept alive until the next one comes

    def _schedule(self, job: Job) -> None:
        if job.cancelled:
            self._deliver(job)
            return
        payload = worker.Parcel(worker.pack_call(job.task))
        order = worker.Order.of(
            job.task,
            job.call,
            spill=job.spill,
            cores=job.request.cores,
            environment=task_environment(job, self._gpus),
        )
        job.handle = future = self._pool_for(job).schedule(worker.serve, args=(order, payload))
        # Not with the job itself: pebble holds the last future until the next call ends.
        future.add_done_callback(partial(self._done, job.call))

    def _done(self, call: int, future: concurrent.futures.Future[Any]) -> None:
        job = self._running.get(call)
        if job is None or future.cancelled():
            return  # told already, or when the worker is gone
        try:
            reply: worker.Reply = future.result().open()
        except ProcessExpired as error:
            if error.pid is not None:
                self._ended_worker(error.pid)
            job.error = TaskLostError(
                f"the worker process of task {job.task['name']!r} {_end(error.exitcode)} "
                "while it ran the task"
            )
        except BrokenProcessPool as error:
            if self._may_repeat(job):
                self._inbox.put(job)
                return
            job.error = TaskLostError(
                f"the pool of worker processes broke while it had task {job.task['name']!r}: "
                f"{error}"
            )
            job.error.__cause__ = error
        except BaseException as error:  # the pool's own trouble with this call
            job.error = set_traceback(error, None)
        else:
            job.pid, job.worker = reply.pid, f"process {reply.pid}"
            worker.take(job, reply)
        self._deliver(job)

    def _may_repeat(self, job: Job) -> bool:
        """Whether no worker has begun with a call of a broken pool, and others may."""
        job.attempts += 1
        return not job.announced and not self._stopping and job.attempts < ATTEMPTS

    def _pool_for(self, job: Job) -> ProcessPool:
        """The pool for a call: GPU tasks have workers that serve one call and no more.

        A worker that has begun to use a GPU cannot be given another.
        """
        single = bool(job.request.gpus)
        pool = self._pools.get(single)
        if pool is not None and pool.active:
            return pool
        if pool is not None:  # it broke as a whole
            pool.stop()  # type: ignore[no-untyped-call]
            pool.join()
        pool = self._pools[single] = self._new_pool(single)
        return pool

    def _new_pool(self, single: bool) -> ProcessPool:
        assert self._context is not None
        return ProcessPool(
            max_workers=min(self._count, len(self._gpus)) if single else self._count,
            max_tasks=1 if single else 0,
            initializer=worker.begin,
            initargs=(self._writer,),
            context=self._context,
        )

    def _close(self) -> None:
        if self._feeder is not None:
            self._feeder.join()
        for pool in self._pools.values():
            pool.stop()  # type: ignore[no-untyped-call]
        for pid in tuple(self._pids):
            self._ended_worker(pid)
        for pool in self._pools.values():
            pool.join()
        self._pools = {}
        for job in self._running.values():  # pebble does not tell what it stopped with the pool
            future: concurrent.futures.Future[Any] | None = job.handle
            if future is not None and future.cancel():
                with suppress(RuntimeError):  # told already
                    future.set_running_or_notify_cancel()
        for thread in self._stoppers:
            thread.join()
        if self._context is not None:
            self._context.stop()


def _end(exit_code: int | None) -> str:
    """How a process ended, for people."""
    if exit_code is None or exit_code >= 0:
        return f"exited with code {0 if exit_code == LEFT else exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's by now
        return False
    return True
