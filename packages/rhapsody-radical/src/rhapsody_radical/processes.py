"""Finds and ends the processes of a session on this machine, should closing it leave any.

RADICAL-Pilot's processes detach themselves and change their titles, so they are known
by where they work: in the session's own directory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from rhapsody_radical.environment import MARK


def of_session(directory: Path, session: str, *, elsewhere: bool = True) -> list[psutil.Process]:
    """A session's processes, but this one.

    Not those of somebody who went there with a terminal, to read its logs.

    Args:
        directory: A directory of the session's.
        session: Its uid, which its processes have in their environment.
        elsewhere: Whether those count that work in other directories.
    """
    root = os.path.join(os.path.realpath(directory), "")
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            inside = os.path.join(process.cwd(), "").startswith(root)
            if not (inside or elsewhere):
                continue
            marked = process.environ().get(MARK) == session
            if marked or (inside and not _has_terminal(process.pid)):
                found.append(process)
    return found


def wait_gone(directory: str, *, patience: float = 1.0) -> None:
    """Waits until no task works in a directory on this machine, and ends what stays.

    A process that was killed is there until it has been scheduled once more; one that
    left its process group was not killed at all. Somebody's terminal is left alone.
    """
    root = os.path.realpath(directory)
    deadline = time.monotonic() + patience
    while pids := _working_in(root):
        if time.monotonic() > deadline:
            for pid in pids:
                kill_pid(pid)
            return
        time.sleep(0.005)


def _working_in(root: str) -> list[int]:
    """The processes whose working directory is this one or below; cheap, for single tasks."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with suppress(OSError, psutil.Error):  # gone, a zombie, or somebody else's
                place = os.readlink(f"/proc/{name}/cwd")
                inside = place == root or place.startswith(root + os.sep)
                if inside and not _has_terminal(int(name)):
                    found.append(int(name))
    return found


def _has_terminal(pid: int) -> bool:
    """Whether a process has a controlling terminal, also one that was opened just now."""
    with suppress(OSError):
        return stat_field(pid, 7) != "0"
    return psutil.Process(pid).terminal() is not None


def stat_field(pid: int, number: int) -> str:
    """A field of Linux's account of a process, by its number in proc(5), 3 or more.

    Raises:
        OSError: There is no such process, or no Linux.
    """
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    return after_name.split()[number - 3]


def end(directory: Path, session: str, *, patience: float = 5.0) -> int:
    """Waits for a session's processes to go, and ends those that do not.

    Args:
        directory: The session's directory.
        session: Its uid.
        patience: Seconds to wait before force.

    Returns:
        How many had to be ended.
    """
    deadline = time.monotonic() + patience
    left = of_session(directory, session)
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = of_session(directory, session)
    ended = len(left)
    for _ in range(3):  # what is ended may just have started another
        if not left:
            break
        kill(left)
        left = of_session(directory, session)
    return ended


def kill(processes: Iterable[psutil.Process]) -> None:
    """Ends processes by force, and waits until they are gone."""
    processes = list(processes)
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=2)


def kill_pid(pid: int) -> None:
    """Ends one process by force."""
    with suppress(psutil.Error):
        kill([psutil.Process(pid)])


def children() -> set[int]:
    """The process ids of this process's own children."""
    return {child.pid for child in psutil.Process().children()}


def detach(pids: Iterable[int]) -> None:
    """Takes forked children out of the terminal's reach, so that Ctrl-C is this program's alone."""
    for pid in pids:
        with suppress(OSError):  # it has ended, or runs another program by now
            os.setpgid(pid, pid)
