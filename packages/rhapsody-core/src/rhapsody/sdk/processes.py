"""Programs and their process groups, and the reaper that outlives this process.

Each program runs in its own process group and is stopped together with all processes that it
started in the group. `Program` needs no pipe and, with `pidfd_open`, no thread: output goes to
files or descriptors, and the kernel wakes the event loop when a program exits. Groups that are
still registered when the interpreter exits are killed. If this process is killed, the reaper kills
them. The reaper is a small child process that reads the start and end of each group from a pipe,
and kills the remaining groups once this process is dead.

`rhapsody.sdk.executables` starts the program that a task's description contains.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import IO

from rhapsody.forks import PerProcess
from rhapsody.sdk.threads import start_thread
from rhapsody.sdk.usage import NO_COUNTERS, Counters, counters_before, program_usage
from rhapsody.task import Usage

__all__ = ["Program", "Reaper"]

_groups: PerProcess[set[int]] = PerProcess(set)


def register_group(pid: int) -> None:
    """Register a process group, so that it is killed when the interpreter exits."""
    _groups.get().add(pid)


def forget_group(pid: int) -> None:
    """Unregister a group that has ended, because the system may reuse its number."""
    _groups.get().discard(pid)


@atexit.register
def kill_groups() -> None:
    """Kill every registered group. Called when the interpreter exits.

    A forked child does not kill the groups of its parent when it exits.
    """
    for pid in tuple(_groups.get()):
        signal_group(pid, signal.SIGKILL)


def signal_group(pid: int, number: int) -> None:
    """Send a signal to a group, if it still exists."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def group_exists(pid: int) -> bool:
    """Return True if a process group has members, including zombies."""
    try:
        os.killpg(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def group_alive(pid: int) -> bool:
    """Return True if a process group has members other than zombies.

    In a container, the first process often reaps orphans late or never, so that a group of dead
    processes continues to exist.
    """
    if not group_exists(pid):
        return False
    try:
        processes = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:  # not Linux: zombies do not count there
        return True
    for process in processes:
        with suppress(OSError, ValueError, IndexError):  # the process has just ended
            with open(f"/proc/{process}/stat", "rb") as file:
                state, _, group = file.read().rpartition(b")")[2].split()[:3]
            if int(group) == pid and state not in b"ZX":
                return True
    return False


# The pipe may stay open after the process has ended, because its forked children may hold it open.
# So messages report the start of a group (`+`), its end (`-`), and a regular exit (`!`).
# Waking for each message would use CPU time that the programs need, so messages are read in
# batches, while the end of the process is noticed immediately.
#
# Processes that a library started (`*`) are not groups, and their ends are not reported. Each is
# identified by its number and the time of its start, because the system may reuse the number.
#
# A process that is killed between the start of a program and the message cannot report it. So each
# program has its number in its environment, and each message contains the highest number that has
# been reported. The reaper looks for programs with higher numbers in /proc, several times, because
# a process between fork and exec does not have its environment yet.
REAPER_SCRIPT = """
import os, select, signal, sys, time
process, mark, last = int(sys.argv[1]), sys.argv[2].encode(), int(sys.argv[3])
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
def began(pid):
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except OSError:
        return 0
live, adopted, rest, poll, end = set(), set(), b"", select.poll(), select.poll()
poll.register(0, select.POLLIN)
end.register(0, 0)
try:
    descriptor = os.pidfd_open(process)
    poll.register(descriptor, select.POLLIN)
    end.register(descriptor, select.POLLIN)
except (AttributeError, OSError):
    pass
while 0 in dict(poll.poll()):
    data = os.read(0, 65536)
    if not data:
        break
    *lines, rest = (rest + data).split(b"\\n")
    for line in lines:
        group, *time_of_start, last = map(int, line[1:].split())
        if line[:1] == b"*":
            adopted.add((group, *time_of_start))
        else:
            (live.add if line[:1] == b"+" else live.discard)(group)
    if rest == b"!":
        break
    end.poll(100)
for pid in live:
    try:
        os.killpg(pid, signal.SIGKILL)
    except OSError:
        pass
for pid, start in adopted:
    try:
        if began(pid) == start:
            os.kill(pid, signal.SIGKILL)
    except OSError:
        pass
if rest != b"!":
    for pause in (0, 0.05, 0.2):
        time.sleep(pause)
        for name in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc") else ()):
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    variables = file.read().split(b"\\0")
                if any(int(v[len(mark):]) > last for v in variables if v.startswith(mark)):
                    os.kill(int(name), signal.SIGKILL)
            except OSError:
                pass
"""


class Reaper:
    """Reaper process: kills the processes of a backend if this process is killed.

    For programs that the backend starts, pass the reaper to `Program`. For processes that a library
    starts, such as the workers of a pool, call `adopt`.

    The reaper is started with the first program or the first call of `adopt`. All methods may be
    called from any thread.
    """

    VARIABLE = "RHAPSODY_PROGRAM"
    """Environment variable of each program, with a unique value."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: int | None = None
        self._owner = 0
        self._live: set[int] = set()
        self._adopted: dict[int, int] = {}  # by process: the time of its start
        self._stopped = False
        self._name = os.urandom(8).hex()
        self._count = 0
        self._starting: set[int] = set()

    def next_program(self) -> int:
        """Start the reaper if necessary, and number the next program.

        `began` or `not_started` must follow.

        Returns:
            The number.

        Raises:
            OSError: The reaper cannot be started.
        """
        with self._lock:
            self._stopped = False
            self._open()
            self._count += 1
            self._starting.add(self._count)
            return self._count

    def not_started(self, number: int) -> None:
        """Inform the reaper that the program with a number could not be started."""
        with self._lock:
            self._starting.discard(number)

    def environment(self, number: int) -> dict[str, str]:
        """Return the environment variable of the program with a number."""
        return {self.VARIABLE: f"{self._name}.{number}"}

    def began(self, pid: int, number: int = 0) -> None:
        """Inform the reaper that a process group has started.

        Args:
            pid: The id of the group.
            number: The number of its program, which has the variable of `environment`.
        """
        with self._lock:
            if self._stopped:  # the group is the rest of one that is being killed
                return
            self._live.add(pid)
            self._starting.discard(number)
            with suppress(OSError):  # `next_program` will raise the error for the next program
                self._open()
            self._report(b"+", pid)

    def adopt(self, *pids: int) -> None:
        """Let the reaper kill processes that a library has started.

        The reaper kills only these processes, not their process groups, which may be that of this
        process. The ends of the processes need not be reported: a process that has received the
        number of another one is not killed. Call this when the library has started its workers, and
        again for workers that it starts later. Processes that were adopted before are ignored.

        Args:
            pids: The ids of the processes, in this process's PID namespace.

        Raises:
            OSError: The reaper cannot be started.
        """
        with self._lock:
            self._stopped = False
            new = {pid: _time_of_start(pid) for pid in pids}
            new = {pid: start for pid, start in new.items() if self._adopted.get(pid) != start}
            if new:
                self._open()
                self._adopted.update(new)
                for pid, start in new.items():
                    self._report(b"*", pid, start)

    def ended(self, pid: int) -> None:
        """Inform the reaper that a process group has ended.

        Call this before the group's leader is reaped: afterwards, the system may reuse the group's
        number.
        """
        with self._lock:
            self._live.discard(pid)
            self._report(b"-", pid)

    def stop(self) -> None:
        """Stop the reaper, which then kills the remaining groups and processes. Blocks briefly.

        Only `next_program` and `adopt` start the reaper again.
        """
        with self._lock:
            self._stopped = True
            self._close()
            self._live.clear()
            self._adopted.clear()

    def __del__(self) -> None:
        if not sys.is_finalizing():  # on exit, the system closes the pipe
            self._close()

    def _open(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            self._close()  # the reaper was killed: start another
        if self._pipe is None:
            reader, self._pipe = os.pipe()
            self._owner = os.getpid()
            try:
                mark = f"{self.VARIABLE}={self._name}."
                words = [str(self._owner), mark, str(self._reported())]
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", REAPER_SCRIPT, *words],
                    stdin=reader,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                    cwd="/",
                )
            except BaseException:
                self._close()
                raise
            finally:
                os.close(reader)
            for pid in self._live:
                self._report(b"+", pid)
            for pid, start in self._adopted.items():
                self._report(b"*", pid, start)

    def _reported(self) -> int:
        """Return the highest number up to which the starts of all programs have been reported."""
        return min(self._starting) - 1 if self._starting else self._count

    def _report(self, what: bytes, *numbers: int) -> None:
        if self._pipe is not None:
            with suppress(BrokenPipeError):  # the reaper was killed; the next receives all groups
                line = b" ".join(b"%d" % number for number in (*numbers, self._reported()))
                os.write(self._pipe, what + line + b"\n")

    def _close(self) -> None:
        if self._pipe is not None:
            if self._owner == os.getpid():  # not in a forked child
                with suppress(BrokenPipeError):  # the reaper was killed
                    os.write(self._pipe, b"!")
            os.close(self._pipe)
            self._pipe = None
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            self._process = None


def _time_of_start(pid: int) -> int:
    """Return the time at which a process started, in the kernel's unit; 0 if it is unknown."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except OSError:  # the process has ended, or the system is not Linux
        return 0


log: logging.Logger = logging.getLogger(__name__)

CHECK_INTERVAL = 0.02
"""Seconds between checks of whether a terminated group has ended; the checks run on a thread."""

KILL_TIMEOUT = 1.0
"""Seconds to wait for the members of a group to end after SIGKILL."""


class Program:
    """Running program in a separate process group. Creating the object starts the program.

    The object must be created on a running loop, or with the argument `loop` on another thread, and
    must be used on the loop's thread.

    Args:
        command: The program and its arguments.
        cwd: The program's working directory.
        environment: The program's complete environment; variables of this process are not
            inherited.
        stdin: Text for the program's standard input, or `None` for an empty standard input.
        stdout: A file or descriptor, as for `subprocess.Popen`.
        stderr: A file or descriptor, as for `subprocess.Popen`.
        reaper: The reaper that kills the group if this process is killed; `None` for no reaper.
        loop: The loop on which the object is used, if the object is created on another thread. Call
            `watch` on the loop then. The thread should outlive the program: a program with a
            parent-death signal ends with the thread.

    Attributes:
        exited: A future with the exit code, done when the whole group has ended. Wait with
            `asyncio.wait([program.exited])`, which does not cancel the future.
        usage: The resources that the program has used, including the processes that it has started
            and waited for, or that were terminated with it. Empty while the program is running, and
            if they are unknown.

    Raises:
        OSError: The program cannot be started.
        RuntimeError: The thread that waits for the program cannot be started.
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
        reaper: Reaper | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop() if loop is None else loop
        self._reaper = reaper
        self._number = 0
        if reaper is not None:  # if the reaper cannot be started, do not start the program
            self._number = reaper.next_program()
            environment = environment | reaper.environment(self._number)
        try:
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
        except BaseException:
            if reaper is not None:
                reaper.not_started(self._number)
            raise
        # Read after the start, because this process may have grown in the meantime.
        self._floor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.usage: Usage = {}
        self._before: Counters | None = None  # `None` while they are unknown
        self._opened()
        self.exited: asyncio.Future[int] = self._loop.create_future()
        self._deadline: float | None = None
        self._killer: asyncio.TimerHandle | None = None
        self._descriptor = _watch(self._process.pid)
        if self._descriptor is None:
            try:
                start_thread(self._wait, f"rhapsody-wait-{self._process.pid}")
            except RuntimeError:  # too many threads
                signal_group(self.pid, signal.SIGKILL)
                self._closed()
                self._exit_code()
                raise
        elif loop is None:
            self.watch()

    @property
    def pid(self) -> int:
        """The id of the process and of its group."""
        return self._process.pid

    def watch(self) -> None:
        """Notice the end of the program. Called once, on the loop, if `loop` was given."""
        if self._descriptor is not None:
            self._loop.add_reader(self._descriptor, self._leader_ended)

    def _opened(self) -> None:
        register_group(self.pid)
        if self._reaper is not None:
            self._reaper.began(self.pid, self._number)

    def _closed(self) -> None:
        forget_group(self.pid)
        if self._reaper is not None:
            self._reaper.ended(self.pid)

    def terminate(self, grace: float) -> None:
        """Terminate the group, and kill it after `grace` seconds. Returns immediately."""
        if self.exited.done() or self._deadline is not None:
            return
        self._deadline = time.monotonic() + grace
        self._before = counters_before(self.pid, signal.SIGTERM)
        signal_group(self.pid, signal.SIGTERM)
        self._killer = self._loop.call_later(grace, self._kill)

    def _wait(self) -> None:
        """Wait until the leader has exited; runs in a thread on systems without `pidfd_open`."""
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._leader_ended)

    def _leader_ended(self) -> None:
        if self._descriptor is not None:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None
        if self._before is None and not self._left_processes():
            self._before = NO_COUNTERS
        if self._deadline is None:  # it was not terminated: kill the processes that it left
            self._deadline = time.monotonic()
            # Until the leader is reaped, the number of its group is not reused.
            signal_group(self.pid, signal.SIGKILL)
        self._closed()
        code = self._exit_code()
        if group_exists(self.pid):
            self._opened()  # while the group has members, its number is not reused
            # A shell ends immediately; the programs that it runs have time until the deadline.
            wait = partial(self._wait_for_group, self._deadline, code)
            try:
                start_thread(wait, f"rhapsody-end-{self.pid}")
            except RuntimeError:  # too many threads
                signal_group(self.pid, signal.SIGKILL)
                self._closed()
                self._over(code)
        else:
            self._over(code)

    def _exit_code(self) -> int:
        """Reap the leader and return its exit code, or 255 if other code has reaped the leader."""
        try:
            _, status, counters = os.wait4(self.pid, 0)
        except ChildProcessError:  # `Popen.wait` would return 0
            log.warning(
                "process %d: treated as failed because its exit code is unknown: SIGCHLD is "
                "ignored, or its handler waits for every process. Restore the default with "
                "signal.signal(signal.SIGCHLD, signal.SIG_DFL)", self.pid,
            )  # fmt: skip
            self._process.wait()
            return 255
        self._process.returncode = code = os.waitstatus_to_exitcode(status)
        if self._before is not None:
            # A program that was not killed could wait for its children.
            before = self._before if code < 0 else NO_COUNTERS
            self.usage = program_usage(counters, self._floor, before)
        return code

    def _left_processes(self) -> bool:
        """Return True if a signal killed the leader, but not all processes of the group."""
        with suppress(ChildProcessError):
            ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            return ended is not None and ended.si_code != os.CLD_EXITED and group_alive(self.pid)
        return False

    def _kill(self) -> None:
        """Kill the group."""
        if self._process.returncode is None:
            self._before = counters_before(self.pid, signal.SIGKILL)
        signal_group(self.pid, signal.SIGKILL)

    def _wait_for_group(self, deadline: float, code: int) -> None:
        """Wait until the other processes of the group have exited; kill them at the deadline.

        Runs in a separate thread.
        """
        while group_alive(self.pid) and time.monotonic() < deadline:
            time.sleep(CHECK_INTERVAL)
        signal_group(self.pid, signal.SIGKILL)
        deadline = time.monotonic() + KILL_TIMEOUT
        while group_alive(self.pid) and time.monotonic() < deadline:
            time.sleep(CHECK_INTERVAL)
        self._closed()
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._over, code)

    def _over(self, code: int) -> None:
        if self._killer is not None:
            self._killer.cancel()
        if not self.exited.done():
            self.exited.set_result(code)


def _watch(pid: int) -> int | None:
    """Return a descriptor that becomes readable when a process ends.

    Return `None` if the system does not support such descriptors.
    """
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:  # an old system, or one that forbids the call
        return None
