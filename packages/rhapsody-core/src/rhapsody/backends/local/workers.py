"""Worker processes as the program sees them, and the fork server that starts them.

Calls are sent through a socket, and replies come back. A worker makes one call after another;
calls that it has not started can be taken back. `rhapsody.backends.local.worker` runs in the
worker; `rhapsody.backends.local.processes` decides which worker receives which call.

The server is a small process that holds only what workers need. Python's own fork server is not
enough: its workers import the main program again, which breaks every program without an `if
__name__ == "__main__"` guard and is not needed where functions travel by value; it stays until the
program ends; and Ctrl-C while it starts makes it print a traceback.
"""

from __future__ import annotations

import asyncio
import io
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, popen_forkserver, process, reduction, resource_tracker, util
from multiprocessing.context import ForkServerContext, ForkServerProcess, set_spawning_popen
from typing import Any

from rhapsody.backends.local.jobs import Job
from rhapsody.backends.local.shared_memory import Block, ProgramMemory
from rhapsody.backends.local.worker import (
    BLOCK,
    LENGTHS,
    NUMBER,
    START,
    handle_log,
    log_levels,
    modules_frame,
    work,
)
from rhapsody.errors import describe_error
from rhapsody.sdk.processes import forget_group, register_group, signal_group
from rhapsody.sdk.runner import CallResult

AT_ONCE = 1 << 18
"""Bytes that are read from a worker in one go."""

HEAD, PAYLOAD = 1 << 28, 1 << 48
"""Bytes that the two parts of a message never have."""

NUMBERS = 1 << 32

PIPE = 1 << 16
"""Bytes of numbers that are read in one go: more than a pipe holds."""

NOTHING = memoryview(b"")

log: logging.Logger = logging.getLogger(__name__)


class Worker:
    """Starts a worker process and waits until it can take a call; blocks.

    All else is for the loop's thread.

    Args:
        context: What starts it.
        timeout: Seconds that it may take.

    Attributes:
        pid: Its process id, and the id of its process group.
        title: What it is called for people.
        jobs: Those whose calls it was sent, and whose replies have not come, in this order.
        since: When the call of the first of them became the first, by the loop's clock.
        seconds: How long the calls of the last replies took, on average.
        over: It has been told to end, or has ended.

    Raises:
        OSError: The process could not be started, or was not ready in time.
        EOFError: It ended before it was ready.
    """

    def __init__(self, context: WorkerContext, timeout: float) -> None:
        self.jobs: deque[Job] = deque()
        self.since: float = 0.0
        self.seconds: float = 0.0
        self.over: bool = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._killing: asyncio.TimerHandle | None = None
        self._modules: bytes | None = None  # the last ones sent to it
        self._number = 0
        self._numbers = b""  # of calls that wait to be sent
        self._calls: list[bytearray] = []
        self._unsent = NOTHING  # of what was begun to be sent
        self._buffer = memoryview(bytearray(AT_ONCE))  # to make one each time takes long
        self._received = bytearray()
        self._replies: deque[CallResult] = deque()
        self._makes_sense = True
        self._memory = context.memory
        self._offer()
        with context.launching():
            # Holds the numbers of calls that were sent, until the worker begins with them.
            self._unbegun, self._sent = context.Pipe(duplex=False)
            os.set_blocking(self._unbegun.fileno(), False)
            self._socket, theirs = socket.socketpair()
            arguments = theirs, self._unbegun, log_levels(), self._memory
            self._process = context.Process(target=work, args=arguments)
            try:
                with theirs:
                    self._process.start()
            except BaseException:
                self._discard()
                raise
        try:
            assert self._process.pid is not None
            self.pid: int = self._process.pid
            self.title: str = f"process {self.pid}"
            register_group(self.pid)
            self._socket.settimeout(timeout)
            if not self._socket.recv(1):
                raise EOFError("the process ended before it could take a call")
            self._socket.setblocking(False)
        except BaseException:
            self._process.kill()
            self._discard()
            raise

    def attend(
        self,
        loop: asyncio.AbstractEventLoop,
        replied: Callable[[Worker, CallResult], object],
        gone: Callable[[Worker, int | None, list[Job]], object],
    ) -> None:
        """Begins to hear the worker.

        Args:
            loop: The loop of this thread.
            replied: Called with what came of the call of the first of `jobs`, which it takes out.
            gone: Called once with the exit code and the jobs that were not begun, when the
                process and what it had started are no more.
        """
        self._loop, self._replied, self._gone = loop, replied, gone
        loop.add_reader(self._socket, self.read)
        loop.add_reader(self._process.sentinel, self._ended)

    def send(self, job: Job, call: bytearray) -> None:
        """Gives a call to the worker: at once where it has none, else with others of this turn."""
        assert self._loop is not None
        START.pack_into(call, 0, self._number, self._offered)
        if job.modules is not self._modules and job.modules is not None:
            self._modules = job.modules
            call = modules_frame(job.modules) + call
        self._numbers += NUMBER.pack(self._number)
        self._number = (self._number + 1) % NUMBERS
        self.jobs.append(job)
        self._calls.append(call)
        if len(self.jobs) == 1:
            self.since = self._loop.time()
            self._flush()
        elif len(self._calls) == 1:
            self._loop.call_soon(self._flush)

    def take_back(self) -> list[Job]:
        """Takes back the calls that the worker has not begun; what it gets of them it leaves out.

        Of the others it has replied to all but the last: `read` finds these replies.
        """
        count = len(self._numbers)
        self._numbers = b""
        if self._calls:
            self._calls.clear()
            self._modules = None  # the lost call may have contained them
        with suppress(BlockingIOError):  # it has begun all that were sent
            count += len(os.read(self._unbegun.fileno(), PIPE))
        jobs = [self.jobs.pop() for _ in range(count // NUMBER.size)]
        jobs.reverse()
        return jobs

    def finish(self, grace: float) -> None:
        """Lets the worker end, now that it has no call; threads of the call's may keep it."""
        self.over = True
        with suppress(OSError):  # it has ended
            self._socket.shutdown(socket.SHUT_WR)
        self._kill_after(grace)

    def stop(self, grace: float) -> None:
        """Ends the worker, and by force if it is there after so many seconds."""
        self.over = True
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        self._kill_after(grace)

    def _kill_after(self, grace: float) -> None:
        assert self._loop is not None
        if self._killing is None:
            self._killing = self._loop.call_later(grace, self.kill)

    def kill(self) -> None:
        """Ends the worker and what it has started by force."""
        self.over = True
        signal_group(self.pid, signal.SIGKILL)

    def _flush(self) -> None:
        """Sends what waits, as soon as the socket takes it."""
        if self._unsent or not self._calls:
            return
        os.write(self._sent.fileno(), self._numbers)
        self._unsent = memoryview(
            self._calls[0] if len(self._calls) == 1 else b"".join(self._calls)
        )
        self._numbers = b""
        self._calls.clear()
        self._push()
        if self._unsent:
            assert self._loop is not None
            self._loop.add_writer(self._socket, self._write)

    def _write(self) -> None:
        assert self._loop is not None
        self._push()
        if not self._unsent:
            self._loop.remove_writer(self._socket)
            self._flush()

    def _push(self) -> None:
        """Sends as much as the socket takes."""
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            return
        except OSError:  # nobody reads any more, as the exit code will say
            sent = len(self._unsent)
        # Even an empty view of the call would hold all of it.
        self._unsent = self._unsent[sent:] if sent < len(self._unsent) else NOTHING

    def read(self) -> bool:
        """Takes what the worker has sent; whether there was anything."""
        assert self._loop is not None
        try:
            size = self._socket.recv_into(self._buffer)
        except BlockingIOError:
            return False
        except OSError:  # its end was closed by force
            size = 0
        if not size:
            self._loop.remove_reader(self._socket)
            if not self.over:  # one that lives has closed its descriptors, and cannot reply
                self.kill()
            self._deliver()
            return False
        if not self._makes_sense:
            return True  # and is left unread
        self._received += self._buffer[:size]
        self._take_replies()
        if self._replies:
            now = self._loop.time()
            self.seconds, self.since = (now - self.since) / len(self._replies), now
        self._deliver()
        return True

    def _deliver(self) -> None:
        while self._replies:  # some of which `read` may deliver that is called meanwhile
            self._replied(self, self._replies.popleft())

    def _mistrust(self, what: str) -> None:
        """Ends a worker whose task has written to where only we write."""
        log.warning(
            "worker process %d is ended, as it has sent what makes no sense (%s): its task writes "
            "to descriptors that are not its own", self.pid, what,
        )  # fmt: skip
        self._makes_sense = False
        self.kill()

    def _take_replies(self) -> None:
        """Takes the replies that have come whole, without a copy of what is in them."""
        received, begin = self._received, 0
        whole = memoryview(received)
        while len(received) - begin >= LENGTHS.size:
            first, second = LENGTHS.unpack_from(received, begin)
            if first > HEAD or second > PAYLOAD:
                return self._mistrust(f"a message of {first + second} bytes")
            middle = begin + LENGTHS.size + first
            if len(received) < middle + second:
                break
            head, payload = whole[middle - first : middle], whole[middle : middle + second]
            begin = middle + second
            if not head:
                handle_log(payload)
                continue
            try:
                version, done, plain, *others = pickle.loads(head)  # noqa: S301 - from our worker
                result = self._shared(payload) if plain is None else payload
                self._replies.append(CallResult(version, done, result, plain, *others))
            except Exception as error:  # whatever unpacking nonsense raises
                return self._mistrust(describe_error(error))
        if begin:
            self._received = received[begin:]
        return None

    def _offer(self) -> None:
        """Take a block of shared memory for the worker's next large result."""
        self._block = self._memory.take()
        self._offered = 0 if self._block is None else self._block.number

    def _shared(self, payload: memoryview) -> Block:
        """Return the block that holds a result.

        Raises:
            ValueError: The worker was not offered this block.
        """
        number, size = BLOCK.unpack(payload)
        block = self._block
        if block is None or block.number != number:
            raise ValueError(f"a result in block {number} of the shared memory")
        block.size = size
        self._offer()
        return block

    def _ended(self) -> None:
        """Tells of the worker's end, when all that it had sent is read."""
        self.over = True
        while self.read():
            pass
        unbegun = self.take_back()
        code = self._process.exitcode
        self._discard()
        self._gone(self, code, unbegun)

    def _discard(self) -> None:
        """Ends what the worker had started, and gives back what it held here."""
        if self._loop is not None:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._loop.remove_reader(self._process.sentinel)
        if self._killing is not None:
            self._killing.cancel()
        self._calls.clear()
        for held in (self._socket, self._unbegun, self._sent):
            held.close()
        if self._process.pid is None:
            return
        signal_group(self._process.pid, signal.SIGKILL)
        forget_group(self._process.pid)
        self._process.join()
        self._process.close()


PRELOAD = ["rhapsody.backends.local.forked", "cloudpickle", "rhapsody.backends.local.worker"]
"""What the server imports, so that a new worker has it at once."""


DESCRIPTORS = 16
"""More than this process opens while it starts a worker."""

_launching = threading.Lock()


class WorkerContext(ForkServerContext):
    """A multiprocessing context with a fork server of its own.

    Python's interface is `Process`, `Pipe` and the like; `start` and `stop` are ours.
    """

    def __init__(self) -> None:
        super().__init__()
        self.server: forkserver.ForkServer = forkserver.ForkServer()
        self.server.set_forkserver_preload(PRELOAD)
        self.memory: ProgramMemory = ProgramMemory()

    def Process(self, *args: Any, **kwargs: Any) -> WorkerProcess:  # type: ignore[override]  # noqa: N802
        """A process that the server will start."""
        worker = WorkerProcess(*args, **kwargs)
        worker.server = self.server
        return worker

    def start(self) -> None:
        """Starts the server. Not on the main thread: it changes the thread's signal mask.

        Raises:
            TypeError: `sys.path` is not what the server could be told.
            OSError: It could not be started.
        """
        odd = [entry for entry in sys.path if not isinstance(entry, str)]
        if odd:
            raise TypeError(f"sys.path holds {odd[0]!r}, and imports look at strings only")
        unset = multiprocessing.get_start_method(allow_none=True) is None
        # The server inherits the mask; `forked` lifts it once Ctrl-C is ignored. Starting
        # the tracker sets masks of its own, so that comes first.
        resource_tracker.ensure_running()
        former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.server.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
            if unset:  # starting a server settles the program's start method for good
                multiprocessing.set_start_method(None, force=True)

    @contextmanager
    def launching(self) -> Iterator[None]:
        """Holds off other starts; what opens descriptors for a worker happens in here.

        Where they run out half way, the server gives up, and all workers end with it.

        Raises:
            OSError: There are too few descriptors.
        """
        with _launching:
            opened: list[int] = []
            try:
                while len(opened) < DESCRIPTORS:
                    opened.append(os.open(os.devnull, os.O_RDONLY))
            finally:
                for each in opened:
                    os.close(each)
            yield

    def stop(self) -> None:
        """Ends the server, once its workers have ended.

        By itself it would wait for whatever they have left behind, such as a daemon.
        """
        server: Any = self.server
        if server._forkserver_pid is None:  # it was never started
            return
        with suppress(ProcessLookupError):  # it has ended
            os.kill(server._forkserver_pid, signal.SIGKILL)
        with suppress(ChildProcessError):  # SIGCHLD is ignored, or its handler took this one
            server._stop()


class WorkerProcess(ForkServerProcess):
    """A process started by the server of its context."""

    server: forkserver.ForkServer | None = None

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802
        return _Popen(process_obj)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "server"}


class _Popen(popen_forkserver.Popen):
    """Starts a process as Python's own does, but for the server and the main program."""

    def _launch(self, process_obj: Any) -> None:
        main = process.current_process()
        path = [os.getcwd() if entry == "" else entry for entry in sys.path]
        preparation = {
            "name": process_obj._name,
            "authkey": bytes(main.authkey),
            "log_to_stderr": False,
            "sys_path": path,
            "sys_argv": sys.argv,
            "dir": os.getcwd(),
        }
        message = io.BytesIO()
        set_spawning_popen(self)
        try:
            reduction.dump(preparation, message)
            reduction.dump(process_obj, message)
        finally:
            set_spawning_popen(None)
        self.sentinel, writer = process_obj.server.connect_to_new_process(
            self._fds  # type: ignore[attr-defined]
        )
        # While this process lives, it holds the other end of what the worker watches.
        held = os.dup(writer)
        close = util.close_fds  # type: ignore[attr-defined]
        self.finalizer = util.Finalize(self, close, (held, self.sentinel))
        with open(writer, "wb") as stream:
            stream.write(message.getbuffer())
        self.pid = forkserver.read_signed(self.sentinel)
