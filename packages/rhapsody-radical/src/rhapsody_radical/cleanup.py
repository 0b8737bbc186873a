"""Clean-up of sessions: their processes on this machine, their batch jobs, and notes about them.

Usually a session's client ends its pilots, even if the program was killed. A note is for the case
that both are killed at once: the client locks it as long as it lives, so that an unlocked note
belongs to a session that was not closed, which the next start in the same place ends.

Processes are identified by their environment, which a process inherits wherever it goes: into the
background, a process group of its own or another directory. The directory of a process does not
show its owner, and its id is meaningless once it has ended, so neither is used here. Batch jobs are
identified by their working directory, which RADICAL-Pilot names after the session. Slurm's are
canceled; those of other batch systems are the user's to cancel.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

log: logging.Logger = logging.getLogger(__name__)

# Processes.

MARK = "RADICAL_RHAPSODY"
"""Variable with the session in the environment of the client and its descendants."""

SESSION = "RP_SESSION_ID"
TASK = "RP_TASK_ID"
PILOT = "RP_PILOT_ID"

ASKED = 0.5
"""Seconds that processes have to clean up before they are killed."""

ROUNDS = 3
"""Number of searches for processes that were started while others were ended."""


def find(session: str, name: str = "", values: Collection[str] = ()) -> list[psutil.Process]:
    """Return the living processes of a session, but never this one.

    A login node has thousands of processes: objects are made for those that match only.

    Args:
        session: Its uid.
        name: `TASK` or `PILOT` to find only processes of some tasks or pilots.
        values: The uids of these.
    """
    marks = [SESSION] if name == TASK else [MARK, SESSION]  # a client may run in another's task
    wanted = [f"{mark}={session}" for mark in marks]
    pattern = re.compile(b"\0(?:%s)\0" % b"|".join(re.escape(os.fsencode(x)) for x in wanted))
    found = []
    for pid in psutil.pids():
        try:
            if pid == os.getpid() or not pattern.search(_environment(pid)):
                continue
            process = psutil.Process(pid)
            lines = _environment(pid)  # once more: psutil may have seen a later process
        except (OSError, psutil.Error):
            continue  # it has ended, or belongs to another user
        narrow = not name or any(b"\0%s\0" % os.fsencode(f"{name}={x}") in lines for x in values)
        if narrow and pattern.search(lines):
            found.append(process)
    return found


def _environment(pid: int) -> bytes:
    """Return the initial environment of a process of our user, between zero bytes."""
    if os.stat(f"/proc/{pid}").st_uid != os.geteuid():
        return b""
    with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
        found, starts, until = file.readall(), True, time.monotonic() + 1.0
        while not found and starts and time.monotonic() < until:
            starts = _starts(pid)  # first, because the environment may be set in between
            found = file.readall()
    return b"\0" + found + b"\0"


def _starts(pid: int) -> bool:
    """Return whether a process has been given its program but not yet its environment."""
    with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
        fields = file.readall().rpartition(b")")[2].split()  # from the third on, of proc(5)
    size, environment_end = fields[20], fields[48]
    return size != b"0" and environment_end == b"0"


def end(
    session: str, name: str = "", values: Collection[str] = (), *, patience: float = 0.0
) -> int:
    """Wait for processes to end, then terminate and finally kill the others.

    Args:
        session: The uid of their session.
        name: As for `find`.
        values: As for `find`.
        patience: Seconds to wait before killing.

    Returns:
        The number of processes that did not end without this.
    """
    deadline = time.monotonic() + patience
    left = find(session, name, values)
    while left and (rest := deadline - time.monotonic()) > 0:
        _wait(left, rest)
        left = find(session, name, values)
    for process in left:  # scripts of a login shell, such as pyenv's, release locks
        with suppress(psutil.Error):
            process.terminate()
    _wait(left, ASKED)
    ended: set[psutil.Process] = set()
    for _ in range(ROUNDS):
        if not left:
            break
        _kill(left)
        _wait(left, 2.0)
        ended.update(left)
        left = find(session, name, values)
    return len(ended)


def _kill(processes: Collection[psutil.Process]) -> None:
    """Kill processes, and each process group that one of them leads.

    The members of such a group descend from its leader, whatever their environment contains.
    """
    for process in processes:
        with suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == process.pid and process.is_running():
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()  # psutil does not kill another process with the same id


def _wait(processes: Collection[psutil.Process], seconds: float) -> None:
    """Wait until processes have ended, even if no parent reaps them."""
    deadline = time.monotonic() + seconds
    while any(map(_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.02)


def _alive(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


# Batch jobs.

SECONDS = 30.0
"""Seconds that a command of Slurm may take."""

TOO_MUCH = ("PartitionConfig", "PartitionNodeLimit", "PartitionTimeLimit", "BadConstraints")
"""Slurm's reasons for a job that waits although its partition can never run it."""

ACTIVE = "PENDING,CONFIGURING,RUNNING,SUSPENDED"
"""States of jobs that have not ended and are not ending."""

CUT = "TIMEOUT,DEADLINE,NODE_FAIL,BOOT_FAIL,PREEMPTED,OUT_OF_MEMORY"
"""States of jobs that the batch system has ended; the state names the reason."""

SANDBOX = "radical.pilot.sandbox"
"""Name of RADICAL-Pilot's directory for the sandboxes of sessions."""

FIELD, RECORD = "\x1f", "\x1e"
"""Separators of fields and jobs: paths may contain blanks, bars or line ends."""


@dataclass(frozen=True, slots=True)
class BatchJob:
    """A batch job, as the batch system describes it, and its pilot's uid."""

    id: str
    state: str
    reason: str
    queue: str
    pilot: str


def find_jobs(session: str, states: str = ACTIVE) -> list[BatchJob] | None:
    """Return the Slurm jobs of a session, `None` if Slurm does not answer.

    They are identified by their working directory: RADICAL-Pilot creates one for each pilot, in a
    directory that is named after the session.

    Args:
        session: Its uid.
        states: The states to look for; Slurm forgets jobs a few minutes after their end.
    """
    form = FIELD.join(("%A", "%T", "%r", "%P", "%Z")) + RECORD
    said = _slurm("squeue", "--all", "--noheader", f"--user={os.getuid()}", f"--states={states}",
                  f"--format={form}")  # fmt: skip
    if said is None:
        return None
    found = []
    for record in said.split(RECORD):
        fields = record.removeprefix("\n").split(FIELD)
        *_, sandbox, uid, pilot = ["", "", *os.path.normpath(fields[-1]).split(os.sep)]
        if len(fields) == 5 and (sandbox, uid) == (SANDBOX, session):
            fields[-1] = pilot
            found.append(BatchJob(*fields))
    return found


def cancel_jobs(jobs: Iterable[BatchJob]) -> bool:
    """Cancel Slurm jobs, and return whether Slurm accepted the request."""
    ids = [job.id for job in jobs]
    return not ids or _slurm("scancel", *ids) is not None


def _slurm(*words: str) -> str | None:
    """Return the output of a Slurm command, `None` if it fails."""
    if shutil.which(words[0]) is None:
        log.debug("%s is not installed here: cannot search for batch jobs", words[0])
        return None
    # Variables that shape the user's own queries would change the answer.
    shaped = ("SQUEUE_", "SCANCEL_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(shaped)}
    try:
        return subprocess.run(
            words, env=kept, check=True, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, errors="surrogateescape", timeout=SECONDS,
        ).stdout  # fmt: skip
    except subprocess.CalledProcessError as error:
        log.warning("%s failed: %s", words[0], error.stderr.strip() or error)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("%s failed: %s", words[0], error)
    return None


# Notes.

HERE = ".rhapsody"
"""Directory for sessions in the current one, each engine's in a directory of its own."""

LIMIT = 16384
"""Bytes of the longest note."""

_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def place(work_dir: Path) -> Path:
    """Return the directory of this user's notes, which all engines of one directory share.

    Each user has one, because several users may share the directory.
    """
    found = [each for each in (work_dir, *work_dir.parents) if each.name == HERE]
    return (found or [work_dir])[0] / f"radical.{os.geteuid()}"


class Note:
    """A note about this process's own session, locked until it is removed or the process ends.

    Args:
        place: The directory of the notes; created if it is missing.
        session: The session's uid.
        directory: The session's directory.
        managers: RADICAL-Pilot's names of its pilots' batch systems.

    Raises:
        OSError: It cannot be written, or others than this user can write to `place`.
    """

    def __init__(self, place: Path, session: str, directory: Path, managers: Iterable[str]) -> None:
        self.path: Path = place / f"{session}.json"
        content = {
            "session": session,
            "directory": str(directory),
            "host": socket.gethostname(),
            "boot": _boot(),
            "managers": sorted(set(managers)),
        }
        self._file = _create(self.path)
        with suppress(OSError):  # there are network file systems without locks
            fcntl.flock(self._file, fcntl.LOCK_EX)
        os.write(self._file, json.dumps(content).encode())

    def remove(self) -> None:
        """Remove the note, and with the last one its directory, because the session has ended."""
        _remove(self.path)
        self.let_go()

    def let_go(self) -> None:
        """Close this process's copy of the lock: for forked children, which may outlive it."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


def _create(path: Path) -> int:
    while True:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_ours(os.lstat(path.parent), stat.S_IFDIR, path.parent)
        try:
            return os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        except FileNotFoundError:
            if path.parent.exists():
                raise  # else another session removed the directory with its own note


def _remove(path: Path) -> None:
    with suppress(OSError):  # the directory contains other notes
        path.unlink()
        path.parent.rmdir()


def take_over(place: Path) -> list[str]:
    """End everything that sessions left whose clients have ended; call it before creating a note.

    Args:
        place: The directory of the notes.

    Returns:
        The uids of the sessions that were ended.
    """
    try:
        _require_ours(os.lstat(place), stat.S_IFDIR, place)
        notes = sorted(place.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        log.warning("cannot search for what killed programs left: %s", error)
        return []
    return [path.stem for path in notes if _settle(path)]


def end_session(place: Path, session: str) -> None:
    """End everything that a session left whose client is known to have ended."""
    if not _settle(place / f"{session}.json", certain=True):
        end(session)


def _settle(path: Path, *, certain: bool = False) -> bool:
    """End the session of one note, unless it lives or, if not certain, this process cannot know.

    Because a note causes processes to be ended, one that others could have written is ignored, and
    notes contain no process ids.

    Returns:
        True if everything that the session left was ended.
    """
    try:
        file = os.open(path, _FLAGS)
        try:
            _require_ours(os.fstat(file), stat.S_IFREG, path)
            note, locked, lives = _read(file, path), True, False
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lives = True
            except OSError:  # there are network file systems without locks
                locked = False
            if os.fstat(file).st_nlink == 0:
                return False  # it was closed in the meantime
            if certain or (locked and not lives and note["host"] == socket.gethostname()):
                return _end_noted(path, note, quietly=certain)
            if not lives:
                log.warning(
                    "RADICAL-Pilot session %s was started on %s and not closed; whether it still "
                    "runs cannot be seen from here. If it does not: end the processes there with "
                    "%s=%s in their environment, cancel the batch jobs whose directory names it, "
                    "and remove %s",
                    path.stem, note["host"], MARK, path.stem, path, extra={"session": path.stem},
                )  # fmt: skip
        finally:
            os.close(file)
    except FileNotFoundError:
        return False
    except (OSError, ValueError, RecursionError) as error:
        log.info("ignoring note %s: %s", path, error)
    return False


def _end_noted(path: Path, note: dict[str, Any], *, quietly: bool) -> bool:
    """End what a session left; return True if all of it could be found and ended."""
    session, managers = path.stem, note["managers"]
    jobs = find_jobs(session)  # first: killing its processes here would end a job
    done = (jobs is not None or "SLURM" not in managers) and cancel_jobs(jobs or [])
    count = end(session) if note["boot"] == _boot() else 0
    more = "" if done else "; Slurm did not cancel the jobs and is asked again at the next start"
    if others := ", ".join(name for name in managers if name not in ("SLURM", "FORK")):
        more += f"; cancel jobs of {others} yourself: those whose directory names the session"
    log.log(
        logging.INFO if quietly and not more else logging.WARNING,
        "RADICAL-Pilot session %s was not closed, and its client has ended: ended what it left "
        "(processes on this machine: %d, batch jobs: %d); its files are in %r, to be looked at or "
        "deleted%s",
        session, count, len(jobs or []) if done else 0, note["directory"], more,
        extra={"session": session},
    )  # fmt: skip
    if done:
        _remove(path)
    return done


def _read(file: int, path: Path) -> dict[str, Any]:
    """Read a note.

    Returns:
        The note.

    Raises:
        ValueError: It is malformed.
        RecursionError: The same.
    """
    note: Any = json.loads(os.pread(file, LIMIT, 0))
    texts = ("session", "directory", "host", "boot")
    if (
        not isinstance(note, dict)
        or set(note) != {*texts, "managers"}
        or not all(isinstance(note[name], str) for name in texts)
        or not isinstance(note["managers"], list)
        or not all(isinstance(name, str) for name in note["managers"])
        or not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", note["session"])
        or path.name != f"{note['session']}.json"
    ):
        raise ValueError("it is malformed")
    return note


def _require_ours(status: os.stat_result, kind: int, path: Path) -> None:
    """Raise `PermissionError` if another user can write to it, or it is of another kind."""
    if (
        stat.S_IFMT(status.st_mode) != kind
        or status.st_uid != os.geteuid()
        or status.st_mode & 0o022
    ):
        raise PermissionError(
            f"{path} is not this user's alone: `chmod go-w {path}`, or move it away"
        )


def _boot() -> str:
    """Return the id of the current boot of this machine, empty if the system has none."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
