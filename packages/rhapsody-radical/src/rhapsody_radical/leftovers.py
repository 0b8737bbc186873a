"""Pilots that outlived a killed program: found at the next start in the same directory, and ended.

A program that is killed with SIGKILL leaves its agent and the tasks on it until the
walltime. Each session notes in its directory who started it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from rhapsody_radical import processes

log: logging.Logger = logging.getLogger(__name__)

NOTE = "owner.json"

HERE = ".rhapsody"
"""Where sessions are kept in the current directory, each engine's in a directory of its own."""


def note(directory: Path, session: str, forked: Iterable[int] = ()) -> None:
    """Writes down who started a session.

    Args:
        directory: The session's directory.
        session: Its uid.
        forked: Processes that were forked from this one, which outlive it.
    """
    owner = {
        "session": session,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "forked": [[pid, _started(pid)] for pid in forked],
    }
    (directory / NOTE).write_text(json.dumps(owner))


def forget(directory: Path) -> None:
    """The session was closed: nothing of it is left to look for."""
    with suppress(OSError):
        (directory / NOTE).unlink()


def end_all(work_dir: Path) -> list[str]:
    """Ends the sessions below a directory whose programs are gone.

    Returns:
        The uids of the sessions that were ended.
    """
    ended = []
    for file in notes(work_dir):
        with suppress(OSError, ValueError, KeyError):
            owner = json.loads(file.read_text())
            if owner["host"] != socket.gethostname() or _alive(owner["pid"], owner["started"]):
                continue
            _end(file.parent, owner)
            file.unlink()
            ended.append(str(owner["session"]))
    return ended


def notes(work_dir: Path) -> list[Path]:
    """The notes below a directory, and beside it where it is one that an engine chose."""
    places = [work_dir]
    if work_dir.parent.name == HERE:
        places += [work_dir.parent, *work_dir.parent.iterdir()]
    return sorted({file for place in places for file in place.glob(f"*/{NOTE}")})


def _started(pid: int) -> str:
    """When a process was started; on Linux, as no change of the clock touches it.

    Raises:
        psutil.Error: There is no such process.
    """
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {processes.stat_field(pid, 22)}"  # in ticks from the boot on
    return str(psutil.Process(pid).create_time())


def _alive(pid: int, started: str) -> bool:
    """Whether this very process runs, and none that got its number later."""
    with suppress(psutil.Error):
        return _started(pid) == started
    return False


def end(directory: Path, session: str) -> tuple[int, int]:
    """Ends a session by force.

    Returns:
        How many processes on this machine, and how many batch jobs were ended.
    """
    jobs = _batch_jobs(directory)
    for job in jobs:
        _slurm("scancel", job)
    return processes.end(directory, session, patience=0.0), len(jobs)


def _end(directory: Path, owner: dict[str, Any]) -> None:
    session = owner["session"]
    count, jobs = end(directory, session)
    for pid, started in owner["forked"]:
        if _alive(pid, started):
            processes.kill_pid(pid)
            count += 1
    log.warning(
        "the program that started RADICAL-Pilot session %s is gone: its pilots were ended "
        "(%d processes on this machine, %d batch jobs); its files are in %s, to be looked at or "
        "deleted",
        session, count, jobs, directory,
        extra={"session": session},
    )  # fmt: skip


def _batch_jobs(directory: Path) -> list[str]:
    """Slurm's jobs that work in a directory; other batch systems end theirs by the walltime."""
    root = os.path.realpath(directory) + os.sep
    lines = _slurm("squeue", "--noheader", "--user", str(os.getuid()), "--format", "%i %Z")
    pairs = (line.partition(" ") for line in lines.splitlines())
    return [job for job, _, place in pairs if os.path.realpath(place).startswith(root)]


def _slurm(*words: str) -> str:
    """What a command of Slurm prints, nothing where there is no Slurm."""
    if shutil.which(words[0]) is None:
        return ""
    try:
        run = subprocess.run(  # noqa: S603 - fixed words and a job's number
            words, check=False, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout
