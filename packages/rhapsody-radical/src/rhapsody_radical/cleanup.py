"""Cleanup of sessions: their processes on this machine, their batch jobs and session files.

Usually a session's client ends the session's pilots, even if the program was killed. If the program
and the client are both killed, the next start in the same directory finds the session file that the
client has written, and ends the session. The client holds a lock on the file while it runs, so an
unlocked session file belongs to a session that was not closed.

Processes are identified by their environment, which their descendants inherit even in the
background, in other process groups and in other directories. The directory of a process does not
identify its owner, and a process id may be reused, so neither is used here. Batch jobs are
identified by their working directory, which RADICAL-Pilot names after the session. Slurm jobs are
canceled; jobs of other batch systems must be canceled by the user.
"""

from __future__ import annotations

import fcntl
import logging
import os
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

import psutil

log: logging.Logger = logging.getLogger("rhapsody.radical")

# Processes.

MARK = "RADICAL_RHAPSODY"
"""Environment variable of the client and its descendants; contains the session's uid."""

SESSION = "RP_SESSION_ID"
TASK = "RP_TASK_ID"
PILOT = "RP_PILOT_ID"

GRACE = 0.5
"""Seconds between SIGTERM and SIGKILL."""

KILL_ROUNDS = 3
"""Number of rounds of killing; each round also finds processes that started during the last one."""


def find(session: str, name: str = "", values: Collection[str] = ()) -> list[psutil.Process]:
    """Return the running processes of a session, except the calling process.

    A login node has thousands of processes, so `psutil.Process` objects are created only for
    processes that match.

    Args:
        session: The session's uid.
        name: `TASK` or `PILOT` to find only the processes of some tasks or pilots.
        values: The uids of these tasks or pilots.
    """
    # A client may run in a task of another session, whose variables it inherits.
    names = (SESSION,) if name == TASK else (SESSION, MARK)
    marks = {os.fsencode(f"{mark}={session}") for mark in names}
    narrow = {os.fsencode(f"{name}={value}") for value in values}

    def matches(pid: int) -> bool:
        lines = _environment(pid)
        return not marks.isdisjoint(lines) and not (name and narrow.isdisjoint(lines))

    found = []
    for pid in psutil.pids():
        with suppress(OSError, psutil.Error):  # it has ended, or belongs to another user
            if pid != os.getpid() and matches(pid):
                process = psutil.Process(pid)
                if matches(pid):  # again, because the id may have been reused meanwhile
                    found.append(process)
    return found


def _environment(pid: int) -> list[bytes]:
    """Return a process's initial environment as lines; empty for processes of other users."""
    if os.stat(f"/proc/{pid}").st_uid != os.geteuid():
        return []
    found, starts, until = _proc(pid, "environ"), True, time.monotonic() + 1.0
    while not found and starts and time.monotonic() < until:
        fields = _proc(pid, "stat").rpartition(b")")[2].split()  # from the third on, of proc(5)
        size, environment_end = fields[20], fields[48]
        # The kernel loads a program before it sets the program's environment.
        starts = size != b"0" and environment_end == b"0"
        found = _proc(pid, "environ")  # again, because it may have been set in the meantime
    return found.split(b"\0")


def _proc(pid: int, name: str) -> bytes:
    return Path(f"/proc/{pid}/{name}").read_bytes()


def end(
    session: str, name: str = "", values: Collection[str] = (), *, patience: float = 0.0
) -> int:
    """Wait for processes to end, then terminate, and finally kill, those that remain.

    Args:
        session: The session's uid.
        name: See `find`.
        values: See `find`.
        patience: Seconds to wait before terminating processes.

    Returns:
        The number of processes that were terminated or killed.
    """
    deadline = time.monotonic() + patience
    left = find(session, name, values)
    while left and (rest := deadline - time.monotonic()) > 0:
        _wait(left, rest)
        left = find(session, name, values)
    for process in left:  # scripts of a login shell, such as pyenv's, can then release their locks
        with suppress(psutil.Error):
            process.terminate()
    _wait(left, GRACE)
    ended: set[psutil.Process] = set()
    for _ in range(KILL_ROUNDS):
        if not left:
            break
        _kill(left)
        _wait(left, 2.0)
        ended.update(left)
        left = find(session, name, values)
    return len(ended)


def _kill(processes: Collection[psutil.Process]) -> None:
    """Kill processes, and the process group of each process that leads one.

    The members of such a group are descendants of its leader, whatever their environment contains.
    """
    for process in processes:
        with suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == process.pid and process.is_running():
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()  # psutil does not kill another process with the same id


def _wait(processes: Collection[psutil.Process], seconds: float) -> None:
    """Wait up to `seconds` until processes have ended. Zombies count as ended."""
    deadline = time.monotonic() + seconds
    while any(map(_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.02)


def _alive(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


# Batch jobs.

COMMAND_TIMEOUT = 30.0
"""Time limit in seconds for a Slurm command."""

ACTIVE = "PENDING,CONFIGURING,RUNNING,SUSPENDED"
"""States of jobs that have not ended and are not ending."""

ENDED_STATES = "TIMEOUT,DEADLINE,NODE_FAIL,BOOT_FAIL,PREEMPTED,OUT_OF_MEMORY"
"""States of jobs that the batch system has ended; the state names the reason."""

OVER_STATES = f"COMPLETING,COMPLETED,CANCELLED,FAILED,{ENDED_STATES}"
"""States of all jobs that have ended or are ending."""

SANDBOX = "radical.pilot.sandbox"
"""Name of RADICAL-Pilot's directory for the sandboxes of sessions."""

FIELD, RECORD = "\x1f", "\x1e"
"""Separators of fields and jobs in Slurm's output; paths may contain spaces, bars and newlines."""


@dataclass(frozen=True, slots=True)
class BatchJob:
    """Batch job, as the batch system describes it, and the uid of its pilot."""

    id: str
    state: str
    reason: str
    queue: str
    pilot: str


def find_jobs(session: str, states: str = ACTIVE) -> list[BatchJob] | None:
    """Return the Slurm jobs of a session, or `None` if Slurm is missing or does not answer.

    A job is identified by its working directory, which RADICAL-Pilot creates for each pilot in a
    directory that is named after the session.

    Args:
        session: The session's uid.
        states: Return only jobs in these states, separated by commas. Slurm forgets jobs a few
            minutes after they end.
    """
    form = FIELD.join(("%A", "%T", "%r", "%P", "%Z")) + RECORD
    output = _slurm("squeue", "--all", "--noheader", f"--user={os.getuid()}", f"--states={states}",
                    f"--format={form}")  # fmt: skip
    if output is None:
        return None
    found = []
    for record in output.split(RECORD):
        fields = record.removeprefix("\n").split(FIELD)
        *_, sandbox, uid, pilot = ["", "", *os.path.normpath(fields[-1]).split(os.sep)]
        if len(fields) == 5 and (sandbox, uid) == (SANDBOX, session):
            fields[-1] = pilot
            found.append(BatchJob(*fields))
    return found


def cancel_jobs(jobs: Iterable[BatchJob]) -> bool:
    """Cancel Slurm jobs; return True if Slurm accepted the request."""
    ids = [job.id for job in jobs]
    return not ids or _slurm("scancel", *ids) is not None


def _slurm(*words: str) -> str | None:
    """Return the output of a Slurm command, or `None` if the command is missing or fails."""
    if shutil.which(words[0]) is None:
        log.debug("cannot search for batch jobs: %s is not installed", words[0])
        return None
    # Variables with these prefixes set defaults for the user's own queries; they would change the
    # output.
    defaults = ("SQUEUE_", "SCANCEL_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(defaults)}
    try:
        return subprocess.run(
            words, env=kept, check=True, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, errors="surrogateescape", timeout=COMMAND_TIMEOUT,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("%s failed: %s", words[0], (getattr(error, "stderr", "") or str(error)).strip())
    return None


# Session files.

SESSIONS_DIRECTORY = ".rhapsody"
"""Name of the sessions' directory in the working directory; each engine uses a subdirectory."""

MAX_FILE_SIZE = 16384
"""Maximum size of a session file in bytes."""

_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def place(work_dir: Path) -> Path:
    """Return the directory of this user's session files, for all engines that use `work_dir`.

    Each user has a separate directory, because several users may share `work_dir`.
    """
    found = [each for each in (work_dir, *work_dir.parents) if each.name == SESSIONS_DIRECTORY]
    return (found or [work_dir])[0] / f"radical.{os.geteuid()}"


class SessionFile:
    """File that describes the session of this process, locked until it is removed.

    Args:
        place: The directory of the session files; created if it is missing.
        session: The session's uid.
        directory: The session's directory.
        managers: The batch systems on which the session's pilots run, by their names in
            RADICAL-Pilot.

    Raises:
        OSError: The file cannot be written, or other users can write to `place`.
    """

    def __init__(self, place: Path, session: str, directory: Path, managers: Iterable[str]) -> None:
        self.path: Path = place / session
        self._file = _create(self.path)
        with suppress(OSError):  # some network file systems do not support locks
            fcntl.flock(self._file, fcntl.LOCK_EX)
        # The uid is last: it is missing in an incomplete file.
        systems = " ".join(sorted(set(managers)))
        text = "\0".join([str(directory), socket.gethostname(), systems, session])
        os.write(self._file, os.fsencode(text))

    def remove(self) -> None:
        """Remove the file after the session has ended, and the directory if it is then empty."""
        _remove(self.path)
        self.close()

    def close(self) -> None:
        """Close this process's copy of the lock; called in forked processes as well."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


def _create(path: Path) -> int:
    while True:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_private(path.parent)
        with suppress(FileNotFoundError):  # another session removed the directory with its file
            return os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)


def _remove(path: Path) -> None:
    with suppress(OSError):  # the directory contains other files
        path.unlink()
        path.parent.rmdir()


def clean_up(place: Path) -> list[str]:
    """Clean up after each session that has a file in a directory and whose client has ended.

    Called before a session creates its own file.

    Args:
        place: The directory of the session files.

    Returns:
        The uids of the sessions that were cleaned up.
    """
    try:
        _require_private(place)
        return [path.name for path in sorted(place.iterdir()) if _settle(path)]
    except FileNotFoundError:
        return []
    except OSError as error:
        log.warning("cannot search for sessions of killed programs: %s", error)
        return []


def end_session(place: Path, session: str) -> None:
    """Clean up after a session even if its client is still running."""
    if not _settle(place / session, certain=True):
        end(session)


def _settle(path: Path, *, certain: bool = False) -> bool:
    """Clean up after the session of one session file, if the session's client has ended.

    A session file causes processes to be killed. Therefore, session files are only read in
    directories that no other user can write to, and contain no process ids.

    Args:
        path: The session file.
        certain: True to clean up regardless of the client; otherwise, the file's lock must show
            that the client has ended.

    Returns:
        True if the remains of the session have been ended, otherwise False.
    """
    try:
        file = os.open(path, _FLAGS)
    except OSError:  # the session was closed in the meantime, or this is not a file
        return False
    try:
        directory, host, managers, uid = os.fsdecode(os.pread(file, MAX_FILE_SIZE, 0)).split("\0")
        here = host == socket.gethostname()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not certain:
                return False  # the client is running
        except OSError:  # some network file systems do not support locks
            here = False
        if uid != path.name or os.fstat(file).st_nlink == 0:
            return False  # the file is invalid, or the session was closed in the meantime
        if certain or here:
            return _end_remains(path, directory, managers.split(), quietly=certain)
        log.warning(
            "RADICAL-Pilot session %s: started on %s and not closed; it may still be running. If "
            "it is not, end the processes on that host that have %s=%s in their environment, "
            "cancel the batch jobs whose directories contain the session's name, and remove %s",
            uid, host, MARK, uid, path, extra={"session": uid},
        )  # fmt: skip
    except (OSError, ValueError) as error:
        log.info("ignoring session file %s: %s", path, error)
    finally:
        os.close(file)
    return False


def _end_remains(path: Path, directory: str, managers: list[str], *, quietly: bool) -> bool:
    """End the remains of a session; return False if Slurm did not cancel its jobs."""
    session = path.name
    jobs = find_jobs(session)  # first, because killing the session's processes may end a job
    done = (jobs is not None or "SLURM" not in managers) and cancel_jobs(jobs or [])
    count = end(session)
    more = "" if done else "; Slurm did not cancel its jobs, so the next start will try again"
    if others := ", ".join(name for name in managers if name not in ("SLURM", "FORK")):
        more += f"; cancel its {others} jobs yourself: their directories contain the session's name"
    log.log(
        logging.INFO if quietly and not more else logging.WARNING,
        "RADICAL-Pilot session %s: cleaned up, because its client ended without closing the "
        "session (processes ended on this machine: %d, batch jobs canceled: %d); the session's "
        "files are in %r%s",
        session, count, len(jobs or []) if done else 0, directory, more,
        extra={"session": session},
    )  # fmt: skip
    if done:
        _remove(path)
    return done


def _require_private(place: Path) -> None:
    """Raise `PermissionError` unless a path is a directory that only this user can write to."""
    found = os.lstat(place)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(
            f"{place} must be a directory that belongs to you and is writable only by you: run "
            f"`chmod go-w {place}`, or move it away"
        )
