"""Detached jobs: jobs that outlive the program, and whose results the next run takes.

Each backend object with `detach=True` has a directory that only the user can access. The client
lists there every job that it has submitted, in `jobs.jsonl`, and the jobs write their reports
there. The list also names the tasks that take over jobs of earlier runs, for `rhapsody status`. The
program and the client each hold a lock while they run. The next run with the same journal takes
over the directories whose program and client have ended. It finds the job of a task by the task's
identity, and removes the directories when it ends properly.

A task is not taken over if one of the files that its arguments name has changed since the job was
submitted. Files that did not exist then are regarded as outputs.
"""

from __future__ import annotations

import fcntl
import glob
import json
import logging
import os
import shutil
import stat
from collections.abc import Set
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from rhapsody import TaskDescription
from rhapsody.sdk import escaped, unpack
from rhapsody_psij.job import read_log, read_outcome

log: logging.Logger = logging.getLogger("rhapsody.psij")

LIST, LOCK, JOURNAL = "jobs.jsonl", "program.lock", "journal"


@dataclass(slots=True, eq=False)
class LeftJob:
    """Job of an earlier run.

    Attributes:
        directory: The directory of the backend that submitted the job.
        native: The id that the batch system has given to the job.
        ranks: True if PSI/J's launcher runs the job's only task.
        tasks: The tasks that the job was submitted with, and that no task of this run has taken
            over, by uid. The values are those of `entry`.
    """

    directory: Path
    native: str
    ranks: bool
    tasks: dict[str, dict[str, Any]]

    def exit_code(self, executor: str) -> int | None:
        """Return the exit code of the job's script; `None` if it was killed or runs."""
        with suppress(OSError, ValueError):
            return int((self.directory / executor / f"{self.native}.ec").read_text())
        return None

    def outcome(self, uid: str, executor: str) -> dict[str, Any] | None:
        """Return the outcome of a task if it has ended, otherwise `None`."""
        if self.ranks:
            code = self.exit_code(executor)
            return None if code is None else {"exit_code": code}
        reports = self.directory / "reports"
        with suppress(FileNotFoundError):  # else read, as only this user can write it
            report = (reports / f"{uid}.ended").read_bytes()
            return read_outcome("ended", report.partition(b"\n")[2])
        for log_file in reports.glob("*.log"):
            for name, kind, values in read_log(log_file)[0]:
                if name == uid and kind == "exited":
                    return read_outcome(kind, values)
        return None


@dataclass(slots=True)
class LeftJobs:
    """Jobs of earlier runs, and the locks of their directories.

    Attributes:
        jobs: The jobs.
        tasks: For each identity, the job of the task and the task's uid in that job.
    """

    jobs: list[LeftJob] = field(default_factory=list)
    tasks: dict[str, tuple[LeftJob, str]] = field(default_factory=dict)
    _locks: dict[Path, int] = field(default_factory=dict)

    @classmethod
    def take_over(cls, *patterns: str, journal: bytes | None = None) -> LeftJobs:
        """Take over the directories that match a pattern and whose program has ended.

        Waits until the clients of these programs have ended, which is a matter of seconds.

        Args:
            *patterns: The patterns, as for `glob.glob`.
            journal: The path of the journal that the programs had, or `None` for any.

        Returns:
            The jobs in these directories.
        """
        left = cls()
        found = (glob.glob(os.path.join(pattern, LIST)) for pattern in patterns)
        paths: dict[Path, float] = {}
        for name in chain.from_iterable(found):
            directory = escaped(os.path.dirname(name))
            try:
                path = Path(name).resolve(strict=True)
                private = _is_private(path.parent)
                modified = path.stat().st_mtime
            except (OSError, RuntimeError) as error:  # it may be a link of another user
                log.warning("ignoring %s: %s", directory, escaped(str(error)))
                continue
            if private:
                paths[path] = modified
            else:
                log.warning("ignoring %s: other users could write to it", directory)
        for path in sorted(paths, key=paths.__getitem__):
            if journal is not None and _journal_of(path.parent) != journal:
                continue
            lock = locked(path.parent / LOCK, wait=False)
            if lock is None:  # the program is running
                continue
            client = locked(path, wait=True)
            assert client is not None
            os.close(client)
            left._locks[path.parent] = lock
            left._read(path)
        return left

    def _read(self, path: Path) -> None:
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found = json.loads(line)
                if "ranks" not in found:  # for `rhapsody status`: an earlier run's list has it, too
                    continue
                job = LeftJob(path.parent, found["job"], found["ranks"], found["tasks"])
            except (ValueError, KeyError):  # the machine failed while the line was written
                log.warning("%s: ignoring a damaged line", path)
                continue
            self.jobs.append(job)
            self.tasks |= {task["identity"]: (job, uid) for uid, task in job.tasks.items()}

    def remove(self, canceled: Set[LeftJob]) -> None:
        """Remove canceled jobs from the lists, and directories in which no other job is listed."""
        for directory in {job.directory for job in canceled}:
            kept = [job for job in self.jobs if job.directory == directory and job not in canceled]
            if not kept:
                shutil.rmtree(directory, ignore_errors=True)
                continue
            lines = [{"job": job.native, "ranks": job.ranks, "tasks": job.tasks} for job in kept]
            new = directory / f".{LIST}"
            new.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
            os.replace(new, directory / LIST)

    def close(self) -> list[Path]:
        """Release the locks, and return the directories."""
        for lock in self._locks.values():
            os.close(lock)
        directories = list(self._locks)
        self._locks.clear()
        return directories


def entry(task: TaskDescription) -> dict[str, Any]:
    """Return the values of a task that the next run needs."""
    identity, files = task["identity"]
    return {"identity": identity, "files": dict(files), "sandbox": task.get("sandbox")}


def succeeded(outcome: dict[str, Any]) -> bool:
    """Return True if an outcome is that of a successful task. All others run again."""
    if "call" in outcome:
        return unpack(outcome["call"]).done
    return outcome.get("exit_code") == 0 and "exception" not in outcome


def locked(path: Path, *, wait: bool) -> int | None:
    """Lock a file.

    Returns:
        The file's descriptor; `None` if the file is locked and `wait` is False.

    Raises:
        OSError: The file system does not support locks.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    file = os.open(path, flags, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    except BaseException:
        os.close(file)
        raise
    return file


def _journal_of(directory: Path) -> bytes | None:
    with suppress(FileNotFoundError):
        return (directory / JOURNAL).read_bytes()
    return None


def _is_private(directory: Path) -> bool:
    """Return True if only this user can write to a directory, whose files may be unpickled."""
    found = os.lstat(directory)
    mine = found.st_uid == os.geteuid()
    return mine and stat.S_ISDIR(found.st_mode) and not stat.S_IMODE(found.st_mode) & 0o077
