"""The program's side of worker processes, and the fork server that starts them.

Calls and replies are sent through a socket. A worker executes one call at a time; the program can
withdraw calls that the worker has not started. `rhapsody.backends.local.worker` runs in the worker;
`rhapsody.backends.local.processes` decides which worker receives which call.

The fork server is a small process that has imported only the modules that workers need. Python's
own fork server is not suitable, for three reasons. First, its workers import the main program
again. This breaks every program without an `if __name__ == "__main__"` guard, and is unnecessary
because functions are sent by value. Second, the server runs until the program ends. Third, it
prints a traceback if Ctrl-C is pressed while it starts.
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

from rhapsody.backends.local.jobs import LocalJob
from rhapsody.backends.local.shared_memory import Block, ProgramMemory
from rhapsody.backends.local.worker import (
    BLOCK,
    BUILDING,
    LENGTHS,
    NUMBER,
    START,
    closing_frame,
    filters_frame,
    handle_log,
    log_handlers,
    log_levels,
    modules_frame,
    work,
)
from rhapsody.errors import describe_error
from rhapsody.sdk.processes import forget_group, register_group, signal_group
from rhapsody.sdk.runner import CallResult

READ_SIZE = 1 << 18
"""Maximum number of bytes to read from a worker at a time."""

MAX_HEAD_SIZE, MAX_PAYLOAD_SIZE = 1 << 28, 1 << 48
"""Maximum sizes in bytes of the two parts of a valid message."""

NUMBER_LIMIT = 1 << 32

PIPE_CAPACITY = 1 << 16
"""Maximum number of bytes to read from the pipe of call numbers at a time: the pipe's capacity."""

NO_DATA = memoryview(b"")

log: logging.Logger = logging.getLogger(__name__)


class Worker:
    """Worker process. Creating it blocks until the process can receive calls.

    A worker must be created on a thread other than the loop's. All methods must be called on the
    loop.

    Args:
        context: The context that starts the process.
        timeout: Number of seconds within which the process must be ready.

    Attributes:
        pid: The worker's process id, which is also the id of its process group.
        title: The worker's name in messages.
        jobs: The jobs whose calls have been sent and have not been answered, in order.
        since: The loop's time at which the current first item of `jobs` became the first.
        seconds: Average duration in seconds of the latest calls.
        over: True if the worker has ended or is being stopped.
        threads: The thread counts of the calls so far; see `ProcessWorkers`. `None` if there were
            none.
        gpus: The GPUs to which the process is bound, because a call with them has used worker
            values; `None` if it is not bound.
        values: The keys of the worker values that its calls have used.

    Raises:
        OSError: The process could not be started, or was not ready in time.
        EOFError: The process ended before it was ready.
    """

    def __init__(self, context: WorkerContext, timeout: float) -> None:
        self.jobs: deque[LocalJob] = deque()
        self.since: float = 0.0
        self.seconds: float = 0.0
        self.over: bool = False
        self.threads: object = None
        self.gpus: tuple[str, ...] | None = None
        self.values: set[bytes] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._killing: asyncio.TimerHandle | None = None
        self._modules: bytes | None = None  # the modules that were sent last
        self._filters: bytes | None = None  # the warning filters that were sent last
        self._number = 0
        self._numbers = b""  # of the calls to send
        self._calls: list[bytearray] = []
        self._closing = bytearray()  # encoded keys of worker values to close
        self._unsent = NO_DATA  # rest of the data that is being sent
        self._buffer = memoryview(bytearray(READ_SIZE))  # reused, because creating a buffer is slow
        self._received = bytearray()
        self._replies: deque[CallResult | bool] = deque()  # True, False: see `BUILDING`
        self._is_valid = True
        self._memory = context.memory
        self._offer()
        with context.launching():
            # Contains the numbers of the calls that were sent and have not started.
            self._unstarted, self._sent = context.Pipe(duplex=False)
            os.set_blocking(self._unstarted.fileno(), False)
            self._socket, theirs = socket.socketpair()
            logs = log_levels(), log_handlers()
            arguments = theirs, self._unstarted, *logs, self._memory
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
                raise EOFError("the process ended before it was ready")
            self._socket.setblocking(False)
        except BaseException:
            self._process.kill()
            self._discard()
            raise

    def attend(
        self,
        loop: asyncio.AbstractEventLoop,
        replied: Callable[[Worker, CallResult], object],
        ended: Callable[[Worker, int | None, list[LocalJob]], object],
    ) -> None:
        """Start reading from the worker.

        Args:
            loop: The loop that runs on this thread.
            replied: Called with the worker and each reply. The reply belongs to the first of
                `jobs`; `replied` must remove that job from `jobs`.
            ended: Called once when the worker has ended and its process group has been killed, with
                the worker, its exit code and the jobs that had not started.
        """
        self._loop, self._replied, self._worker_ended = loop, replied, ended
        loop.add_reader(self._socket, self.read)
        loop.add_reader(self._process.sentinel, self._ended)

    def send(self, job: LocalJob, call: bytearray) -> None:
        """Send a call.

        If the worker is idle, the call is sent immediately, otherwise together with the other calls
        of this iteration of the loop.
        """
        assert self._loop is not None
        START.pack_into(call, 0, self._number, self._offered)
        if job.modules is not self._modules and job.modules is not None:
            self._modules = job.modules
            call = modules_frame(job.modules) + call
        if job.filters is not self._filters and job.filters is not None:
            self._filters = job.filters
            call = filters_frame(job.filters) + call
        self._numbers += NUMBER.pack(self._number)
        self._number = (self._number + 1) % NUMBER_LIMIT
        self.jobs.append(job)
        self._calls.append(call)
        if len(self.jobs) == 1:
            self.since = self._loop.time()
            self._flush()
        elif len(self._calls) == 1:
            self._loop.call_soon(self._flush)

    def close_value(self, key: bytes) -> None:
        """Close a worker value after the calls that have been sent."""
        assert self._loop is not None
        if key not in self.values:
            return
        self.values.discard(key)
        self._closing += closing_frame(key)
        self._loop.call_soon(self._flush)

    def withdraw(self) -> list[LocalJob]:
        """Withdraw the calls that the worker has not started, so that the worker skips them.

        When this method returns, the worker has sent the replies to all calls that it started,
        except perhaps the last one. Call `read` for replies that have not been read.

        Returns:
            The jobs of the withdrawn calls, in order.
        """
        count = len(self._numbers)
        self._numbers = b""
        if self._calls:
            self._calls.clear()
            self._modules = self._filters = None  # the lost call may have contained them
        with suppress(BlockingIOError):  # it has started all calls
            count += len(os.read(self._unstarted.fileno(), PIPE_CAPACITY))
        jobs = [self.jobs.pop() for _ in range(count // NUMBER.size)]
        jobs.reverse()
        return jobs

    def finish(self, grace: float) -> None:
        """Let an idle worker exit. Kill it after `grace` seconds if its threads keep it alive."""
        self.over = True
        with suppress(OSError):  # it has ended
            self._socket.shutdown(socket.SHUT_WR)
        self._kill_after(grace)

    def stop(self, grace: float) -> None:
        """Terminate the worker, and kill it after `grace` seconds."""
        self.over = True
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        self._kill_after(grace)

    def _kill_after(self, grace: float) -> None:
        assert self._loop is not None
        if self._killing is None:
            self._killing = self._loop.call_later(grace, self.kill)

    def kill(self) -> None:
        """Kill the worker and its process group."""
        self.over = True
        signal_group(self.pid, signal.SIGKILL)

    def _flush(self) -> None:
        """Send the waiting calls, as far as the socket accepts data."""
        if self._unsent or not (self._calls or self._closing) or self._socket.fileno() < 0:
            return
        if self._closing:
            self._calls.append(self._closing)
            self._closing = bytearray()
        if self._numbers:
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
        """Send as much data as the socket accepts."""
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            return
        except OSError:  # the worker has ended, as its sentinel will report
            sent = len(self._unsent)
        # Even an empty view would keep the call's memory alive.
        self._unsent = self._unsent[sent:] if sent < len(self._unsent) else NO_DATA

    def read(self) -> bool:
        """Handle data from the worker. Return True if data was received, otherwise False."""
        assert self._loop is not None
        try:
            size = self._socket.recv_into(self._buffer)
        except BlockingIOError:
            return False
        except OSError:  # the connection was reset
            size = 0
        if not size:
            self._loop.remove_reader(self._socket)
            if not self.over:  # its task has closed the worker's descriptors
                self.kill()
            self._deliver()
            return False
        if not self._is_valid:
            return True  # ignored
        self._received += self._buffer[:size]
        self._take_replies()
        replies = self._replies
        if count := len(replies) - replies.count(True) - replies.count(False):
            now = self._loop.time()
            self.seconds, self.since = (now - self.since) / count, now
        self._deliver()
        return True

    def _deliver(self) -> None:
        while self._replies:  # a callback may call `read`, which delivers some of them
            reply = self._replies.popleft()
            if not isinstance(reply, bool):
                self._replied(self, reply)
            elif self.jobs and (values := self.jobs[0].task.get("worker_values")) is not None:
                values.building(reply)

    def _kill_invalid(self, what: str) -> None:
        """Kill a worker that sent invalid data, probably because its task wrote to the socket."""
        log.warning(
            "killing worker process %d: it sent an invalid message (%s), probably because its task "
            "wrote to file descriptors of the worker", self.pid, what,
        )  # fmt: skip
        self._is_valid = False
        self.kill()

    def _take_replies(self) -> None:
        """Handle the complete messages in the received data, without copying their contents."""
        received, begin = self._received, 0
        whole = memoryview(received)
        while len(received) - begin >= LENGTHS.size:
            first, second = LENGTHS.unpack_from(received, begin)
            if first == BUILDING:
                self._replies.append(bool(second))
                begin += LENGTHS.size
                continue
            if first > MAX_HEAD_SIZE or second > MAX_PAYLOAD_SIZE:
                return self._kill_invalid(f"a message of {first + second} bytes")
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
            except Exception as error:  # invalid bytes can raise anything
                return self._kill_invalid(describe_error(error))
        if begin:
            self._received = received[begin:]
        return None

    def _offer(self) -> None:
        """Take a block of shared memory for the worker's next large result."""
        self._block = self._memory.take()
        self._offered = 0 if self._block is None else self._block.number

    def _shared(self, payload: memoryview) -> Block:
        """Return the block that holds a result, and offer another block for the next result.

        Raises:
            ValueError: The worker was not offered this block.
        """
        number, size = BLOCK.unpack(payload)
        block = self._block
        if block is None or block.number != number:
            raise ValueError(f"unexpected block {number} of the shared memory")
        block.size = size
        self._offer()
        return block

    def _ended(self) -> None:
        """Read the remaining data of the worker, and report its end."""
        self.over = True
        while self.read():
            pass
        unstarted = self.withdraw()
        code = self._process.exitcode
        self._discard()
        self._worker_ended(self, code, unstarted)

    def _discard(self) -> None:
        """Kill the rest of the worker's process group, and release its descriptors."""
        if self._loop is not None:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._loop.remove_reader(self._process.sentinel)
        if self._killing is not None:
            self._killing.cancel()
        self._calls.clear()
        for held in (self._socket, self._unstarted, self._sent):
            held.close()
        if self._process.pid is None:
            return
        signal_group(self._process.pid, signal.SIGKILL)
        forget_group(self._process.pid)
        self._process.join()
        self._process.close()


PRELOAD = ["rhapsody.backends.local.forked", "cloudpickle", "rhapsody.backends.local.worker"]
"""Modules that the fork server imports, so that new workers need not import them."""


MIN_FREE_DESCRIPTORS = 16
"""Number of free descriptors required to start a worker; starting one opens fewer."""

_launching = threading.Lock()
_starting_python = threading.Lock()


@contextmanager
def _no_current_directory() -> Iterator[None]:
    """Return a context manager in which `multiprocessing` starts Python with the option `-P`.

    Otherwise, its server and its resource tracker would import a file `signal.py` in the current
    directory instead of the module of the standard library. Workers use the path of the program.
    """
    name = "_args_from_interpreter_flags"
    with _starting_python:
        flags = getattr(util, name)
        setattr(util, name, lambda: [*flags(), "-P"])
        try:
            yield
        finally:
            setattr(util, name, flags)


class _ForkServer(forkserver.ForkServer):
    """Fork server that imports nothing from the current directory.

    The socket through which workers are requested is a file in a temporary directory. If the file
    is removed, another server can be started. The server without a socket continues, because it
    reports the ends of its workers.
    """

    def __init__(self) -> None:
        super().__init__()
        self._former: list[tuple[int, int]] = []  # process ids and descriptors of such servers

    def give_up_socket(self) -> bool:
        """Set the server aside if its socket was removed, so that `ensure_running` starts another.

        Returns:
            True if the socket was removed.
        """
        server: Any = self
        address = server._forkserver_address
        if address is None or util.is_abstract_socket_namespace(address) or os.path.exists(address):
            return False
        log.warning("starting another fork server: the socket %s was removed", address)
        self._former.append((server._forkserver_pid, server._forkserver_alive_fd))
        server._forkserver_pid = server._forkserver_alive_fd = server._forkserver_address = None
        # The directory was probably removed too. Another user may have created it again.
        with suppress(OSError):
            os.mkdir(os.path.dirname(address), 0o700)  # Python removes it at exit
        process.current_process()._config["tempdir"] = None  # type: ignore[attr-defined]
        return True

    def kill(self) -> None:
        """Kill the server, and those that were set aside."""
        server: Any = self
        for pid, descriptor in self._former:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.close(descriptor)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
        self._former.clear()
        if server._forkserver_pid is None:  # it was never started
            return
        with suppress(ProcessLookupError):  # it has ended
            os.kill(server._forkserver_pid, signal.SIGKILL)
        # SIGCHLD is ignored, or its handler reaped this process; or the socket was removed.
        with suppress(ChildProcessError, FileNotFoundError):
            server._stop()

    def ensure_running(self) -> None:
        """Start the server unless it is running."""
        with _no_current_directory():
            super().ensure_running()


class WorkerContext(ForkServerContext):
    """A `multiprocessing` context with its own fork server.

    Attributes:
        server: The fork server.
        memory: The memory that the program shares with the workers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.server: _ForkServer = _ForkServer()
        self.server.set_forkserver_preload(PRELOAD)
        self.memory: ProgramMemory = ProgramMemory()

    def Process(self, *args: Any, **kwargs: Any) -> WorkerProcess:  # type: ignore[override]  # noqa: N802
        """Return a process that this context's server will start."""
        worker = WorkerProcess(*args, **kwargs)
        worker.server = self.server
        return worker

    def start(self) -> None:
        """Start the server. Must not be called on the main thread: it changes the signal mask.

        Raises:
            TypeError: `sys.path` contains something other than strings.
            OSError: The server could not be started.
        """
        odd = [entry for entry in sys.path if not isinstance(entry, str)]
        if odd:
            raise TypeError(f"sys.path must contain only strings, but contains {odd[0]!r}")
        unset = multiprocessing.get_start_method(allow_none=True) is None
        # The server inherits the mask; `forked` removes the mask once Ctrl-C is ignored. The
        # resource tracker is started before, because starting it also changes the mask.
        with _no_current_directory():
            resource_tracker.ensure_running()
        former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.server.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
            if unset:  # starting a server has set the program's start method
                multiprocessing.set_start_method(None, force=True)

    @contextmanager
    def launching(self) -> Iterator[None]:
        """Return a context manager for starting one worker at a time, with enough descriptors.

        If this process ran out of descriptors while a worker was starting, the server would exit,
        and all workers with it.

        If the socket of the server was removed, another server is started.

        Raises:
            OSError: There are too few free descriptors, or the server could not be started.
            TypeError: `sys.path` contains something other than strings.
        """
        with _launching:
            if self.server.give_up_socket():
                self.start()
            opened: list[int] = []
            try:
                while len(opened) < MIN_FREE_DESCRIPTORS:
                    opened.append(os.open(os.devnull, os.O_RDONLY))
            finally:
                for each in opened:
                    os.close(each)
            yield

    def stop(self) -> None:
        """Kill the server. Must be called after all its workers have ended.

        Otherwise, the server would wait for processes that its workers have left running, such as
        daemons.
        """
        self.server.kill()


class WorkerProcess(ForkServerProcess):
    """Worker process, started by the fork server of its `WorkerContext`."""

    server: forkserver.ForkServer | None = None

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802
        return _Popen(process_obj)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "server"}


class _Popen(popen_forkserver.Popen):
    """Launcher of processes through the context's server, without importing the main program."""

    def _launch(self, process_obj: Any) -> None:
        main = process.current_process()
        path = [os.getcwd() if entry == "" else entry for entry in sys.path]
        preparation = {
            "name": process_obj.name,
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
        # The worker watches the other end of this pipe, which closes when this process ends.
        held = os.dup(writer)
        close = util.close_fds  # type: ignore[attr-defined]
        self.finalizer = util.Finalize(self, close, (held, self.sentinel))
        with open(writer, "wb") as stream:
            stream.write(message.getbuffer())
        self.pid = forkserver.read_signed(self.sentinel)
