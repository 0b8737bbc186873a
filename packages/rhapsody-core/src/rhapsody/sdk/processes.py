"""Runs programs, each in a process group of its own, and ends them as a group.

No thread and no pipe: output goes to files or descriptors, and the system tells the loop
when a program has ended. What a program left running in its group is ended with it, at the
latest when the interpreter ends. What a task's description says of a program is understood
in `rhapsody.sdk.executables`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import IO

from rhapsody.sdk import _groups as groups
from rhapsody.sdk._reaper import Guardian
from rhapsody.sdk.threads import start_thread

__all__ = ["Guardian", "Program"]

log: logging.Logger = logging.getLogger(__name__)

CHECK = 0.02
"""Seconds between two looks, on a thread, whether a group that was told to end is gone."""

KILLED = 1.0
"""Seconds that the members of a group may take to be gone after SIGKILL."""


class Program:
    """Starts a program, and knows it and whatever it starts in its process group.

    Made on a loop, and all else is for the thread of that loop.

    Args:
        command: The program and its arguments.
        cwd: Its working directory.
        environment: All of its variables; nothing is added.
        stdin: Text for its standard input.
        stdout: A file or descriptor, as for `subprocess.Popen`.
        stderr: The same.
        guardian: What ends the group where this process is killed.

    Attributes:
        exited: Done when the whole group has ended, with the exit code. For several to
            wait for: `asyncio.wait([program.exited])` leaves it alone when it is cancelled.

    Raises:
        OSError: It cannot be started.
        RuntimeError: No thread can be started that waits for it, where one is needed.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: str,
        environment: dict[str, str],
        stdin: str | None,
        stdout: IO[bytes] | int | None,
        stderr: IO[bytes] | int | None,
        guardian: Guardian | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._guardian = guardian
        if guardian is not None:
            guardian.pipe()  # where there can be none, nothing is started
        with ExitStack() as files:
            source: IO[bytes] | int = subprocess.DEVNULL
            if stdin:
                source = files.enter_context(tempfile.TemporaryFile())
                source.write(stdin.encode())
                source.seek(0)
            self._process = subprocess.Popen(
                command,
                cwd=cwd,
                env=environment,
                stdin=source,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        self._opened()
        self.exited: asyncio.Future[int] = self._loop.create_future()
        self._deadline: float | None = None
        self._killer: asyncio.TimerHandle | None = None
        self._descriptor = _watch(self._process.pid)
        if self._descriptor is not None:
            self._loop.add_reader(self._descriptor, self._leader_ended)
        else:
            try:
                start_thread(self._wait, f"rhapsody-wait-{self._process.pid}")
            except RuntimeError:  # nobody would hear of its end
                groups.send(self.pid, signal.SIGKILL)
                self._closed()
                self._exit_code()
                raise

    @property
    def pid(self) -> int:
        """The process id, which is the group's as well."""
        return self._process.pid

    def _opened(self) -> None:
        groups.opened(self.pid)
        if self._guardian is not None:
            self._guardian.began(self.pid)

    def _closed(self) -> None:
        groups.closed(self.pid)
        if self._guardian is not None:
            self._guardian.ended(self.pid)

    def terminate(self, grace: float) -> None:
        """Ask the group to end, and end it by force after `grace` seconds; returns at once."""
        if self.exited.done() or self._deadline is not None:
            return
        self._deadline = time.monotonic() + grace
        groups.send(self.pid, signal.SIGTERM)
        self._killer = self._loop.call_later(grace, groups.send, self.pid, signal.SIGKILL)

    def _wait(self) -> None:
        """Waits for the leader where the system cannot tell the loop. On a thread."""
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._leader_ended)

    def _leader_ended(self) -> None:
        if self._descriptor is not None:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None
        if self._deadline is None:  # what it leaves running has no time to end
            self._deadline = time.monotonic()
            # Before the leader is reaped its group's number cannot be anybody else's.
            groups.send(self.pid, signal.SIGKILL)
        self._closed()
        code = self._exit_code()
        if groups.exists(self.pid):
            self._opened()  # while it has members its number is nobody else's
            # A shell ends at once when it is told to; what it runs has its time to do so.
            wait = partial(self._wait_for_group, self._deadline, code)
            try:
                start_thread(wait, f"rhapsody-end-{self.pid}")
            except RuntimeError:  # there are too many threads to give it its time
                groups.send(self.pid, signal.SIGKILL)
                self._closed()
                self._over(code)
        else:
            self._over(code)

    def _exit_code(self) -> int:
        """Reaps the leader. Of one that somebody else has reaped the code is taken for 255."""
        try:
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:  # for which `Popen.wait` says 0
            log.warning(
                "how process %d ended is not known, and it is taken for failed: SIGCHLD is ignored "
                "or has a handler that waits for every process. Leave it alone with "
                "signal.signal(signal.SIGCHLD, signal.SIG_DFL)", self.pid,
            )  # fmt: skip
            self._process.wait()
            return 255
        return self._process.wait()

    def _wait_for_group(self, deadline: float, code: int) -> None:
        """Waits for the rest of the group, until it is time for force. On a thread."""
        while groups.alive(self.pid) and time.monotonic() < deadline:
            time.sleep(CHECK)
        groups.send(self.pid, signal.SIGKILL)
        gone = time.monotonic() + KILLED
        while groups.alive(self.pid) and time.monotonic() < gone:
            time.sleep(CHECK)
        self._closed()
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._over, code)

    def _over(self, code: int) -> None:
        if self._killer is not None:
            self._killer.cancel()
        if not self.exited.done():
            self.exited.set_result(code)


def _watch(pid: int) -> int | None:
    """A descriptor that can be read from when the process ends, where there are such."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:  # an old system, or one that forbids it
        return None
