"""A worker process as the program that started it sees it: a socket, and an exit code.

What goes through the socket is in frames (`worker.frame`). A worker has one call at a
time. What it does with it is in `rhapsody.backends.local.worker`; which worker gets which
call is decided in `rhapsody.backends.local.processes`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import signal
import socket
from collections.abc import Callable
from contextlib import suppress

from rhapsody.backends.local import logs
from rhapsody.backends.local.forks import WorkerContext
from rhapsody.backends.local.jobs import Job
from rhapsody.backends.local.worker import LENGTHS, work
from rhapsody.errors import describe_error
from rhapsody.sdk import _groups as groups
from rhapsody.sdk.runner import Outcome

AT_ONCE = 1 << 20
"""Bytes that are read from a worker in one go."""

HEAD, PAYLOAD = 1 << 28, 1 << 48
"""Bytes that the two parts of a message never have."""

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
        job: What it runs, `None` where it has nothing to do.
        over: It has been told to end, or has ended.
        begun: Of one that has ended, whether it had begun with the last call it was sent.

    Raises:
        OSError: The process could not be started, or was not ready in time.
        EOFError: It ended before it was ready.
    """

    def __init__(self, context: WorkerContext, timeout: float) -> None:
        self.job: Job | None = None
        self.over: bool = False
        self.begun: bool = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._killing: asyncio.TimerHandle | None = None
        self._unsent = NOTHING
        self._received = bytearray()
        self._makes_sense = True
        with context.launching():
            # Holds a byte for a call that was sent, until the worker begins with it.
            self._unbegun, self._sent = context.Pipe(duplex=False)
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
            groups.opened(self.pid)
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
        replied: Callable[[Worker, Outcome], object],
        gone: Callable[[Worker, int | None], object],
    ) -> None:
        """Begins to hear the worker.

        Args:
            loop: The loop of this thread.
            replied: Called with what came of a call.
            gone: Called once with the exit code, when the process and what it had started
                are no more.
        """
        self._loop, self._replied, self._gone = loop, replied, gone
        loop.add_reader(self._socket, self._read)
        loop.add_reader(self._process.sentinel, self._ended)

    def send(self, job: Job, call: bytes) -> None:
        """Gives a call to the worker, which has none."""
        self.job = job
        os.write(self._sent.fileno(), b".")
        self._unsent = memoryview(call)
        self._push()
        if self._unsent:
            assert self._loop is not None
            self._loop.add_writer(self._socket, self._write)

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
        groups.send(self.pid, signal.SIGKILL)

    def _write(self) -> None:
        assert self._loop is not None
        self._push()
        if not self._unsent:
            self._loop.remove_writer(self._socket)

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

    def _read(self) -> bool:
        """Takes what the worker has sent; whether there was anything."""
        assert self._loop is not None
        try:
            data = self._socket.recv(AT_ONCE)
        except BlockingIOError:
            return False
        except OSError:  # its end was closed by force
            data = b""
        if not data:
            self._loop.remove_reader(self._socket)
            if not self.over:  # one that lives has closed its descriptors, and cannot reply
                self.kill()
            return False
        if not self._makes_sense:
            return True  # and is left unread
        self._received += data
        while (frame := self._next()) is not None:
            head, payload = frame
            if not head:
                logs.handle(payload)
                continue
            try:
                outcome = Outcome(*pickle.loads(head))  # noqa: S301 - from our own worker
            except Exception as error:  # whatever unpacking nonsense raises
                self._mistrust(describe_error(error))
                break
            self._replied(self, outcome._replace(payload=payload))
        return True

    def _mistrust(self, what: str) -> None:
        """Ends a worker whose task has written to where only we write."""
        log.warning(
            "worker process %d is ended, as it has sent what makes no sense (%s): its task writes "
            "to descriptors that are not its own", self.pid, what,
        )  # fmt: skip
        self._makes_sense = False
        self.kill()

    def _next(self) -> tuple[memoryview, memoryview] | None:
        """Takes the parts of the next frame that has come whole, without a copy of them."""
        received = self._received
        if len(received) < LENGTHS.size:
            return None
        first, second = LENGTHS.unpack_from(received)
        if first > HEAD or second > PAYLOAD:
            self._mistrust(f"a message of {first + second} bytes")
            return None
        middle = LENGTHS.size + first
        end = middle + second
        if len(received) < end:
            return None
        self._received = received[end:]
        frame = memoryview(received)
        return frame[LENGTHS.size : middle], frame[middle:end]

    def _ended(self) -> None:
        """Tells of the worker's end, when all that it had sent is read."""
        self.over = True
        while self._read():
            pass
        self.begun = not self._unbegun.poll()
        code = self._process.exitcode
        self._discard()
        self._gone(self, code)

    def _discard(self) -> None:
        """Ends what the worker had started, and gives back what it held here."""
        if self._loop is not None:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._loop.remove_reader(self._process.sentinel)
        if self._killing is not None:
            self._killing.cancel()
        for held in (self._socket, self._unbegun, self._sent):
            held.close()
        if self._process.pid is None:
            return
        groups.send(self._process.pid, signal.SIGKILL)
        groups.closed(self._process.pid)
        self._process.join()
        self._process.close()
