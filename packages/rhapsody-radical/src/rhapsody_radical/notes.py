"""Notes about active sessions, with which the next session cleans up after a killed program.

Usually a session's client ends its pilots, even if the program was killed. The notes are for
the case that both are killed at once. The client locks its note as long as it lives: an
unlocked note belongs to a session that was not closed. Because a note causes processes to be
ended, notes that others could have written are ignored, and notes contain no process ids.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import socket
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rhapsody_radical import batch, processes

log: logging.Logger = logging.getLogger(__name__)

HERE = ".rhapsody"
"""Where sessions are kept in the current directory, each engine's in a directory of its own."""

LIMIT = 16384
"""Bytes of the longest note."""

KINDS: dict[str, type[Any]] = {
    "version": int,
    "session": str,
    "directory": str,
    "host": str,
    "boot": str,
    "resource_manager": list,
    "closing": bool,
}

OPEN, CLOSING = b"false}", b"true }"
"""How a note ends: in as many bytes, so that one is written over the other."""

_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


def place(work_dir: Path) -> Path:
    """Return where this user's notes are: in one place for all engines of one directory.

    Of its user alone, as several may share the directory.
    """
    found = [each for each in (work_dir, *work_dir.parents) if each.name == HERE]
    return (found or [work_dir])[0] / f"radical.{os.geteuid()}"


class Note:
    """A note about this process's own session, locked until it is removed or the process ends.

    Args:
        place: The directory of the notes; created if it is missing.
        session: The session's uid.
        directory: The session's directory, which has the same name.
        resource_managers: RADICAL-Pilot's names of its pilots' batch systems.

    Raises:
        OSError: It cannot be written, or others than this user can write to `place`.
    """

    def __init__(
        self, place: Path, session: str, directory: Path, resource_managers: Iterable[str]
    ) -> None:
        text = json.dumps(
            {
                "version": 1,
                "session": session,
                "directory": os.path.abspath(directory),
                "host": socket.gethostname(),
                "boot": _boot(),
                "resource_manager": sorted(set(resource_managers)),
                "closing": False,
            }
        ).encode()
        self.path: Path = place / f"{session}.json"
        self._end = len(text) - len(OPEN)
        self._file = _create(self.path)
        with suppress(OSError):  # there are network file systems without locks
            fcntl.flock(self._file, fcntl.LOCK_EX)
        os.write(self._file, text)

    def closing(self) -> None:
        """Say that the session is being closed: a client that starts now waits for it."""
        os.pwrite(self._file, CLOSING, self._end)

    def remove(self) -> None:
        """Remove the note, and with the last one its place: nothing of the session is left."""
        with suppress(OSError):
            self.path.unlink()
            self.path.parent.rmdir()
        self.let_go()

    def let_go(self) -> None:
        """Close this process's copy of the lock: for forked children, which may outlive it."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


def _create(path: Path) -> int:
    while True:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_ours(os.lstat(path.parent), stat.S_ISDIR, path.parent)
        try:
            return os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        except FileNotFoundError:
            if path.parent.exists():
                raise  # else another session took the place away, with its own note


def take_over(place: Path, patience: float = 30.0, *, gone: str = "") -> list[str]:
    """End everything that sessions left whose clients have ended; call it before creating a note.

    Args:
        place: The directory of the notes.
        patience: Total seconds to wait for sessions that are being closed.
        gone: The uid of the only session to examine, whose client is known to have ended.

    Returns:
        The uids of the sessions that were ended.
    """
    deadline, ended = time.monotonic() + patience, []
    try:
        folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    except OSError as error:
        log.info("%s is not looked at: %s", place, error)
        return []
    try:
        _require_ours(os.fstat(folder), stat.S_ISDIR, place)
        for name in [f"{gone}.json"] if gone else sorted(os.listdir(folder)):
            try:
                if _settle(folder, place / name, deadline, certain=bool(gone)):
                    ended.append(name.removesuffix(".json"))
            except (OSError, ValueError) as error:
                log.info("the note %s is not followed: %s", place / name, error)
    except OSError as error:
        log.warning("what killed programs may have left is not looked for: %s", error)
    finally:
        os.close(folder)
    if ended:
        with suppress(OSError):  # there are others
            place.rmdir()
    return ended


def _settle(folder: int, path: Path, deadline: float, *, certain: bool) -> bool:
    """End the session of one note, unless it lives or, if not certain, this process cannot know."""
    file = os.open(path.name, _FLAGS | os.O_NONBLOCK, dir_fd=folder)
    try:
        _require_ours(os.fstat(file), stat.S_ISREG, path)
        locks = True
        try:
            while _is_locked(file):
                if not _read(file, path)["closing"] or time.monotonic() > deadline:
                    return False
                time.sleep(0.1)
        except OSError:  # there are network file systems without locks
            locks = False
        if os.fstat(file).st_nlink == 0:
            return False  # it was closed in the meantime
        note = _read(file, path)
        if not certain and (note["host"] != socket.gethostname() or not locks):
            _tell(note, path)
            return False
        if not _end(note, quietly=certain):
            return False
        os.unlink(path.name, dir_fd=folder)
        return True
    finally:
        os.close(file)


def _is_locked(file: int) -> bool:
    """Return whether another process of this host has locked a note; if not, lock it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _end(note: dict[str, Any], *, quietly: bool) -> bool:
    """End what a session left, and return whether all of it could be looked for."""
    session, directory, managers = (
        note[name] for name in ("session", "directory", "resource_manager")
    )
    jobs = batch.look(session)  # first: a job whose processes are killed here ends by itself
    done = (jobs is not None or "SLURM" not in managers) and batch.cancel(jobs or [])
    count = processes.end(session, patience=0.0) if note["boot"] == _boot() else 0
    others = [hint for name in managers if name != "SLURM" and (hint := batch.hint(session, name))]
    others += [] if done else ["Slurm did not do it, and is asked again at the next start"]
    log.log(
        logging.INFO if quietly and not others else logging.WARNING,
        "RADICAL-Pilot session %s was not closed, and its client is gone: what it left was ended "
        "(processes on this machine: %d, batch jobs: %d); its files are in %s, to be looked at or "
        "deleted%s",
        session, count, len(jobs or []) if done else 0, directory,
        "".join(f"; {each}" for each in others), extra={"session": session},
    )  # fmt: skip
    return done


def _tell(note: dict[str, Any], path: Path) -> None:
    """Log how to end a session, of which this process cannot know whether it lives."""
    session, host = note["session"], note["host"]
    ways = [batch.hint(session, name) for name in note["resource_manager"]]
    if jobs := batch.jobs_of(session):
        ways = [f"`scancel {' '.join(job.id for job in jobs)}` cancels its batch jobs"]
    show = f"grep -slzx {processes.MARK}={session} /proc/[0-9]*/environ | cut -d/ -f3"
    ways += [f"on {host}, `kill -9 $({show})` ends its processes", f"`rm {path}` ends this message"]
    log.warning(
        "RADICAL-Pilot session %s was started on %s and not closed; whether it still runs cannot "
        "be seen from here. If it does not: %s",
        session, host, "; ".join(way for way in ways if way), extra={"session": session},
    )  # fmt: skip


def _read(file: int, path: Path) -> dict[str, Any]:
    """Read a note; raises `ValueError` where anything in it is unusual."""
    try:
        note: Any = json.loads(os.pread(file, LIMIT, 0))
    except RecursionError:
        note = None
    if not isinstance(note, dict) or {name: type(note[name]) for name in note} != KINDS:
        raise ValueError("it is malformed")
    session, directory, managers = note["session"], note["directory"], note["resource_manager"]
    if not (
        note["version"] == 1
        and re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", session)
        and path.name == f"{session}.json"
        and os.path.isabs(directory)
        and os.path.normpath(directory) == directory
        and os.path.basename(directory) == session
        and (directory + note["host"]).isprintable()
        and all(isinstance(name, str) for name in managers)
    ):
        raise ValueError("it is malformed")
    return note


def _require_ours(status: os.stat_result, kind: Callable[[int], bool], path: Path) -> None:
    """Raise `PermissionError` where others than this user can write, or something else is there."""
    if not kind(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise PermissionError(
            f"{path} is not this user's alone: `chmod go-w {path}`, or move it away"
        )


def _boot() -> str:
    """Return what names the time since this machine was started; "" where the system has none."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
