"""Runs functions in worker processes: which worker gets which call, and what becomes of it.

Calls are packed, and what came of them is unpacked, on a thread beside the engine's loop
where that runs code of the objects themselves; the workers' sockets are read by the loop.
Workers are started when there is something to do, and replaced when they are gone.

Where calls are short, a worker is sent some ahead of time, which wait there for the slots of
the one before them. They are taken back when that one turns out long or its worker is gone.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import signal
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from itertools import zip_longest
from queue import SimpleQueue

from rhapsody.backends.local import packing
from rhapsody.backends.local.jobs import Job
from rhapsody.backends.local.packing import SMALL
from rhapsody.backends.local.shared_memory import Block
from rhapsody.backends.local.workers import Worker, WorkerContext
from rhapsody.errors import BackendUnavailableError, TaskLostError, describe_error
from rhapsody.sdk.calls import call_spec
from rhapsody.sdk.executables import memory_error, memory_group
from rhapsody.sdk.modules import REFERENCE, own_modules
from rhapsody.sdk.processes import kill_groups
from rhapsody.sdk.runner import CallResult, loads
from rhapsody.sdk.threads import Mailbox, in_thread, start_thread

log: logging.Logger = logging.getLogger(__name__)

START_TIMEOUT = 60.0
"""Seconds until a new worker must be ready."""

PACKER_GRACE = 1.0
"""Seconds that closing waits for objects that are being packed or unpacked."""

ATTEMPTS = 3
"""How many workers may be gone before one has begun with a call."""

AHEAD = 64
"""How many calls wait in a worker at most."""

SHORT = 0.005
"""Seconds of work that wait in a worker."""

LONG = 0.01
"""Seconds after which those that wait for a call are taken back."""

# Before multiprocessing's own, which was registered first and waits for workers to end.
atexit.register(kill_groups)


class ProcessWorkers:
    """Worker processes.

    All methods are for the loop's thread, but for `open`.

    Args:
        ended: Takes each job that has ended; called on the loop.
        announced: Takes each job that a worker has got, and which is next there; called on
            the loop.
        next_short: Gives the next job and its call, if it needs just what the given one has and
            `pack` could pack it, to wait in a worker for these slots; called on the loop.
        taken_back: Takes the jobs that have waited so, in their order; called on the loop.
        gpus: All the GPUs there are to give.
        grace: Seconds between SIGTERM and SIGKILL for a worker whose job is cancelled.
    """

    announces = True
    stoppable = True

    def __init__(
        self,
        ended: Callable[[Job], object],
        announced: Callable[[Job], object],
        next_short: Callable[[Job], tuple[Job, bytearray] | None],
        taken_back: Callable[[list[Job]], object],
        gpus: tuple[str, ...],
        grace: float,
    ) -> None:
        self._end = ended
        self._announced = announced
        self._next_short = next_short
        self._taken_back = taken_back
        self._gpus = gpus
        self._grace = grace
        self._jobs: set[Job] = set()
        self._functions = packing.Functions()
        self._seconds: float | None = None  # that a call takes, of late
        self._watch: asyncio.TimerHandle | None = None
        self._waiting: dict[Job, bytearray] = {}
        self._workers: set[Worker] = set()
        self._idle: list[Worker] = []
        self._starting = 0
        self._no_more = False  # workers can be started
        self._context: WorkerContext | None = None
        self._first: Worker | None = None
        self._packers: list[threading.Thread] = []  # those before the last are stuck
        self._packing: Job | None = None
        self._to_packer: SimpleQueue[tuple[Job, CallResult | None] | None] = SimpleQueue()
        self._stopping = False
        self._changed = asyncio.Event()

    def open(self) -> None:
        """Starts the first worker; blocks, and is called on a thread of its own.

        Raises:
            BackendUnavailableError: It could not be started.
        """
        self._context = WorkerContext()
        own_modules()  # finding them takes a while, so do it outside the loop
        memory_group()  # what was killed before does not count
        try:
            self._context.start()
            self._first = Worker(self._context, START_TIMEOUT)
        except Exception as error:
            raise BackendUnavailableError(
                f"no worker process could be started: {describe_error(error)}; does `import "
                f"rhapsody` work in a new interpreter, and is {tempfile.gettempdir()!r} (TMPDIR) a "
                "directory with a short path? LocalExecutionBackend('thread') needs no processes"
            ) from error

    def listen(self) -> None:
        """Begins to hear the workers, after `open`."""
        assert self._first is not None
        self._loop = asyncio.get_running_loop()
        self._from_packer: Mailbox[tuple[Job, bytearray | None]] = Mailbox(
            self._loop, self._came_back
        )
        self._new: Mailbox[Worker | Exception] = Mailbox(self._loop, self._started)
        self._start_packer()
        self._take_in(self._first)

    def run(self, job: Job) -> None:
        """Gives a job to the next worker that is free."""
        if self.pack(job):
            self._waiting[job] = self.frame(job)
            self._jobs.add(job)
            self._hand_out()
        else:
            self._jobs.add(job)
            self._to_packer.put((job, None))

    def pack(self, job: Job) -> bool:
        """Packs a job's call at once, if it is small and that runs no code of others."""
        if job.call is None:
            job.call = self._functions.pack(job.task)
        return job.call is not None

    def cancel(self, job: Job) -> None:
        """Stops the worker that has begun with the job; another takes its place.

        A job that waits in a worker is taken back only.
        """
        at: Worker | None = job.handle
        if at is not None:
            first = self._take_back(at)
            if first is not None and first is not job:
                self.run(first)
            if job.waits:
                return
            at.read()
            while job.handle is at and at.jobs[0] is not job and at.read():
                pass  # those before it have replied
            if job.over:
                return
            if job.handle is at:
                self._give_back(at.take_back())  # what was sent meanwhile
        job.cancelled = True
        if job.handle is not None:
            job.handle.stop(self._grace)  # and when it is gone the job has ended
        else:
            self._waiting.pop(job, None)
            if job is self._packing:  # which may take for ever, and others wait
                self._start_packer()
            self._end(job)

    def ended(self, job: Job) -> None:
        """Notes that a job has ended."""
        self._jobs.discard(job)
        job.block = None

    def hold(self) -> None:
        """Takes back what has not begun, and begins nothing more; `close` follows."""
        self._stopping = True
        if self._watch is not None:
            self._watch.cancel()
        for each in self._workers:
            self._take_back(each)

    async def close(self) -> None:
        """Ends the workers, whatever they do."""
        if self._context is None:
            return
        if not self._packers and self._first is not None:
            self.listen()  # to its end
        self._stopping = True
        self._waiting.clear()
        for each in self._workers:
            each.kill()
        while self._workers or self._starting:
            self._changed.clear()
            await self._changed.wait()
        self._to_packer.put(None)
        for packer in self._packers[-1:]:
            await in_thread(partial(packer.join, PACKER_GRACE), or_here=True)
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
        """Packs calls and unpacks replies on a thread, until another takes its place."""
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
                except BaseException as error:  # packing runs the objects' own code
                    job.error = error
            self._from_packer.put((job, call))
            del item, job, reply, call  # not kept until the next one comes
            if self._packers[-1] is not threading.current_thread():
                return
            self._packing = None
        self._to_packer.put(None)  # for another

    def frame(self, job: Job) -> bytearray:
        """The call of a job that is packed, as it is sent."""
        assert job.call is not None
        environment = job.environment(self._gpus)
        job.modules = modules = own_modules()
        order = call_spec(
            job.task,
            cores=job.request.cores,
            environment=environment,
            directory=job.spill,
            modules=modules and modules[:REFERENCE],
        )
        return packing.frame(order, job.call)

    def _came_back(self, item: tuple[Job, bytearray | None]) -> None:
        """Takes from the packer a call that is to be made, or a job that has ended."""
        job, call = item
        if job.over or self._stopping:
            return
        if call is None:
            self._end(job)
        else:
            self._waiting[job] = call
            self._hand_out()

    def _hand_out(self) -> None:
        """Gives calls to idle workers, and starts one for each that is left."""
        if self._stopping:
            return
        while self._idle and (job := self._next()) is not None:
            self._give(job, self._idle.pop())
        if self._no_more and self._busy():
            return
        for _ in range(len(self._waiting) - self._starting):
            self._starting += 1
            try:
                start_thread(self._start, "rhapsody-starter")
            except RuntimeError as error:  # there are too many threads
                self._new.put(error)

    def _busy(self) -> bool:
        """Whether there are workers that will be free or gone."""
        return len(self._idle) < len(self._workers)

    def _next(self) -> Job | None:
        """The next job that a worker which has made calls may have.

        One that has begun to use a GPU cannot be given another.
        """
        return next((job for job in self._waiting if not job.request.gpus), None)

    def _give(self, job: Job, to: Worker) -> None:
        self._send(job, self._waiting.pop(job), to)
        self._announced(job)

    def _send(self, job: Job, call: bytearray, to: Worker) -> None:
        to.send(job, call)
        job.handle, job.pid, job.worker = to, to.pid, to.title

    def _replied(self, by: Worker, reply: CallResult) -> None:
        if not by.jobs or by.jobs[0].cancelled:
            return  # which ends with its worker
        job = by.jobs.popleft()
        job.handle = None
        seconds = min(by.seconds, LONG)
        self._seconds = seconds if self._seconds is None else (3 * self._seconds + seconds) / 4
        heir = by.jobs[0] if by.jobs else None
        job.successor = heir  # which is next, in the slots of this one
        if job.request.gpus:
            by.finish(self._grace)
        elif heir is None and not by.over:
            self._idle.append(by)
        if reply.plain and len(reply.payload) <= SMALL:
            job.take(reply)
            self._end(job)
        else:
            self._to_packer.put((job, reply))
        if heir is not None:
            self._announced(heir)
        if self._waiting:
            self._hand_out()
        self._send_ahead(by)

    def _send_ahead(self, to: Worker) -> None:
        """Sends a worker calls that wait there, where calls are short."""
        if self._stopping or self._seconds is None or to.over or not to.jobs:
            return
        most = min(AHEAD, int(SHORT / max(self._seconds, SHORT / AHEAD)))
        if 2 * (len(to.jobs) - 1) > most:
            return
        while len(to.jobs) <= most and (found := self._next_short(to.jobs[0])) is not None:
            job, call = found
            self._jobs.add(job)
            self._send(job, call, to)
        if len(to.jobs) > 1 and self._watch is None:
            self._watch = self._loop.call_later(LONG, self._take_back_from_long)

    def _take_back_from_long(self) -> None:
        """Takes back the calls that wait for a long one."""
        self._watch = None
        now = self._loop.time()
        for each in [each for each in self._workers if len(each.jobs) > 1]:
            if max(now - each.since, (len(each.jobs) - 1) * each.seconds) >= LONG:
                first = self._take_back(each)
                if first is not None:
                    self.run(first)
            elif self._watch is None:
                self._watch = self._loop.call_later(LONG, self._take_back_from_long)

    def _take_back(self, at: Worker) -> Job | None:
        """Takes back the calls that a worker has not begun.

        Returns:
            The first, which has its slots, where it has not even begun that one.
        """
        jobs, first = at.take_back(), None
        if jobs and not at.jobs:
            first = jobs.pop(0)
            first.handle = None
            if not at.over:
                self._idle.append(at)
        self._give_back(jobs)
        return first

    def _give_back(self, jobs: list[Job]) -> None:
        """Puts jobs that have waited in a worker where they were."""
        for job in jobs:
            job.handle = None
        self._jobs.difference_update(jobs)
        if jobs:
            self._taken_back(jobs)

    # Workers.

    def _start(self) -> None:
        """Starts a worker, on a thread of its own.

        No asyncio task waits for it, since programs that end cancel every task there is.
        """
        assert self._context is not None
        try:
            new: Worker | Exception = Worker(self._context, START_TIMEOUT)
        except Exception as error:  # a process that cannot start tells it in many ways
            new = error
        self._new.put(new)

    def _started(self, new: Worker | Exception) -> None:
        """Has a new worker take the call that has waited longest."""
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
        new.attend(self._loop, self._replied, self._gone)
        if self._stopping:
            new.kill()
        elif self._waiting:
            self._give(next(iter(self._waiting)), new)
        else:
            self._idle.append(new)

    def _not_started(self, error: Exception) -> None:
        if not self._waiting:
            return
        if self._busy():
            if not self._no_more:
                log.warning(
                    "no more worker processes can be started, calls wait for those there are: %s",
                    describe_error(error),
                )
            self._no_more = True
            return
        job = next(iter(self._waiting))
        job.attempts += 1
        if job.attempts < ATTEMPTS:
            return
        del self._waiting[job]
        job.error = TaskLostError(
            f"no worker process could be started for task {job.task['name']!r}: "
            f"{describe_error(error)}"
        )
        self._end(job)

    def _gone(self, former: Worker, code: int | None, unbegun: list[Job]) -> None:
        self._workers.discard(former)
        if former in self._idle:
            self._idle.remove(former)
        self._changed.set()
        if self._stopping:
            return
        self._no_more = False
        self._lost(former, code, unbegun)
        self._hand_out()

    def _lost(self, former: Worker, code: int | None, unbegun: list[Job]) -> None:
        """Sees to the jobs of a worker that is gone."""
        begun, first = list(former.jobs), None
        if unbegun and not begun:
            first = unbegun.pop(0)
            first.handle = None
        self._give_back(unbegun)
        # Mostly one: those before the last have replied, if with nonsense.
        for job, heir in zip_longest(begun, begun[1:]):
            job.handle, job.successor = None, heir
            self._end_lost(job, code)
        if first is None:
            return
        first.attempts += 1
        if first.cancelled or first.attempts >= ATTEMPTS:
            self._end_lost(first, code)
        else:
            self.run(first)

    def _end_lost(self, job: Job, code: int | None) -> None:
        """Ends the job of a worker that is gone."""
        if not job.cancelled:
            job.error = memory_error(job.task, code) or TaskLostError(
                f"the worker process of task {job.task['name']!r} {_how(code)} "
                "while it ran the task"
            )
        self._end(job)


def _how(exit_code: int | None) -> str:
    """How a process ended, for people."""
    if exit_code is None or exit_code >= 0:
        return f"exited with code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    if name == "SIGKILL":
        name += " (out of memory, or has the task closed the worker's descriptors?)"
    return f"was killed by {name}"
