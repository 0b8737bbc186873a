"""A worker process as the program that started it sees it: a socket, and an exit code.

Calls go through the socket, and replies come back. A worker makes one call after the other;
those that it has not begun can be taken back. What it does with them is in
`rhapsody.backends.local.worker`; which worker gets which call is decided in
`rhapsody.backends.local.processes`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import signal
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from rhapsody.backends.local import logs
from rhapsody.backends.local.forkserver import WorkerContext
from rhapsody.backends.local.jobs import Job
from rhapsody.backends.local.worker import LENGTHS, NUMBER, modules_frame, work
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
        with context.launching():
            # Holds the numbers of calls that were sent, until the worker begins with them.
            self._unbegun, self._sent = context.Pipe(duplex=False)
            os.set_blocking(self._unbegun.fileno(), False)
            self._socket, theirs = socket.socketpair()
            self._process = context.Process(
                target=work, args=(theirs, self._unbegun, logs.levels())
            )
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
        NUMBER.pack_into(call, 0, self._number)
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
                logs.handle(payload)
                continue
            try:
                version, done, *others = pickle.loads(head)  # noqa: S301 - from our own worker
                self._replies.append(CallResult(version, done, payload, *others))
            except Exception as error:  # whatever unpacking nonsense raises
                return self._mistrust(describe_error(error))
        if begin:
            self._received = received[begin:]
        return None

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
