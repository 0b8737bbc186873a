"""What a process holds: measurements for the checks.

Processes, threads, asyncio tasks and open files are compared before and after.
Nothing is judged here.
"""

from __future__ import annotations

import asyncio
import fnmatch
import os
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple, Self

import psutil

from rhapsody.testing._clock import Clock
from rhapsody.testing._grounds import grounds

PYTHONS_OWN = (
    # Helpers that the standard library starts once per process and keeps.
    "process *multiprocessing.resource_tracker*",
    "process *multiprocessing.forkserver*",
    # The loop's own executor, which the loop stops when it is closed.
    "thread asyncio_*",
    # The directory of those helpers.
    "temporary pymp-*",
)

MARK = "RHAPSODY_CONFORMANCE"
"""The variable by which descendants are found."""

_KINDS = ("processes", "threads", "tasks", "temporary", "files")


class Leftover(NamedTuple):
    """Something that is held and should not be; `pid` where it is a process."""

    text: str
    pid: int | None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Holdings:
    """What this process holds at one moment.

    Each is a mapping from an identity to a description such as `"thread NAME"`. `temporary`
    lists the temporary directory of the checks.
    """

    processes: Mapping[object, str]
    threads: Mapping[object, str]
    tasks: Mapping[object, str]
    files: Mapping[object, str]
    temporary: Mapping[object, str]

    @classmethod
    def now(cls, mark: str | None = None) -> Self:
        """Looks at this process, and at orphans that carry the mark of `marked`."""
        return cls(_processes(mark), _threads(), _tasks(), _files(), temporary())

    def since(
        self, before: Holdings, allowed: Sequence[str], kinds: Sequence[str] = _KINDS
    ) -> list[Leftover]:
        """What of these kinds is held and was not before, but for what the patterns allow."""
        patterns = (*PYTHONS_OWN, *allowed)
        return [
            Leftover(text, identity[0] if isinstance(identity, tuple) else None)
            for kind in kinds
            for identity, text in getattr(self, kind).items()
            if identity not in getattr(before, kind)
            and not any(fnmatch.fnmatchcase(text, pattern) for pattern in patterns)
        ]


async def left_behind(
    before: Holdings,
    allowed: Sequence[str],
    clock: Clock,
    *,
    within: float,
    files: bool = True,
    mark: str | None = None,
) -> list[Leftover]:
    """What is still held that was not held before, after waiting for it to go."""
    deadline = clock.now() + within
    while True:
        left = Holdings.now(mark).since(before, allowed, _KINDS if files else _KINDS[:-1])
        if not left or clock.now() >= deadline:
            return left
        await asyncio.sleep(0.05)


async def left_in_temporary(
    before: Mapping[object, str], allowed: Sequence[str], clock: Clock, within: float
) -> list[Leftover]:
    """Return the entries that stay in the temporary directory after a wait."""
    patterns = (*PYTHONS_OWN, *allowed)
    deadline = clock.now() + within
    while True:
        left = [
            Leftover(text, None)
            for name, text in temporary().items()
            if name not in before
            and not any(fnmatch.fnmatchcase(text, pattern) for pattern in patterns)
        ]
        if not left or clock.now() >= deadline:
            return left
        await asyncio.sleep(0.05)


def listed(left: Iterable[Leftover]) -> str:
    """Return the leftovers for a message, with the attribute that allows them."""
    texts = [str(each) for each in left]
    return (
        f"{', '.join(texts)}. `leaves_behind` lists what may be left, as patterns: "
        f"leaves_behind = ({texts[0]!r},)"
    )


@contextmanager
def marked() -> Iterator[str]:
    """Puts a mark into the environment, by which descendants are found although orphaned."""
    mark = uuid.uuid4().hex
    before = os.environ.get(MARK)
    os.environ[MARK] = mark
    try:
        yield mark
    finally:
        if before is None:
            del os.environ[MARK]
        else:
            os.environ[MARK] = before


def end_processes(left: Iterable[Leftover]) -> None:
    """Kills the processes among what was left, so that a faulty backend leaves none."""
    for leftover in left:
        if leftover.pid is not None:
            with suppress(psutil.Error):
                psutil.Process(leftover.pid).kill()


def alive(pid: int) -> bool:
    """Whether a process of this number runs and is not merely waiting to be reaped."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def memory_in_use() -> int:
    """The resident size of this process, in bytes."""
    return int(psutil.Process().memory_info().rss)


def _processes(mark: str | None) -> dict[object, str]:
    found = psutil.Process().children(recursive=True)
    if mark is not None:
        known = {process.pid for process in found}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                others = process.pid not in known and process.pid != os.getpid()
                if others and process.environ().get(MARK) == mark:
                    found.append(process)
    described: dict[object, str] = {}
    for process in found:
        with suppress(psutil.NoSuchProcess):
            zombie = process.status() == psutil.STATUS_ZOMBIE
            command = " ".join(process.cmdline()) if not zombie else f"{process.name()} <defunct>"
            described[process.pid, process.create_time()] = f"process {command[:200]}"
    return described


def _threads() -> dict[object, str]:
    return {thread.ident: f"thread {thread.name}" for thread in threading.enumerate()}


def _tasks() -> dict[object, str]:
    current = asyncio.current_task()
    return {
        id(task): f"task {task.get_name()} ({task.get_coro()!r})"
        for task in asyncio.all_tasks()
        if task is not current
    }


def temporary() -> dict[object, str]:
    """Return descriptions of the entries in the temporary directory of the checks."""
    if grounds.temporary is None:
        return {}
    return {name: f"temporary {name}" for name in os.listdir(grounds.temporary)}


def _files() -> dict[object, str]:
    try:
        numbers = os.listdir("/proc/self/fd")
    except FileNotFoundError:  # not Linux
        process = psutil.Process()
        return {file.fd: f"file {file.path}" for file in process.open_files()}
    found: dict[object, str] = {}
    for number in numbers:
        with suppress(FileNotFoundError):
            target = os.readlink(f"/proc/self/fd/{number}")
            if not target.startswith("/proc/"):  # the listing itself
                found[f"{number} {target}"] = f"file {target}"
    return found
