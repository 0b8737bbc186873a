"""What a backend changes of the program that uses it: looked at in a program of its own.

The program is a process that has imported the kit and nothing else. It imports the
backend, has it live and run a few tasks, and compares itself with what it was before.
Whether what was found is a fault is judged by the check in `_upkeep`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rhapsody.testing._clock import Clock
from rhapsody.testing._driver import Driver
from rhapsody.testing._machine import MARK, Holdings, end_processes, marked
from rhapsody.testing._tasks import quick
from rhapsody.testing._trial import KINDS

_HELD = {"threads": "threads", "children": "processes", "descriptors": "files"}
"""What `Settings.adds` calls it, and what `Holdings` does."""

_ALLOWED = "allowed while the backend runs by `adds`: '{}'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A backend's class, and what the test class says of it.

    Attributes:
        kind: The class.
        args: Arguments for its `create`.
        kwargs: Keyword arguments for its `create`.
        adds: What it may add while it lives, see `Settings`.
        leaves_behind: What it may leave behind, see `Settings`.
        patience: Seconds in which what it added has to go.
        work_dir: A directory for sandboxes.
    """

    kind: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    adds: frozenset[str]
    leaves_behind: Sequence[str]
    patience: float
    work_dir: Path


async def changes(subject: Subject, clock: Clock, *, in_new: bool) -> list[str]:
    """What the backend changes and may not, in words; seen in a new process if it can be.

    A class or an argument that cannot be pickled is looked at in this process, whose
    imports have been made.
    """
    with marked() as mark:
        payload = b""
        if in_new:
            with suppress(Exception):  # whatever pickle makes of it
                payload = pickle.dumps(subject)
        if not payload:
            return await _changes(lambda: subject, clock, mark)
        before = Holdings.now(mark)
        try:
            return await _in_a_new_process(payload, subject.work_dir)
        except BaseException:  # it ended what was left, if it came so far
            end_processes(Holdings.now(mark).since(before, (), ("processes",)))
            raise


async def _in_a_new_process(payload: bytes, directory: Path) -> list[str]:
    given, found, shown = (directory / f"program.{name}" for name in ("in", "out", "log"))
    given.write_bytes(payload)
    command = [sys.executable, "-c", _PROGRAM, str(given), str(found), *sys.path]
    with shown.open("wb") as log:  # no pipe: a child that is left would keep it open
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
    try:
        code = await process.wait()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
    if code != 0:
        last = shown.read_text(errors="replace")[-1000:]
        raise RuntimeError(f"a new process that used it ended with exit code {code}: {last}")
    words: list[str] = json.loads(found.read_text())
    return words


_PROGRAM = """
import sys
given, found, *sys.path[:] = sys.argv[1:]
del sys.argv[1:]
from rhapsody.testing._program import main
main(given, found)
"""


def main(given: str, found: str) -> None:
    """Looks at the backend that one file holds and writes what was found to another."""

    async def look() -> list[str]:
        with Clock() as clock:
            return await _changes(
                lambda: pickle.loads(Path(given).read_bytes()),  # noqa: S301 - from the kit itself
                clock,
                os.environ[MARK],
            )

    Path(found).write_text(json.dumps(asyncio.run(look())))


async def _changes(load: Callable[[], Subject], clock: Clock, mark: str) -> list[str]:
    found: dict[str, str] = {}
    subject = load()  # importing the class is not part of the backend's life
    with _forks() as forks:
        before = _Program.now(mark, forks)

        async def compare(moment: str, since: _Program, adds: frozenset[str]) -> None:
            """Notes what is not as it was, once it has had time to go."""
            end = clock.now() + subject.patience
            while True:
                now = _Program.now(mark, forks)
                words = now.since(since, adds, subject.leaves_behind)
                if not words or clock.now() >= end:
                    break
                await asyncio.sleep(0.05)
            for word in words:
                found.setdefault(word, moment)

        async def live() -> None:
            backend = await subject.kind.create(*subject.args, **subject.kwargs)
            try:
                await compare("its start", before, subject.adds)
                async with Driver(backend, work_dir=subject.work_dir) as driver:
                    kinds = [kind for kind in KINDS if backend.capabilities.runs(kind)]
                    await driver.run(*(quick(driver, kind) for kind in kinds))
                    await compare("a few tasks", before, subject.adds)
            finally:
                await backend.shutdown()
            gc.collect()

        await live()
        lasts = subject.adds & {"at-fork handlers"}  # which nobody can take back
        await compare("its shutdown", before, lasts | {"descriptors"})
        # Some descriptors are opened once per process: a second life tells which are not.
        after = _Program.now(mark, forks)
        if not found and after.since(before, lasts, subject.leaves_behind):
            await live()
            await compare("its shutdown", after, lasts)
        end_processes(Holdings.now(mark).since(before.held, (), ("processes",)))
    return [f"after {moment} {word}" for word, moment in found.items()]


@dataclass(frozen=True, slots=True)
class _Program:
    """What belongs to a program, at one moment."""

    environment: Mapping[str, str]
    handlers: Mapping[str, object]
    directory: str
    umask: str
    path: Sequence[str]
    forks: Sequence[str]
    held: Holdings

    @classmethod
    def now(cls, mark: str, forks: Sequence[str]) -> Self:
        return cls(
            environment=dict(os.environ),
            handlers={each.name: signal.getsignal(each) for each in signal.Signals},
            directory=os.getcwd(),
            umask=_umask(),
            path=tuple(sys.path),
            forks=tuple(forks),
            held=Holdings.now(mark),
        )

    def since(self, before: _Program, adds: frozenset[str], leaves: Sequence[str]) -> list[str]:
        """What is not as it was, in words, but for what may be added."""
        words = [
            f"the variable {name}" for name in _differing(self.environment, before.environment)
        ]
        words += [f"the handler of {name}" for name in _differing(self.handlers, before.handlers)]
        words = [f"{word} is another (not allowed to any backend)" for word in words]
        if self.directory != before.directory:
            words.append(
                f"the current directory is {self.directory}, not {before.directory} (not "
                "allowed to any backend)"
            )
        if self.umask != before.umask:
            words.append(
                f"the umask is {self.umask}, not {before.umask} (not allowed to any backend)"
            )
        if "sys.path" not in adds:
            path, former = self.path, before.path
            changes = [f"sys.path has {entry!r}" for entry in path if entry not in former]
            changes += [f"sys.path lost {entry!r}" for entry in former if entry not in path]
            words += [f"{change} ({_ALLOWED.format('sys.path')})" for change in changes]
        if "at-fork handlers" not in adds:
            allowed = _ALLOWED.format("at-fork handlers")
            words += [f"{module} has an at-fork handler ({allowed})" for module in self.forks]
        for name, kind in _HELD.items():
            if name not in adds:
                allowed = f"{_ALLOWED.format(name)}, after the shutdown by `leaves_behind`"
                left = self.held.since(before.held, leaves, [kind])
                words += [f"there is {' '.join(each.text.split())} ({allowed})" for each in left]
        return words


def _differing(now: Mapping[str, object], before: Mapping[str, object]) -> list[str]:
    names = now.keys() | before.keys()
    return sorted(name for name in names if now.get(name) != before.get(name))


def _umask() -> str:
    mask = os.umask(0o077)  # there is no other way to ask everywhere; no thread gets more by it
    os.umask(mask)
    return f"{mask:03o}"


@contextmanager
def _forks() -> Iterator[list[str]]:
    """Record which modules register at-fork handlers.

    Handlers of Python's own modules do not count, nor do those that a library registers
    when it is imported: they cannot be removed, and any program may import it first.
    """
    noted: list[str] = []
    usual = os.register_at_fork

    def register(**handlers: Any) -> None:
        module = sys._getframe(1).f_globals.get("__name__", "something")
        if module.partition(".")[0] not in sys.stdlib_module_names and not _importing():
            noted.append(module)
        usual(**handlers)

    os.register_at_fork = register
    try:
        yield noted
    finally:
        os.register_at_fork = usual


def _importing() -> bool:
    """Return whether the caller runs because a module is being imported."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
