"""Process groups: sending them signals, and ending them all when the interpreter ends.

A program or worker and what it starts form a group. Who belongs to a task, and
when it is to end, others know.
"""

from __future__ import annotations

import atexit
import os
import signal
from contextlib import suppress

_open: dict[int, int] = {}  # and the process that opened each


def opened(pid: int) -> None:
    """Notes a group that must not outlive this process."""
    _open[pid] = os.getpid()


def closed(pid: int) -> None:
    """Forgets a group that has ended; its number may soon be somebody else's."""
    _open.pop(pid, None)


@atexit.register
def kill_all() -> None:
    """Ends every group that is open by force. For the end of the interpreter.

    A child that the program has forked leaves the program's groups alone when it ends.
    """
    for pid, owner in tuple(_open.items()):
        if owner == os.getpid():
            send(pid, signal.SIGKILL)


def send(pid: int, number: int) -> None:
    """Sends a signal to a group; one that is gone is no error."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def exists(pid: int) -> bool:
    """Whether a process group has members, be they only dead ones that nobody reaped."""
    try:
        os.killpg(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def alive(pid: int) -> bool:
    """Whether a process group has members that live.

    In a container the first process often reaps orphans late or never, so that the
    group of a dead program goes on to exist.
    """
    if not exists(pid):
        return False
    try:
        processes = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:  # only Linux has it, and only Linux counts the dead
        return True
    for process in processes:
        with suppress(OSError, ValueError, IndexError):  # it has just gone
            with open(f"/proc/{process}/stat", "rb") as file:
                state, _, group = file.read().rpartition(b")")[2].split()[:3]
            if int(group) == pid and state not in b"ZX":
                return True
    return False
