"""Processes of a session on this machine, identified and ended by their environment.

A process inherits its environment wherever it goes: into the background, a process group
of its own or another directory. The directory of a process does not show its owner, and
its id is meaningless once it has ended, so neither is used here.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from itertools import chain

import psutil

MARK = "RADICAL_RHAPSODY"
"""Names the session in the environment of the client and of all that descends from it."""

SESSION = "RP_SESSION_ID"
TASK = "RP_TASK_ID"
PILOT = "RP_PILOT_ID"

ASKED = 0.5
"""Seconds in which processes may tidy up before they are killed."""

ROUNDS = 3
"""How often to look again for processes that were started while others were ended."""

_LINUX = os.path.exists("/proc/self/environ")


def environment(session: str, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment to start a session's client with, so that its processes are found.

    RADICAL-Pilot's processes write their titles over what the system shows of their
    environment, unless `SPT_NOENV` is set. A client that is itself started by a task of
    another session does not belong to that session's pilot.
    """
    kept = {name: value for name, value in inherited.items() if name != PILOT}
    return {**kept, MARK: session, "SPT_NOENV": "1"}


def of_session(session: str) -> list[psutil.Process]:
    """Return the living processes of a session, but never this one."""
    return [process for process, _ in _matching(f"{MARK}={session}", f"{SESSION}={session}")]


def of_tasks(session: str, uids: Collection[str]) -> dict[str, list[psutil.Process]]:
    """Return the living processes of each of some tasks, all found in one pass."""
    found: dict[str, list[psutil.Process]] = {uid: [] for uid in uids}
    for process, variables in _matching(f"{SESSION}={session}") if found else ():
        task = variables.get(TASK)
        if task in found:
            found[task].append(process)
    return found


def end(session: str, patience: float = 5.0) -> int:
    """Wait for a session's processes to go, then ask those that stay to end, and kill them.

    Args:
        session: Its uid.
        patience: Seconds to wait before killing.

    Returns:
        How many did not go by themselves.
    """
    return _end(lambda: of_session(session), patience)


def end_pilot(session: str, pilot: str) -> int:
    """Kill the processes of one pilot of a session."""
    settings = f"{MARK}={session}", f"{SESSION}={session}"
    return _end(lambda: [p for p, known in _matching(*settings) if known.get(PILOT) == pilot], 0.0)


def end_tasks(session: str, uids: Collection[str], patience: float = 1.0) -> int:
    """Do the same for the processes of tasks that were cancelled."""
    return _end(lambda: list(chain(*of_tasks(session, uids).values())), patience)


def _end(find: Callable[[], list[psutil.Process]], patience: float) -> int:
    deadline = time.monotonic() + patience
    left = find()
    while left and (rest := deadline - time.monotonic()) > 0:
        _wait(left, rest)
        left = find()
    _ask(left)
    ended: set[psutil.Process] = set()
    for _ in range(ROUNDS):
        if not left:
            break
        _kill(left)
        _wait(left, 2.0)
        ended.update(left)
        left = find()
    return len(ended)


def _ask(processes: Collection[psutil.Process]) -> None:
    """Ask processes to end: a login shell's scripts give back locks that they have, as pyenv's."""
    for process in processes:
        with suppress(psutil.Error):
            process.terminate()
    _wait(processes, ASKED)


def _kill(processes: Collection[psutil.Process]) -> None:
    """Kill processes, and with one blow each process group that one of them leads.

    Whoever is in such a group descends from its leader, whatever its environment says.
    """
    for process in processes:
        with suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == process.pid and process.is_running():
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()  # psutil does nothing to another process that got the number


def _wait(processes: Collection[psutil.Process], seconds: float) -> None:
    """Wait until processes have ended, even if no parent reaps them."""
    deadline = time.monotonic() + seconds
    while any(map(_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.02)


def _alive(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _matching(*settings: str) -> Iterator[tuple[psutil.Process, dict[str, str]]]:
    """Yield our user's other processes that were started with one of some settings of variables.

    A login node has thousands of processes: objects are made for those that match only.
    """
    wanted = re.compile(b"\0(?:" + b"|".join(re.escape(os.fsencode(s)) for s in settings) + b")\0")
    for pid in psutil.pids():
        try:
            if pid == os.getpid() or not wanted.search(_environment(pid)):
                continue
            process = psutil.Process(pid)
            found = _environment(pid)  # once more: psutil may have seen a later process
        except (OSError, psutil.Error):
            continue  # it has ended, or belongs to another user
        if wanted.search(found):
            lines = os.fsdecode(found).split("\0")
            yield (
                process,
                {name: value for name, _, value in (each.partition("=") for each in lines)},
            )


def _environment(pid: int) -> bytes:
    """Return what a process of our user was started with, between zero bytes; a zombie has none."""
    if _LINUX:
        if os.stat(f"/proc/{pid}").st_uid != os.geteuid():
            return b""
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
            found, starts, until = file.readall(), True, time.monotonic() + 1.0
            while not found and starts and time.monotonic() < until:
                starts = _starts(pid)  # asked first, as the environment may come in between
                found = file.readall()
            return b"\0" + found + b"\0"
    process = psutil.Process(pid)
    if process.uids().effective != os.geteuid():
        return b""
    lines = [f"{name}={value}" for name, value in process.environ().items()]
    return os.fsencode("\0".join(["", *lines, ""]))


def _starts(pid: int) -> bool:
    """Return whether a process has just been given its program, and not yet its environment."""
    with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
        fields = file.readall().rpartition(b")")[2].split()  # from the third on, of proc(5)
    size, environment_end = fields[20], fields[48]
    return size != b"0" and environment_end == b"0"
