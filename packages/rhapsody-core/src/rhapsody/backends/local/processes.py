"""Pool of worker processes: assigns calls to workers.

A call is pickled, waits for an idle worker and runs in the worker, and the reply is unpickled.
Small values of built-in types are pickled and unpickled on the loop. All other values are pickled
and unpickled on a separate thread, the packer, because this may run code of the objects' classes,
which may take arbitrarily long. The sockets of the workers are read on the loop (see `workers`). A
worker is started when a call is waiting and no worker is idle.

If calls are short, the time from a reply to the start of the next call is longer than the call
itself. So the pool sends short calls ahead, up to 5 ms of work: they wait in the worker until
the calls before them have ended. If a call takes longer than expected, the calls behind it are
withdrawn and return to their places in the queue. A pipe with the numbers of the calls ensures that
a call is either started or withdrawn: the worker reads a number to start the call, or the program
reads it to withdraw the call, and each number can be read only once. So if a worker is killed, only
the call that it was running is lost, and the others run on another worker.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import signal
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable
from importlib.util import find_spec
from itertools import zip_longest
from queue import SimpleQueue

from rhapsody.backends.local import packing
from rhapsody.backends.local.jobs import JobRunner, LocalJob
from rhapsody.backends.local.packing import MAX_INLINE_SIZE
from rhapsody.backends.local.shared_memory import Block
from rhapsody.backends.local.worker import WarningFilters
from rhapsody.backends.local.workers import Worker, WorkerContext
from rhapsody.errors import BackendUnavailableError, TaskLostError, describe_error
from rhapsody.sdk.executables import (
    THREAD_COUNTS,
    memory_error,
    memory_group,
    thread_count,
)
from rhapsody.sdk.modules import own_modules
from rhapsody.sdk.processes import kill_groups
from rhapsody.sdk.runner import CallResult, loads
from rhapsody.sdk.threads import Mailbox, in_thread, start_thread

log: logging.Logger = logging.getLogger(__name__)

START_TIMEOUT = 60.0
"""Number of seconds within which a new worker must be ready."""

EXIT_GRACE = 1.0
"""Number of seconds after which `close` kills idle workers that have not exited."""

CLOSE_GRACE = 10.0
"""Number of seconds after which `close` kills idle workers that still close worker values."""

PACKER_GRACE = 1.0
"""Number of seconds for which `close` waits for the packer thread."""

MAX_ATTEMPTS = 3
"""Number of workers that are tried for a call. If none of them starts the call, the call fails."""

MAX_QUEUED_CALLS = 64
"""Maximum number of calls that wait in a worker."""

MAX_QUEUED_SECONDS = 0.005
"""Number of seconds of work, as estimated from earlier calls, that may wait in a worker."""

RECALL_AFTER = 0.01
"""Number of seconds that a call may take before the calls that wait behind it are withdrawn."""

# Runs before the handler of multiprocessing, which was registered earlier and joins the workers.
atexit.register(kill_groups)


class ProcessWorkers(JobRunner):
    """Runner of functions in worker processes.

    All methods except `open` must be called on the loop. All callbacks are called on the loop.

    Args:
        ended: Called with each job that has ended.
        announced: Called with each job when no other call is before it in its worker.
        next_short: Called with a job that a worker is running. Returns the next job in the queue
            and its encoded call if the job can wait for the same slots and `pack` can pack it,
            otherwise `None`.
        withdrawn: Called with the jobs that were withdrawn from a worker, in order.
        queued: Called without arguments. Returns the number of jobs in the queue.
        grace: Number of seconds between SIGTERM and SIGKILL for a worker whose job is canceled.
        size: Number of workers, including idle ones, at which a new worker replaces an idle one.
    """

    announces = True
    stoppable = True

    def __init__(
        self,
        ended: Callable[[LocalJob], object],
        announced: Callable[[LocalJob], object],
        next_short: Callable[[LocalJob], tuple[LocalJob, bytearray] | None],
        withdrawn: Callable[[list[LocalJob]], object],
        queued: Callable[[], int],
        grace: float,
        size: int,
    ) -> None:
        self._end = ended
        self._announced = announced
        self._next_short = next_short
        self._withdrawn = withdrawn
        self._queued = queued
        self._grace = grace
        self._size = size
        # With threadpoolctl, a worker changes the number of threads of its libraries.
        self._adjustable = find_spec("threadpoolctl") is not None
        self._jobs: set[LocalJob] = set()
        self._functions = packing.FunctionCache()
        self._specs = packing.Specs()
        self._filters = WarningFilters()
        self._seconds: float | None = None  # moving average of the duration of a call
        # Average seconds to build worker values, and of the calls that use them, by keys.
        self._costs: dict[frozenset[bytes], tuple[float, float]] = {}
        self._patience: dict[LocalJob, float] = {}  # times when jobs stop waiting for a value
        self._watch: asyncio.TimerHandle | None = None
        self._waiting: dict[LocalJob, bytearray] = {}
        self._workers: set[Worker] = set()
        self._idle: list[Worker] = []
        self._starting = 0
        self._cannot_start = False  # the last attempt to start a worker failed
        self._context: WorkerContext | None = None
        self._first: Worker | None = None
        self._packers: list[threading.Thread] = []  # those before the last are stuck
        self._packing: LocalJob | None = None
        self._to_packer: SimpleQueue[tuple[LocalJob, CallResult | None] | None] = SimpleQueue()
        self._stopping = False
        self._changed = asyncio.Event()

    def open(self) -> None:
        """Start the first worker. Blocks, so it must not be called on the loop.

        Raises:
            BackendUnavailableError: The worker could not be started.
        """
        self._context = WorkerContext()
        own_modules()  # finding them takes long, so it is done here and not on the loop
        memory_group()  # so that earlier kills are not counted
        try:
            self._context.start()
            self._first = Worker(self._context, START_TIMEOUT)
        except Exception as error:
            raise BackendUnavailableError(
                f"cannot start a worker process: {describe_error(error)}. Check that `import "
                f"rhapsody` works in a new interpreter and that {tempfile.gettempdir()!r} (TMPDIR) "
                "is a directory with a short path, or use LocalExecutionBackend('thread')"
            ) from error

    def listen(self) -> None:
        """Attach the pool to the running loop. Called after `open`."""
        assert self._first is not None
        self._loop = asyncio.get_running_loop()
        self._from_packer: Mailbox[tuple[LocalJob, bytearray | None]] = Mailbox(
            self._loop, self._came_back
        )
        self._new: Mailbox[Worker | Exception] = Mailbox(self._loop, self._started)
        self._start_packer()
        self._take_in(self._first)

    def run(self, job: LocalJob) -> None:
        """Run a job on the next idle worker."""
        if self.pack(job):
            self._waiting[job] = self.frame(job)
            self._jobs.add(job)
            self._hand_out()
        else:
            self._jobs.add(job)
            self._to_packer.put((job, None))

    def pack(self, job: LocalJob) -> bool:
        """Pack a job's call, unless the call is large or packing it may run other code.

        Returns:
            True if the call is packed, otherwise False.
        """
        if job.call is None:
            job.call = self._functions.pack(job.task)
        return job.call is not None

    def cancel(self, job: LocalJob) -> None:
        """Cancel a job.

        If a worker is running the job, the worker is stopped. If the job waits in a worker behind
        another job, it is only returned to the queue: the caller must then withdraw it and end it.
        Otherwise the job ends immediately.
        """
        at: Worker | None = job.handle
        if at is not None:
            first = self._withdraw(at)
            if first is not None and first is not job:
                self.run(first)
            if job.waits:
                return
            at.read()
            while job.handle is at and at.jobs[0] is not job and at.read():
                pass  # the jobs before this one have sent their replies
            if job.over:
                return
            if job.handle is at:
                self._give_back(at.withdraw())  # calls that were sent meanwhile
        job.cancelled = True
        if job.handle is not None:
            job.handle.stop(self._grace)  # the job ends with its worker
        else:
            self._waiting.pop(job, None)
            self._patience.pop(job, None)
            if job is self._packing:  # packing this job must not delay other jobs
                self._start_packer()
            self._end(job)

    def close_value(self, key: bytes) -> None:
        """Close a worker value in the workers that have it, after the calls sent to them."""
        for each in self._workers:
            each.close_value(key)

    def ended(self, job: LocalJob) -> None:
        """Remove an ended job from the pool."""
        self._jobs.discard(job)
        job.block = None

    def stop_starting(self) -> None:
        """Withdraw all calls that have not started, and start no others. Called before `close`."""
        self._stopping = True
        if self._watch is not None:
            self._watch.cancel()
        for each in self._workers:
            self._withdraw(each)

    async def close(self) -> None:
        """Stop the workers, wait until they have ended, and end all jobs as canceled.

        Idle workers exit, so that they remove the semaphores of `multiprocessing` that functions
        have created, such as those of tqdm. The others are killed.
        """
        if self._context is None:
            return
        if not self._packers and self._first is not None:
            self.listen()  # to notice the end of the first worker
        self._stopping = True
        self._waiting.clear()
        for each in self._workers:
            if each in self._idle:
                each.finish(CLOSE_GRACE if each.values else EXIT_GRACE)
            else:
                each.kill()
        while self._workers or self._starting:
            self._changed.clear()
            await self._changed.wait()
        self._to_packer.put(None)
        for packer in self._packers[-1:]:
            await in_thread(packer.join, PACKER_GRACE, or_here=True)
        await in_thread(self._context.stop, or_here=True)
        if not any(packer.is_alive() for packer in self._packers):
            self._context.memory.close()
        self._context = None
        for job in tuple(self._jobs):
            job.cancelled = True
            self._end(job)

    # Calls.

    def _start_packer(self) -> None:
        packer = threading.Thread(target=self._pack, name="rhapsody-packer", daemon=True)
        self._packers.append(packer)
        packer.start()

    def _pack(self) -> None:
        """Pack calls and unpack replies on this thread, until another thread replaces this one."""
        assert self._context is not None
        memory = self._context.memory
        while (item := self._to_packer.get()) is not None:
            job, reply = item
            self._packing = job
            call = None
            if reply is not None:
                job.take(reply, Block.load if type(reply.payload) is Block else loads)
            else:
                try:
                    job.call, job.block = packing.pack_call(job.task, memory)
                    call = self.frame(job)
                    job.call = None
                except BaseException as error:  # pickling runs the objects' own code
                    job.error = error
            self._from_packer.put((job, call))
            del item, job, reply, call  # release the values before waiting
            if self._packers[-1] is not threading.current_thread():
                return
            self._packing = None
        self._to_packer.put(None)  # for the next packer

    def frame(self, job: LocalJob) -> bytearray:
        """Encode a job's packed call for the worker."""
        job.modules = own_modules()
        job.filters = self._filters.packed()
        return self._specs.frame(job)

    def _came_back(self, item: tuple[LocalJob, bytearray | None]) -> None:
        """Handle a job from the packer: the job has ended, or its call has been packed."""
        job, call = item
        if job.over or self._stopping:
            return
        if call is None:
            self._end(job)
        else:
            self._waiting[job] = call
            self._hand_out()

    def _hand_out(self) -> None:
        """Send waiting calls to idle workers, and start a worker for each remaining call."""
        if self._stopping:
            return
        while self._idle and (match := self._next()) is not None:
            job, worker = match
            self._idle.remove(worker)
            self._give(job, worker)
        if self._cannot_start and self._busy():
            return
        ready = self._ready()
        for job in ready:
            if job.request.gpus:
                self._release(job.gpus or ())
        for _ in range(len(ready) - self._starting):
            if self._idle and len(self._workers) + self._starting >= self._size:
                self._idle.pop(0).finish(self._grace)
            self._starting += 1
            try:
                start_thread(self._start, "rhapsody-starter")
            except RuntimeError as error:  # too many threads
                self._new.put(error)

    def _ready(self) -> Collection[LocalJob]:
        """Return the waiting jobs, except those that wait for a worker with their worker values."""
        if not self._costs:
            return self._waiting
        return [job for job in self._waiting if not self._waits_for_value(job)]

    def _release(self, gpus: Iterable[str]) -> None:
        """Let idle workers exit that are bound to some GPUs, because another worker needs them."""
        for worker in [each for each in self._idle if {*gpus}.intersection(each.gpus or ())]:
            self._idle.remove(worker)
            worker.finish(self._grace)

    def _busy(self) -> bool:
        """Return True if a worker is running a call."""
        return len(self._idle) < len(self._workers)

    def _next(self) -> tuple[LocalJob, Worker] | None:
        """Return the next waiting job that an idle worker can run, and the worker, or `None`.

        Jobs that request GPUs need a new worker, or one that is bound to the same GPUs, because a
        process that has used CUDA cannot change its devices. Jobs with another number of threads
        than the calls that the worker has run need a new one, too, because numeric libraries read
        this number only when they are loaded.
        """
        for job in self._waiting:
            threads, gpus = self._threads(job), job.gpus if job.request.gpus else None
            keys, first = _keys(job), None
            for worker in reversed(self._idle):
                if worker.gpus == gpus and (worker.threads is None or worker.threads == threads):
                    if keys <= worker.values:
                        return job, worker
                    first = first or worker
            if first is not None and not self._waits_for_value(job):
                return job, first
        return None

    def _waits_for_value(self, job: LocalJob) -> bool:
        """Return True if a job should wait for a busy worker that has built its worker values.

        This is so if all jobs in the queue could run on such workers in less time than another
        worker would need to build the values.
        """
        keys = _keys(job)
        if keys not in self._costs:
            return False
        threads, gpus = self._threads(job), job.gpus if job.request.gpus else None
        able = [
            worker
            for worker in self._workers
            if worker.gpus == gpus and worker.threads == threads and _is_using(worker, keys)
        ]
        build, call = self._costs[keys]
        if not able or (1 + len(self._waiting) + self._queued()) * call > build * len(able):
            return False
        if job not in self._patience:  # a call may take longer than the others did
            self._patience[job] = self._loop.time() + build
            self._loop.call_later(build, self._hand_out)
        return self._loop.time() < self._patience[job]

    def _threads(self, job: LocalJob) -> object:
        """Return the thread counts of a job's numeric libraries, as far as a worker is bound to it.

        Jobs for which this is equal can run in the same worker.
        """
        variables = job.task.get("environment")
        if variables and any(own := [variables.get(name) for name in THREAD_COUNTS]):
            return own
        cores = thread_count(job.request.cores)
        return -1 if cores and self._adjustable else cores

    def _measure(self, keys: frozenset[bytes], reply: CallResult) -> None:
        """Note how long a call took that used worker values, and how long it built them."""
        if reply.interval is None:
            return
        begin, end = reply.interval
        known = self._costs.get(keys)
        built: float | None = (reply.usage or {}).get("build_seconds")
        if known is not None:
            self._costs[keys] = max(known[0], built or 0.0), (3 * known[1] + end - begin) / 4
        elif built is not None:
            self._costs[keys] = built, end - begin

    def _give(self, job: LocalJob, to: Worker) -> None:
        self._patience.pop(job, None)
        if to.threads is None:
            to.threads = self._threads(job)
        if keys := _keys(job):
            to.values |= keys
            if job.request.gpus:
                to.gpus = job.gpus
        self._send(job, self._waiting.pop(job), to)
        self._announced(job)

    def _send(self, job: LocalJob, call: bytearray, to: Worker) -> None:
        to.send(job, call)
        job.handle, job.worker = to, to.title

    def _replied(self, by: Worker, reply: CallResult) -> None:
        if not by.jobs or by.jobs[0].cancelled:
            return  # the job ends with its worker
        job = by.jobs.popleft()
        job.handle = None
        seconds = min(by.seconds, RECALL_AFTER)
        self._seconds = seconds if self._seconds is None else (3 * self._seconds + seconds) / 4
        successor = by.jobs[0] if by.jobs else None
        job.successor = successor  # runs next, in the slots of this job
        if keys := _keys(job):
            self._measure(keys, reply)
        if job.request.gpus and by.gpus is None:
            by.finish(self._grace)
        elif successor is None and not by.over:
            self._idle.append(by)
        if reply.plain and len(reply.payload) <= MAX_INLINE_SIZE:
            job.take(reply)
            self._end(job)
        else:
            self._to_packer.put((job, reply))
        if successor is not None:
            self._announced(successor)
        if self._waiting:
            self._hand_out()
        self._send_ahead(by)

    def _send_ahead(self, to: Worker) -> None:
        """Send further calls to a busy worker if recent calls were short."""
        if self._stopping or self._seconds is None or to.over or not to.jobs:
            return
        most = min(
            MAX_QUEUED_CALLS,
            int(MAX_QUEUED_SECONDS / max(self._seconds, MAX_QUEUED_SECONDS / MAX_QUEUED_CALLS)),
        )
        if 2 * (len(to.jobs) - 1) > most:
            return
        while len(to.jobs) <= most and (found := self._next_short(to.jobs[0])) is not None:
            job, call = found
            self._jobs.add(job)
            self._send(job, call, to)
        if len(to.jobs) > 1 and self._watch is None:
            self._watch = self._loop.call_later(RECALL_AFTER, self._withdraw_behind_long)

    def _withdraw_behind_long(self) -> None:
        """Withdraw the calls that wait behind a long call."""
        self._watch = None
        now = self._loop.time()
        for each in [each for each in self._workers if len(each.jobs) > 1]:
            if max(now - each.since, (len(each.jobs) - 1) * each.seconds) >= RECALL_AFTER:
                first = self._withdraw(each)
                if first is not None:
                    self.run(first)
            elif self._watch is None:
                self._watch = self._loop.call_later(RECALL_AFTER, self._withdraw_behind_long)

    def _withdraw(self, at: Worker) -> LocalJob | None:
        """Withdraw the calls that a worker has not started.

        Returns:
            The first of the worker's jobs if it has not started; this job keeps its slots.
            Otherwise `None`.
        """
        jobs, first = at.withdraw(), None
        if jobs and not at.jobs:
            first = jobs.pop(0)
            first.handle = None
            if not at.over:
                self._idle.append(at)
        self._give_back(jobs)
        return first

    def _give_back(self, jobs: list[LocalJob]) -> None:
        """Return jobs that were waiting in a worker to the queue."""
        for job in jobs:
            job.handle = None
        self._jobs.difference_update(jobs)
        if jobs:
            self._withdrawn(jobs)

    # Workers.

    def _start(self) -> None:
        """Start a worker. Runs on a separate thread.

        This is not an asyncio task, because `asyncio.run` cancels all tasks when it ends.
        """
        assert self._context is not None
        try:
            new: Worker | Exception = Worker(self._context, START_TIMEOUT)
        except Exception as error:  # starting a process can fail in many ways
            new = error
        self._new.put(new)

    def _started(self, new: Worker | Exception) -> None:
        """Add a new worker, or handle the error that starting it raised."""
        self._starting -= 1
        if isinstance(new, Worker):
            self._take_in(new)
        else:
            self._not_started(new)
        if not self._stopping:
            self._hand_out()
        self._changed.set()

    def _take_in(self, new: Worker) -> None:
        self._workers.add(new)
        new.attend(self._loop, self._replied, self._worker_ended)
        if self._stopping:
            new.kill()
        elif ready := self._ready():
            self._give(next(iter(ready)), new)
        else:
            self._idle.append(new)

    def _not_started(self, error: Exception) -> None:
        if not self._waiting:
            return
        if self._busy():
            if not self._cannot_start:
                log.warning(
                    "cannot start more worker processes; calls wait for the existing ones: %s",
                    describe_error(error),
                )
            self._cannot_start = True
            return
        job = next(iter(self._waiting))
        job.attempts += 1
        if job.attempts < MAX_ATTEMPTS:
            return
        del self._waiting[job]
        job.error = TaskLostError(
            f"cannot start a worker process for task {job.task['name']!r}: {describe_error(error)}"
        )
        self._end(job)

    def _worker_ended(self, former: Worker, code: int | None, unstarted: list[LocalJob]) -> None:
        self._workers.discard(former)
        if former in self._idle:
            self._idle.remove(former)
        self._changed.set()
        if self._stopping:
            return
        self._cannot_start = False
        self._worker_lost(former, code, unstarted)
        self._hand_out()

    def _worker_lost(self, former: Worker, code: int | None, unstarted: list[LocalJob]) -> None:
        """End or requeue the jobs of a worker that has ended."""
        started, first = list(former.jobs), None
        if unstarted and not started:
            first = unstarted.pop(0)
            first.handle = None
        self._give_back(unstarted)
        # Usually one call had started. Several remain only if the worker sent an invalid reply.
        for job, successor in zip_longest(started, started[1:]):
            job.handle, job.successor = None, successor
            self._end_lost(job, code)
        if first is None:
            return
        first.attempts += 1
        if first.cancelled or first.attempts >= MAX_ATTEMPTS:
            self._end_lost(first, code)
        else:
            self.run(first)

    def _end_lost(self, job: LocalJob, code: int | None) -> None:
        """End the job that a worker was running when it ended."""
        if not job.cancelled:
            job.error = memory_error(job.task, code) or TaskLostError(
                f"the worker process of task {job.task['name']!r} {_describe_exit(code)} "
                "while running the task"
            )
        self._end(job)


def _keys(job: LocalJob) -> frozenset[bytes]:
    """Return the keys of the worker values that a job uses."""
    values = job.task.get("worker_values")
    return _NO_KEYS if values is None else values.keys


_NO_KEYS: frozenset[bytes] = frozenset()


def _is_using(worker: Worker, keys: frozenset[bytes]) -> bool:
    """Return True if a worker is running a call that uses values which it has built."""
    if worker.over or not worker.jobs:
        return False
    values = worker.jobs[0].task.get("worker_values")
    return values is not None and keys <= values.keys and not values.is_building


def _describe_exit(exit_code: int | None) -> str:
    """Return a description of a process's exit, such as "exited with code 1"."""
    if exit_code is None or exit_code >= 0:
        return f"exited with code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    if name == "SIGKILL":
        name += " (possibly out of memory, or the task closed the worker's descriptors)"
    return f"was killed by {name}"
