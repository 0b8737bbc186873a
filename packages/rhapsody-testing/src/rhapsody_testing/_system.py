"""Measurements of this process, and separate directories, for the checks of the conformance kit.

The checks judge the measurements; this module does not. The clock counts only the time in which
this process could run, so that a machine that pauses or is overloaded is not mistaken for a slow
backend.
"""

from __future__ import annotations

import asyncio
import atexit
import fnmatch
import functools
import glob
import itertools
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import (
    AsyncIterator,
    Callable,
    Container,
    Iterator,
    Mapping,
    Sequence,
    Set,
    Sized,
)
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import psutil
import pytest

MARK = "RHAPSODY_CONFORMANCE"
"""Name of the environment variable that identifies orphaned descendants of this process."""

NEIGHBOR = "rhapsody_kit_neighbor"
"""Name of a module that can be imported only with the program's `sys.path`."""

_NEIGHBOR_SOURCE = """
def triple(number):
    return 3 * number


async def triple_async(number):
    return 3 * number
"""

_PYTHONS_OWN = (
    # Helpers that the standard library starts once per process, and their directory.
    "process *multiprocessing.resource_tracker*",
    "process *multiprocessing.forkserver*",
    "temporary pymp-*",
    # The directory of pytest, if pytest first creates a temporary directory during a check.
    "temporary pytest-of-*",
    # The loop's own executor, which the loop stops when it is closed.
    "thread asyncio_*",
)


class RunningClock:
    """Clock that stops while this process cannot run.

    A daemon thread ticks at regular intervals. A late tick means that the process could not run; of
    the time since the last tick, only the processor time that the process has used is counted. A
    backend that blocks the loop does not delay the thread. On Linux, if the kernel reports for how
    long the loop's thread waited for a processor, this time is not counted either. The clock is a
    context manager, and must be entered on the loop's thread.
    """

    def __enter__(self) -> Self:
        try:
            path = f"/proc/self/task/{threading.get_native_id()}/schedstat"
            self._statistics = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            self._statistics = -1
        self._tick = (0.0, time.monotonic(), time.process_time(), self._waited())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="rhapsody-kit-clock", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._statistics >= 0:
            os.close(self._statistics)

    def now(self) -> float:
        """Return the number of seconds counted so far."""
        return self._next()[0]

    @asynccontextmanager
    async def within(
        self, seconds: float, expired: Callable[[], object] | None = None
    ) -> AsyncIterator[asyncio.Timeout]:
        """Limit the time of the `with` block like `asyncio.timeout`, but measured by this clock.

        Args:
            seconds: The time limit.
            expired: Called when the time has passed, before the block is canceled.

        Yields:
            The timeout.
        """
        loop = asyncio.get_running_loop()
        end = self.now() + seconds
        timer: asyncio.TimerHandle

        def look() -> None:
            nonlocal timer
            left = end - self.now()
            if left > 0:
                timer = loop.call_later(left, look)
            else:
                if expired is not None:
                    expired()
                limit.reschedule(loop.time())

        async with asyncio.timeout(None) as limit:
            timer = loop.call_later(seconds, look)
            try:
                yield limit
            finally:
                timer.cancel()

    def _work(self) -> None:
        while not self._stop.wait(0.02):
            self._tick = self._next()

    def _next(self) -> tuple[float, float, float, float]:
        """Return the current tick: seconds counted, clock time, processor time and time waited."""
        counted, last, used, waited = self._tick
        now, using, waiting = time.monotonic(), time.process_time(), self._waited()
        ran = now - last - (waiting - waited)
        return counted + min(ran, max(0.03, using - used)), now, using, waiting

    def _waited(self) -> float:
        if self._statistics < 0:
            return 0.0
        return int(os.pread(self._statistics, 100, 0).split()[1]) / 1e9


class Gap(NamedTuple):
    """Pause of the loop, in counted seconds and in seconds of the wall clock."""

    counted: float
    seen: float


class Heartbeat:
    """Context manager that measures for how long the running loop is blocked.

    Attributes:
        worst: The longest pause; complete when the `with` block has ended.
        total: The sum of all pauses of more than 5 ms; complete when the `with` block has ended.
    """

    def __init__(self, clock: RunningClock, interval: float = 0.005) -> None:
        self.worst = self.total = Gap(0.0, 0.0)
        self._clock = clock
        self._interval = interval

    def __enter__(self) -> Self:
        self._last = self._clock.now(), time.monotonic()
        self._schedule()
        return self

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()
        self._measure()

    def _schedule(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._beat)

    def _beat(self) -> None:
        self._measure()
        self._schedule()

    def _measure(self) -> None:
        now = self._clock.now(), time.monotonic()
        counted, seen = (now[i] - self._last[i] - self._interval for i in (0, 1))
        self.worst = Gap(max(self.worst.counted, counted), max(self.worst.seen, seen))
        if seen > 0.005:
            self.total = Gap(self.total.counted + max(counted, 0.0), self.total.seen + seen)
        self._last = now


class NamedPipe:
    """Named pipe whose reader notices when processes open it for writing and when they end.

    A context manager, to be used on a running loop.

    Attributes:
        path: The path of the pipe.
        opened: Set when a process has written to the pipe.
        closed: Set when no process holds the pipe open for writing any more.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.opened = asyncio.Event()
        self.closed = asyncio.Event()

    def __enter__(self) -> Self:
        os.mkfifo(self.path)
        self._descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._descriptor, self._read)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _read(self) -> None:
        if os.read(self._descriptor, 65536):
            self.opened.set()
        else:
            self._loop.remove_reader(self._descriptor)
            self.closed.set()


Holdings = dict[tuple[str, Any], str]
"""Descriptions of held resources, by kind and identity. Each description starts with the kind."""


def holdings(mark: str | None = None) -> Holdings:
    """Return the resources of this process: threads, tasks, child processes and files.

    If a mark from `marked` is given, orphaned descendants with this mark are included.
    """
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    return {
        **{("thread", each.ident): f"thread {each.name}" for each in threading.enumerate()},
        **{("task", id(t)): f"task {t.get_name()} ({t.get_coro()!r})" for t in tasks},
        **{("temporary", name): f"temporary {name}" for name in os.listdir(_scratch_root() / "t")},
        **{("process", identity): text for identity, text in _processes(mark).items()},
        **{("file", identity): text for identity, text in _files().items()},
    }


def leftovers(
    before: Holdings, allowed: Sequence[str], kinds: Container[str], mark: str | None = None
) -> Holdings:
    """Return the resources that are held now, were not held before and are not allowed.

    Args:
        before: The resources that were held before.
        allowed: Patterns of descriptions of resources that are allowed.
        kinds: The kinds of resources to return.
        mark: The mark of orphaned descendants to include; see `holdings`.
    """
    patterns = (*_PYTHONS_OWN, *allowed)
    return {
        key: text
        for key, text in holdings(mark).items()
        if key[0] in kinds
        and key not in before
        and not any(fnmatch.fnmatchcase(text, pattern) for pattern in patterns)
    }


Found = TypeVar("Found", bound=Sized)


async def settled(look: Callable[[], Found], within: float) -> Found:
    """Call `look` until its result is empty or `within` seconds have passed; return the result."""
    end = time.monotonic() + within
    while (left := look()) and time.monotonic() < end:
        await asyncio.sleep(0.05)
    return left


def listed(left: Holdings) -> str:
    """Return a message about leftovers, with the setting that allows them."""
    texts = list(left.values())
    pattern = _pattern(texts[0])
    return f"left behind: {', '.join(texts)}; to allow it, set `leaves_behind = ({pattern!r},)`"


# Numbers of descriptors, processes and objects, and random names. Numbers after a letter or a full
# stop belong to a name or a version.
_VARIES = re.compile(r"\[\d+\]|0x[0-9a-f]+|(?<![A-Za-z0-9.])\d+|(?<=\btmp)[a-z0-9_]{8}\b")


def _pattern(text: str) -> str:
    """Return a pattern for a description, without the parts that differ in the next run."""
    return "*".join(glob.escape(part) for part in _VARIES.split(text))


@contextmanager
def marked() -> Iterator[str]:
    """Set an environment variable that identifies descendants even if they are orphaned.

    Yields:
        The value of the variable.
    """
    mark = uuid.uuid4().hex
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, mark)
        yield mark


def end_processes(left: Holdings) -> None:
    """Kill the processes among the leftovers, so that a faulty backend leaves none."""
    for kind, identity in left:
        if kind == "process":
            with suppress(psutil.Error):
                psutil.Process(identity[0]).kill()


def _processes(mark: str | None) -> dict[object, str]:
    found = psutil.Process().children(recursive=True)
    if mark is not None:
        known = {os.getpid(), *(process.pid for process in found)}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid not in known and process.environ().get(MARK) == mark:
                    found.append(process)
    described: dict[object, str] = {}
    for process in found:
        with suppress(psutil.NoSuchProcess):
            zombie = process.status() == psutil.STATUS_ZOMBIE
            command = " ".join(process.cmdline()) if not zombie else f"{process.name()} <defunct>"
            described[process.pid, process.create_time()] = f"process {command[:200]}"
    return described


def _files() -> dict[object, str]:
    try:
        numbers = os.listdir("/proc/self/fd")
    except FileNotFoundError:  # not Linux
        return {file.fd: f"file {file.path}" for file in psutil.Process().open_files()}
    found: dict[object, str] = {}
    for number in numbers:
        with suppress(FileNotFoundError):
            target = os.readlink(f"/proc/self/fd/{number}")
            if not target.startswith("/proc/"):  # the descriptor of the listing
                found[f"{number} {target}"] = f"file {target}"
    return found


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """Settings of this process that a backend must not change."""

    environment: Mapping[str, str]
    handlers: Mapping[str, Any]
    directory: str
    umask: str
    path: Sequence[str]

    @classmethod
    def now(cls) -> Self:
        """Return the settings of this process."""
        mask = os.umask(0o077)  # reading the umask requires setting it
        os.umask(mask)
        own = (MARK, "PYTEST_")
        return cls(
            environment={k: v for k, v in os.environ.items() if not k.startswith(own)},
            handlers={each.name: signal.getsignal(each) for each in signal.Signals},
            directory=os.getcwd(),
            umask=f"{mask:03o}",
            path=tuple(sys.path),
        )

    def since(self, before: ProcessSettings, adds: Set[str]) -> list[str]:
        """Return descriptions of the differences from earlier settings.

        Changes of `sys.path` are omitted if `adds` contains `"sys.path"`.
        """
        words = []
        for what, name in {"environment": "environment variable", "handlers": "handler of"}.items():
            now, former = getattr(self, what), getattr(before, what)
            keys = sorted(now.keys() | former.keys())
            changed = [key for key in keys if now.get(key) != former.get(key)]
            words += [f"the {name} {key} has changed" for key in changed]
        for what, name in {"directory": "current directory", "umask": "umask"}.items():
            if getattr(self, what) != getattr(before, what):
                words.append(f"the {name} is {getattr(self, what)}, not {getattr(before, what)}")
        if "sys.path" not in adds:
            words += [
                f"{entry!r} was added to sys.path"
                for entry in self.path
                if entry not in before.path
            ]
            words += [
                f"{entry!r} was removed from sys.path"
                for entry in before.path
                if entry not in self.path
            ]
        return words

    def restore(self) -> None:
        """Restore these settings, so that later checks detect the same changes again."""
        for name, handler in self.handlers.items():
            if handler is not None and signal.getsignal(signal.Signals[name]) is not handler:
                signal.signal(signal.Signals[name], handler)
        for name in ProcessSettings.now().environment.keys() - self.environment.keys():
            del os.environ[name]
        os.environ.update(self.environment)
        os.chdir(self.directory)
        os.umask(int(self.umask, 8))
        sys.path[:] = self.path


@contextmanager
def fork_handlers(own: str) -> Iterator[list[str]]:
    """Record the modules of a top-level package that register at-fork handlers.

    Handlers that other libraries register are not recorded: a library registers them once per
    process, and the test program may have triggered that before the backend did.

    Yields:
        The names of the modules. The list is complete when the block has ended.
    """
    noted: list[str] = []
    usual = os.register_at_fork

    def register(**handlers: Any) -> None:
        module = sys._getframe(1).f_globals.get("__name__", "something")
        if module.partition(".")[0] == own:
            noted.append(module)
        usual(**handlers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "register_at_fork", register)
        yield noted


@contextmanager
def scratch() -> Iterator[None]:
    """Use separate current and temporary directories, so that leftover files can be detected.

    Each test class has a new current directory. All classes of the process share a temporary
    directory, because `multiprocessing` keeps a socket in it. A third directory is on `sys.path`,
    like the directory of a program's script. The directories are removed when the process exits,
    and not earlier, because workers may have been started in them.
    """
    root = _scratch_root()
    current, temporary = root / f"{next(_numbers)}", os.fspath(root / "t")
    current.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(current)
        patch.setenv("TMPDIR", temporary)
        patch.setattr(tempfile, "tempdir", temporary)
        patch.syspath_prepend(root / "m")
        yield


def killed_programs_directory() -> Path:
    """Return the temporary directory of programs that are killed, which cannot remove files."""
    return _scratch_root() / "k"


_numbers = itertools.count(1)


@functools.cache
def _scratch_root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="rk-"))
    for name in ("t", "m", "k"):
        (root / name).mkdir()
    (root / "m" / f"{NEIGHBOR}.py").write_text(_NEIGHBOR_SOURCE)
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # not in a forked child
            shutil.rmtree(root, ignore_errors=True)

    atexit.register(remove)
    return root
