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
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from rhapsody_radical import processes

log = logging.getLogger(__name__)

NOTE = "owner.json"


def note(directory: Path, session: str, pilots: list[dict[str, Any]]) -> None:
    """Writes down who started a session."""
    owner = {
        "session": session,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "job_names": [str(pilot.get("job_name") or "") for pilot in pilots],
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
    for file in sorted(work_dir.glob(f"*/{NOTE}")):
        with suppress(OSError, ValueError, KeyError):
            owner = json.loads(file.read_text())
            if owner["host"] != socket.gethostname() or _alive(owner):
                continue
            _end(file.parent, owner)
            file.unlink()
            ended.append(str(owner["session"]))
    return ended


def _alive(owner: dict[str, Any]) -> bool:
    try:
        return bool(abs(psutil.Process(owner["pid"]).create_time() - owner["started"]) < 1.0)
    except psutil.Error:
        return False


def _end(directory: Path, owner: dict[str, Any]) -> None:
    session = owner["session"]
    for name in owner["job_names"]:
        if name and shutil.which("scancel"):
            subprocess.run(  # noqa: S603 - our own job's name
                ["scancel", f"--name={name}", "--me"],  # noqa: S607 - as users have it
                check=False,
                capture_output=True,
                timeout=30,
            )
    count = processes.end(directory, session, patience=0.0)
    log.warning(
        "the program that started RADICAL-Pilot session %s is gone: its pilots were ended "
        "(%d processes on this machine); its files are in %s",
        session, count, directory,
        extra={"session": session},
    )  # fmt: skip
