"""Directories of runs: their names, locks, logs and lists of results, and their removal.

A process has one run in each `.rhapsody` directory that its engines use. The run's directory
contains the directories of these engines. The names of runs begin with the second in which they
start, contain the program's name, and end with a fraction of the second. The link `latest` points
to the newest run. A run's directory is created when it is first needed, and locked while an engine
of the process is alive.

Two engines with the same uid would mix up their updates and sandboxes. A uid that the program chose
is therefore claimed by a lock in the engine's `work_dir`. Uids that engines generate are unique.

The names in `__all__` are public, for plugins that write files of runs.
"""

from __future__ import annotations

import asyncio
import calendar
import contextlib
import io
import json
import logging
import os
import re
import stat
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rhapsody.data import SavedFile, make_sandbox
from rhapsody.errors import DataError, user_name
from rhapsody.forks import PerProcess
from rhapsody.fsutil import (
    FileLock,
    LockState,
    is_groups,
    make_shared_directory,
    open_directory,
    remove_below,
    state_of,
)
from rhapsody.identity import AttemptId
from rhapsody.masking import escaped, mask

__all__ = [
    "BASE",
    "LATEST",
    "LOCK",
    "LOG",
    "NOTEBOOK",
    "RECORD",
    "Run",
    "enter_run",
    "leave_run",
    "make_base",
    "note_in_log",
    "program",
    "runs_in",
]

log: logging.Logger = logging.getLogger("rhapsody")

LOG_FORMAT = "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s"
TIME_FORMAT = "%Y-%m-%dT%H:%M:%S"
"""Formats of a line of the log and of the time in it. The time is UTC, as in the names of runs."""


class PrintableLines(logging.Formatter):
    """Formatter of log records that masks secrets and escapes control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        return escaped(mask(super().format(record)))


class RunLog(logging.FileHandler):
    """Log handler that writes to a file, which is opened when the first record is written.

    Args:
        path: Function that creates the file's directory and returns the file's path.
    """

    def __init__(self, path: Callable[[], str]) -> None:
        super().__init__(os.devnull, delay=True)  # the path is not known yet
        self.setLevel(logging.INFO)
        self._path = path
        self._pid = os.getpid()
        self._taking = False
        lines = PrintableLines(LOG_FORMAT, TIME_FORMAT)
        lines.converter = time.gmtime
        self.setFormatter(lines)

    def begin(self) -> None:
        """Start writing records. A second call has no effect."""
        self._taking = True
        log.addHandler(self)

    def end(self) -> None:
        """Stop writing records, until `begin` is called again."""
        self._taking = False
        log.removeHandler(self)
        self.close()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record. A disk error is logged once and not raised."""
        self._write(record)
        if self._is_alone(record):
            _hand_on(record)

    def note(self, text: str) -> None:
        """Write text to the log file without passing it to other handlers."""
        self._write(logging.LogRecord("rhapsody.run", logging.INFO, "", 0, text, None, None))

    def _write(self, record: logging.LogRecord) -> None:
        if self._taking and os.getpid() == self._pid:
            try:
                super().emit(record)
            except (OSError, DataError) as error:  # the file cannot be opened
                self._fail(error)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Disable this log after a disk error; leave formatting errors to the other handlers."""
        error = sys.exception()
        if isinstance(error, OSError):
            self._fail(error)

    def _fail(self, error: OSError | DataError) -> None:
        self._taking = False
        log.warning("log of this run: disabled (%s)", error)

    def _open(self) -> io.TextIOWrapper:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.fdopen(os.open(self._path(), flags, 0o600), "ab", 0)
        return io.TextIOWrapper(file, "utf-8", "backslashreplace", write_through=True)

    def _is_alone(self, record: logging.LogRecord) -> bool:
        """Return True if only logs of runs handle a record, and this log is the first of them.

        `logging` prints records that no handler handles (`logging.lastResort`). Logs of runs must
        not suppress this output.
        """
        logger: logging.Logger | None = logging.getLogger(record.name)
        found: list[logging.Handler] = []
        while logger is not None:
            found += logger.handlers
            logger = logger.parent if logger.propagate else None
        return found[:1] == [self] and all(isinstance(each, RunLog) for each in found)


def _hand_on(record: logging.LogRecord) -> None:
    """Print a record as `logging` does if no handler is configured."""
    last = logging.lastResort
    if last is not None and record.levelno >= last.level:
        try:
            text = escaped(mask(record.getMessage()))
        except Exception:  # `logging` reports a record that cannot be formatted
            last.handle(record)
        else:
            last.handle(logging.makeLogRecord({**vars(record), "msg": text, "args": None}))


BASE = ".rhapsody"
"""Name of the directory of runs, in the current directory."""

LATEST, LOCK, LOG, RECORD = "latest", ".lock", "log.txt", "run.jsonl"
"""Names of the link to the newest run, and of the lock, log and record in a run's directory."""

NAME: re.Pattern[str] = re.compile(r"\d{8}T\d{6}-[A-Za-z0-9_.-]{1,32}-[0-9a-f]{4}")
"""Pattern of the name of a run's directory."""

MAX_NAME_LENGTH = 32
"""Maximum number of characters of the program's name in the name of a run's directory."""

MAX_ATTEMPTS = 100
"""Maximum number of attempts if other processes create or remove directories at the same time."""


RUN_VARIABLE = "RHAPSODY_RUN"
"""Environment variable with the path of a reserved run directory; see `reserve_run`."""


def reserve_run(script: str, directory: str | os.PathLike[str] = ".") -> Path:
    """Create the directory of a run that another process will start.

    That process uses the directory if the environment variable `RHAPSODY_RUN` contains its path,
    and if its current directory is `directory`.

    Args:
        script: The path of the script or the name of the module, which becomes part of the run's
            name.
        directory: The directory that contains `.rhapsody`.

    Returns:
        The absolute path of the directory, which only the user can access.

    Raises:
        OSError: The directory cannot be created.
        DataError: Other users could replace the directory.
    """
    base = Path(os.path.abspath(directory), BASE)
    make_base(base)
    while True:
        path = base / new_name(base, script)
        with contextlib.suppress(FileExistsError):
            path.mkdir(0o700)
            return path


class Run:
    """Directory of one run of this process.

    The methods may be called from any thread.

    Args:
        base: The `.rhapsody` directory that contains the run's directory.

    Attributes:
        base: The argument `base`.
        path: The path of the run's directory, which may change until the directory is created.
    """

    def __init__(self, base: Path) -> None:
        self.base: Path = base
        reserved = os.environ.get(RUN_VARIABLE)
        self._made = reserved is not None and Path(reserved).parent == base
        if self._made:  # the processes that this one starts have their own runs
            del os.environ[RUN_VARIABLE]
        self.path: Path = Path(reserved or "") if self._made else base / new_name(base)
        self._engines: list[str] = []
        self._held: FileLock | None = None
        self._lock = threading.Lock()
        self._log = RunLog(self._log_file)

    def enter(self, uid: str) -> None:
        """Register an engine. While any engine is registered, the run's log receives records."""
        with self._lock:
            self._engines.append(uid)
        self._log.begin()

    def make(self) -> Path:
        """Create and lock the directory, unless it is already locked.

        Returns:
            The path of the directory.

        Raises:
            OSError: The directory cannot be created.
            FileNotFoundError: Other processes repeatedly removed the directory, because it was
                empty.
            DataError: Another user could replace the directory.
        """
        with self._lock:
            for attempt in range(MAX_ATTEMPTS):
                if self._held is not None:
                    break
                try:
                    self._claim()
                except FileNotFoundError:  # another process removed it, because it was empty
                    if attempt == MAX_ATTEMPTS - 1:
                        raise
            return self.path

    def _claim(self) -> None:
        make_base(self.base)
        try:
            self.path.mkdir(0o700)
        except FileExistsError:
            if not self._made and not any(os.path.exists(self.path / uid) for uid in self._engines):
                self.path = self.base / new_name(self.base)
                return
        self._made = True
        try:
            self._held = FileLock(self.path / LOCK)
        except BlockingIOError:  # the directory is being removed
            self.path, self._made = self.base / new_name(self.base), False
            return
        point_latest(self.base)

    def leave(self, uid: str) -> bool:
        """Unregister an engine; after the last one, remove the directory if it is empty.

        Returns:
            True if this was the last engine and the directory does not exist now.
        """
        with self._lock:
            if uid not in self._engines:
                return False
            self._engines.remove(uid)
            if self._engines:
                return False
        self._log.end()
        with self._lock:
            if self._held is not None:
                self._held.release()
                self._held = None
            with contextlib.suppress(OSError):  # it is not empty, or was never created
                self.path.rmdir()
                point_latest(self.base)
                self.base.rmdir()
            return not os.path.exists(self.path)

    def note(self, text: str) -> None:
        """Write text to the run's log."""
        self._log.note(text)

    def _log_file(self) -> str:
        return os.fspath(self.make() / LOG)


class _Process:
    """Runs of one process, by the `.rhapsody` directory that contains the run."""

    def __init__(self) -> None:
        self.runs: dict[Path, Run] = {}
        self.lock = threading.Lock()


_process: PerProcess[_Process] = PerProcess(_Process)


def enter_run(base: Path, uid: str) -> Run:
    """Return this process's run in a `.rhapsody` directory, and register an engine with the run.

    No directory is created.
    """
    process = _process.get()
    with process.lock:
        if base not in process.runs:
            process.runs[base] = Run(base)
        run = process.runs[base]
        run.enter(uid)
    return run


def leave_run(run: Run, uid: str) -> None:
    """Unregister an engine that has ended. A second call has no effect."""
    process = _process.get()
    with process.lock:
        if run.leave(uid) and process.runs.get(run.base) is run:
            del process.runs[run.base]


def note_in_log(work_dir: Path, text: str) -> None:
    """Write text to the log of this process's run that contains `work_dir`, if there is one."""
    process = _process.get()
    with process.lock:
        runs = list(process.runs.values())
    for run in runs:
        if run.path == work_dir.parent:
            run.note(text)


_STAMP = "%Y%m%dT%H%M%S"


def new_name(base: Path, script: str | None = None) -> str:
    """Return a name for a run of a script, by default this process's, that starts now.

    The name sorts after those of the runs in the `.rhapsody` directory `base`. If the clock was set
    back, the time in the name is therefore that of the newest run.
    """
    now = time.time()
    ticks = int(now * 0x10000)  # the last four digits are a fraction of a second
    for newest in runs_in(base, own=True)[-1:]:
        with contextlib.suppress(ValueError):  # the digits are no time
            second = calendar.timegm(time.strptime(newest[:15], _STAMP))
            ticks = max(ticks, second * 0x10000 + int(newest[-4:], 16) + 1)
    second, fraction = divmod(ticks, 0x10000)
    return f"{time.strftime(_STAMP, time.gmtime(second))}-{program(script)}-{fraction:04x}"


def _order(name: str) -> tuple[str, str]:
    """Return the sort key of the name of a run: its time and the digits after the program."""
    return name.partition("-")[0], name[-4:]


def digits(count: int) -> str:
    """Return `count` random bytes as hexadecimal digits."""
    return os.urandom(count).hex()


NOTEBOOK = "notebook"
"""Name of the program in the kernel of a notebook."""


def program(script: str | None = None) -> str:
    """Return a script's name, by default this process's, in characters valid in all file names."""
    started = script or str((getattr(sys, "argv", None) or [""])[0])
    place, name = os.path.split(os.path.splitext(started)[0])
    if name == "__main__":  # `python -m package`
        name = os.path.basename(place)
    if name.startswith(("ipykernel", "colab_kernel")):
        name = NOTEBOOK
    if started.startswith("-"):  # `python -c`, or a program from standard input
        name = ""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:MAX_NAME_LENGTH].strip("_.-") or "python"


def runs_in(base: Path, *, own: bool = False) -> list[str]:
    """Return the names of the runs in a `.rhapsody` directory, oldest first.

    Args:
        base: The directory.
        own: True to leave out the runs of other users.
    """
    names: list[str] = []
    with contextlib.suppress(OSError), os.scandir(base) as entries:
        names = [
            entry.name
            for entry in entries
            if NAME.fullmatch(entry.name)
            and entry.is_dir(follow_symlinks=False)
            and (not own or entry.stat(follow_symlinks=False).st_uid == os.geteuid())
        ]
    return sorted(names, key=_order)


def own_runs(base: Path) -> list[Path]:
    """Return the directories of this user's runs in a `.rhapsody` directory, oldest first.

    Raises:
        DataError: Other users could replace the runs.
    """
    require_trusted(base)
    return [base / name for name in runs_in(base, own=True)]


def make_base(base: Path) -> None:
    """Create a `.rhapsody` directory, unless it exists.

    Raises:
        OSError: The directory cannot be created.
        PermissionError: It belongs to another user, and this user cannot write to it. Only runs
            without files can work.
        DataError: Other users could replace the runs in it.
    """
    make_shared_directory(base)
    try:
        require_trusted(base)
    except DataError as error:
        if os.access(base, os.W_OK):
            raise
        raise PermissionError(str(error)) from None


def require_trusted(base: Path) -> None:
    """Raise an error if other users could replace the runs in a `.rhapsody` directory.

    The owner and the members of a group that shares the directory are trusted.

    Raises:
        DataError: The directory belongs to another user, and not to a group, or all users can write
            to it.
    """
    try:
        link, found = os.lstat(base), os.stat(base)
    except FileNotFoundError:
        return
    trusted = (0, os.geteuid())
    if found.st_mode & stat.S_IWOTH:
        raise DataError(
            f"directory {base} is not used for runs, because all users can write to it and replace "
            f"the runs in it. If you trust its content, run: chmod o-w {base}"
        )
    for status in (link, found):
        if status.st_uid not in trusted and not _is_own_groups(base, status):
            raise DataError(
                f"directory {base} is not used for runs, because it belongs to user "
                f"{user_name(status.st_uid)}, who could replace your runs. Use another current "
                "directory or a work_dir of your own; to share the directory with its group, its "
                f"owner can run: chmod g+rwxs,+t,o-w {base} (you must be a member of the group; a "
                "directory that has an access control list, or is in a directory that all users "
                "can write to, cannot be shared)"
            )


def _is_own_groups(base: Path, status: os.stat_result) -> bool:
    """Return True if a directory is shared by a group to which this user belongs.

    If all users can write to the directory that contains it, another user may have created it with
    the group of that directory. With an access control list, the mode does not show who can write.
    """
    try:
        has_list = "system.posix_acl_access" in os.listxattr(base)
    except (AttributeError, OSError):  # not Linux, or a file system without them
        has_list = False
    return (
        is_groups(status.st_mode)
        and status.st_gid in {os.getegid(), *os.getgroups()}
        and not has_list
        and not os.stat(base.parent).st_mode & stat.S_IWOTH
    )


JOBS = "jobs.jsonl"
"""Name of the list of jobs that continue if the program is killed.

A backend writes it in a directory of its session's directory, and removes it when the run ends
properly. Each line is a JSON object: `job` is the id that the batch system has given to the job,
and the keys of `tasks` are the uids of its attempts.
"""


def jobs_lists(run: Path) -> list[Path]:
    """Return the paths of the lists of jobs in a run's directory."""
    return sorted(run.glob(f"*/*/{JOBS}"))


def jobs_left(run: Path) -> dict[str, str]:
    """Return the ids of the jobs that may outlive a run, by the texts of their tasks' `TaskId`."""
    found: dict[str, str] = {}
    for path in jobs_lists(run):
        with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):
            for line in path.read_text(encoding="utf-8").splitlines():
                job = json.loads(line)
                tasks = {str(AttemptId.of(uid).task) for uid in job["tasks"]}
                found |= dict.fromkeys(tasks, str(job["job"]))
    return found


def point_latest(base: Path) -> None:
    """Point `latest` to the user's newest run; ignore errors, and the link of another user."""
    link, pointed = base / LATEST, None
    for _ in range(MAX_ATTEMPTS):  # another process may begin or end a run meanwhile
        newest = runs_in(base, own=True)[-1:]
        if newest == pointed:
            return
        pointed = newest
        with contextlib.suppress(OSError):
            if _is_own_link(link) or not os.path.lexists(link):  # otherwise it is another file
                _replace(link, newest)


def _is_own_link(path: Path) -> bool:
    return path.is_symlink() and os.lstat(path).st_uid == os.geteuid()


def _replace(link: Path, newest: list[str]) -> None:
    new = link.with_name(f".{LATEST}.{digits(4)}")
    try:
        for name in newest:
            new.symlink_to(name)
            os.replace(new, link)
            return
        link.unlink(missing_ok=True)
    finally:
        new.unlink(missing_ok=True)


_claims: dict[str, UidClaim] = {}
_claims_lock = threading.Lock()


class UidClaim:
    """Exclusive use of a uid by one engine, until `release`.

    The claim must be created on the engine's loop: once that loop is closed, the engine is regarded
    as no longer running.

    Args:
        uid: The engine's uid.
        work_dir: The directory of the engine's sandboxes, which is created if it does not exist.

    Raises:
        ValueError: Another engine uses the uid.
        OSError: The lock file cannot be created.
    """

    def __init__(self, uid: str, work_dir: str) -> None:
        self._uid = uid
        self._loop = asyncio.get_running_loop()
        with _claims_lock:
            other = _claims.get(uid)
            if other is not None and not other._loop.is_closed():
                raise ValueError(
                    f"uid {uid!r} is in use by another engine of this process; shut down that "
                    "engine first, or give each engine its own uid"
                )
            if other is not None:
                other._file.release()
            if not os.path.isdir(work_dir):  # an existing directory may be shared with others
                make_sandbox(os.path.realpath(work_dir))  # `work_dir` itself may be a link
            self._file: FileLock = self._locked(work_dir)
            _claims[uid] = self

    def _locked(self, work_dir: str) -> FileLock:
        try:
            file = FileLock(os.path.join(work_dir, f".{self._uid}.lock"))
        except BlockingIOError:
            raise ValueError(
                f"uid {self._uid!r} is in use by another program with the work_dir {work_dir}; "
                "give each engine its own uid or work_dir"
            ) from None
        if file.problem is not None:
            log.warning(
                "%s: locking failed (%s); other programs that use uid %r there at the same time "
                "would share sandboxes with this program",
                file.path, file.problem, self._uid,
            )  # fmt: skip
        return file

    def release(self) -> None:
        """Allow other engines to use the uid. A second call has no effect."""
        with _claims_lock:
            if _claims.get(self._uid) is self:
                del _claims[self._uid]
                self._file.release()


LIST = "results.json"
"""Name of the file in an engine's directory that lists the engine's results, if there are any."""


def write_lists(files: Iterable[SavedFile], base: Path) -> None:
    """Add results that are in runs' directories to the lists of the engines that contain them.

    Most files are in the directory of the engine that writes the list. The others were written by
    earlier runs, whose results this run has reused.

    Args:
        files: The results.
        base: The `.rhapsody` directory.
    """
    lists: dict[Path, dict[str, dict[str, str]]] = {}
    for file in files:
        if file.path.is_relative_to(base):
            run, engine, *names = file.path.relative_to(base).parts
            if names and NAME.fullmatch(run):
                path = os.path.join(*names)
                entry = {"path": path, "task": file.task, "uid": file.uid}
                lists.setdefault(base / run / engine, {})[path] = entry
    for engine_dir, entries in lists.items():
        with contextlib.suppress(OSError):  # a full disk must not prevent an engine from closing
            with contextlib.suppress(ValueError, TypeError, KeyError, FileNotFoundError):
                listed = json.loads((engine_dir / LIST).read_text(encoding="utf-8"))
                entries = {entry["path"]: entry for entry in listed} | entries
            new = engine_dir / f".{LIST}.{digits(4)}"
            new.write_text(json.dumps(list(entries.values()), indent=1), encoding="utf-8")
            os.replace(new, engine_dir / LIST)


def read_list(work_dir: Path) -> set[str]:
    """Return the paths in the list of an engine's results, or an empty set if there is no list.

    Raises:
        ValueError: The list is malformed.
        OSError: The list cannot be read.
    """
    try:
        listed = json.loads((work_dir / LIST).read_text(encoding="utf-8"))
        return {str(each["path"]) for each in listed}
    except FileNotFoundError:
        return set()
    except (TypeError, KeyError) as error:
        raise ValueError(f"{work_dir / LIST} is not a list of results") from error


class WorkDir:
    """Directory of an engine, created when it is first needed.

    Args:
        place: The engine's directory if `in_run` is `None`; otherwise the `.rhapsody` directory, in
            which the directory of the run is created.
        in_run: The engine's uid, which names its directory within the run's directory; `None` if
            the engine does not use the run's directory.

    Attributes:
        base: The absolute path of `place`.
        path: The engine's directory, which may change until `settle` is called.
        settled: True once `path` no longer changes.
    """

    def __init__(self, place: str | os.PathLike[str], in_run: str | None = None) -> None:
        self.base: Path = Path(os.path.abspath(place))
        self.path: Path = self.base
        self._run = None
        self._used: dict[Path, Callable[[], object]] = {}
        if in_run is not None:
            self._run = enter_run(self.path, in_run)
            self.path = self._run.path / in_run
        self._existed = self.path.exists()
        self.settled: bool = self._run is None

    def settle(self) -> Path:
        """Create the run's directory, if the engine uses one. Then `path` no longer changes.

        If the directory cannot be created, no error is raised here, but later operations in the
        directory fail. May be called on any thread.

        Returns:
            The engine's directory, `path`.
        """
        if self._run is not None and not self.settled:
            with contextlib.suppress(OSError):
                self.path = self._run.make() / self.path.name
                self.settled = True
        return self.path

    def use(self, sandbox: str) -> None:
        """Protect the run that contains a sandbox from `rhapsody clean`, until `leave`."""
        run = Path(sandbox).parent.parent
        if run in self._used or run.parent.name != BASE or NAME.fullmatch(run.name) is None:
            return
        with contextlib.suppress(OSError):  # the run's directory is locked already
            there = os.path.exists(run / LOCK)
            lock = FileLock(run / LOCK)
            self._used[run] = lock.let_go if there else lock.release

    def close(self, results: Iterable[SavedFile]) -> None:
        """Write the list of results, and remove the engine's directory if it is new and empty."""
        if self._run is not None and self.settled:
            write_lists(results, self.base)
        if self._existed:
            return
        with contextlib.suppress(OSError):  # not empty, or never created
            self.path.rmdir()
        if self.path.parent.name == BASE:
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()

    def leave(self) -> None:
        """Unregister the engine from its run, and remove the run's directory if it is unused.

        The directory is removed if it is empty and no other engine of the process is registered.
        """
        for let_go in self._used.values():
            let_go()
        self._used.clear()
        if self._run is not None:
            leave_run(self._run, self.path.name)


@dataclass(frozen=True, slots=True)
class LeftRun:
    """Directory of an existing run, for `rhapsody clean`.

    Attributes:
        path: The path of the directory.
        lock: The file that the run locks while it is active.
        state: `"held"` while the run is active, `"free"` after its end, `"left"` if it was
            killed, `"unknown"` if this cannot be determined on this host.
        changed: The time of the last change to the directory or one of its entries, in seconds
            since the epoch.
        status: The status of the directory, which identifies it.
    """

    path: Path
    lock: Path
    state: LockState
    changed: float
    status: os.stat_result

    def results(self) -> dict[str, int]:
        """Return the paths of the run's results that still exist, with their sizes in bytes.

        The results of an engine that was killed are not known.

        Raises:
            ValueError: A list of results is malformed.
            OSError: A list of results cannot be read.
        """
        return {
            path: _size(path, shared=True)
            for engine in _directories(self.path)
            for name in read_list(engine)
            if (path := os.path.normpath(engine / name)).startswith(f"{engine}{os.sep}")
            and os.path.lexists(path)
        }

    def goes(self, results: Collection[str]) -> dict[str, int]:
        """Return the paths to remove, with their sizes in bytes, in order to keep only `results`.

        If there are any results, the run's record and the lists of results are kept as well.
        """
        above = {str(parent) for path in results for parent in Path(path).parents}
        stays = {*results, str(self.lock)}
        if results:
            lists = {
                str(self.path / Path(path).relative_to(self.path).parts[0] / LIST)
                for path in results
            }
            stays |= {str(self.path / RECORD), *lists}
        return {path: _size(path) for path in _others(self.path, stays, above)}

    def remove(self, paths: Iterator[str]) -> bool:
        """Remove paths in the directory, and then the directory itself if it is empty.

        Everything is removed relative to the open directory, so that nothing outside is removed if
        another user replaces the directory with a link at the same time.

        Returns:
            False if another process has locked the directory since it was listed.

        Raises:
            OSError: A path cannot be removed.
            PermissionError: Another directory, or a link, has replaced the listed directory.
        """
        with (
            open_directory(self.path.parent) as base,
            open_directory(self.path.name, base) as directory,
        ):
            found = os.fstat(directory)
            if not os.path.samestat(found, self.status) or found.st_uid != os.geteuid():
                raise PermissionError("it was replaced since it was listed")
            try:
                lock = FileLock(self.lock.name, directory)
            except BlockingIOError:
                return False
            try:
                for path in paths:
                    remove_below(directory, os.path.relpath(path, self.path))
            finally:
                lock.release()
            with contextlib.suppress(OSError):  # the directory contains results
                os.rmdir(self.path.name, dir_fd=base)
        return True


def left_runs(base: Path) -> list[LeftRun]:
    """Return the current user's run directories in a `.rhapsody` directory, oldest first."""
    found = []
    for path in _directories(base):
        if not NAME.fullmatch(path.name):
            continue
        lock = path / LOCK
        with contextlib.suppress(FileNotFoundError):  # the directory was removed meanwhile
            changed = max(os.lstat(each).st_mtime for each in (path, *path.iterdir()))
            found.append(LeftRun(path, lock, state_of(lock), changed, os.lstat(path)))
    return sorted(found, key=lambda run: run.path.name)


def tidy(base: Path) -> None:
    """Point `latest` to the newest remaining run, and remove `base` if it is empty."""
    point_latest(base)
    with contextlib.suppress(OSError):  # it is not empty
        base.rmdir()


def _directories(place: Path) -> list[Path]:
    """Return the subdirectories of a directory that belong to this user and are not links."""
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        return [
            Path(entry.path)
            for entry in entries
            if entry.is_dir(follow_symlinks=False)
            and entry.stat(follow_symlinks=False).st_uid == os.geteuid()
        ]
    return []


def _others(directory: Path, kept: set[str], above: set[str]) -> Iterator[str]:
    """Yield the paths in a directory, except `kept` and the directories `above` them."""
    for path in directory.iterdir():
        if str(path) in kept:
            continue
        if str(path) in above and path.is_dir() and not path.is_symlink():
            yield from _others(path, kept, above)
        else:
            yield str(path)


def _size(path: str, *, shared: bool = False) -> int:
    """Return the size in bytes of a file or directory.

    Args:
        path: The path.
        shared: True to count files that have other hard links, too.
    """
    paths = [path]
    for place, _, names in () if os.path.islink(path) else os.walk(path):
        paths += [os.path.join(place, name) for name in names]
    size = 0
    for each in paths:
        with contextlib.suppress(OSError):
            status = os.lstat(each)
            if shared or status.st_nlink == 1:
                size += status.st_size
    return size
