"""Faults while a graph runs: workers die or stop, disks fill up, reports are odd.

Each misfortune comes when so many of the calls have ended, and what it does follows from the seed.
Only processes that this one has started are touched.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from rhapsody.states import TasksMainStates

TERMINAL = (TasksMainStates.DONE, TasksMainStates.FAILED, TasksMainStates.CANCELED)


class Misfortunes:
    """Those of one run.

    Args:
        seed: What they follow from.
        size: How many calls the graph has.
        log: Where tasks note the process that each attempt runs in.
    """

    def __init__(self, seed: int, size: int, log: Path) -> None:
        self._chance = random.Random(f"misfortunes of {seed}")
        self._size = size
        self._log = log
        log.touch()  # a worker may be due before a task has noted anything
        self._ended = 0
        self._due: list[tuple[int, Callable[[], None]]] = []
        self.count = 0

    def ended(self, number: int, future: Any) -> None:
        """A call has ended: something may be due."""
        self._ended += 1
        while self._due and self._due[0][0] <= self._ended:
            _, happen = self._due.pop(0)
            self.count += 1
            asyncio.get_running_loop().call_soon(happen)

    def plan(self, happen: Callable[[], None], first: float = 0.0, last: float = 1.0) -> None:
        """Trigger something when a part of the calls has ended, between two fractions."""
        when = round(self._size * self._chance.uniform(first, last))
        self._due.append((when, happen))
        self._due.sort(key=lambda each: each[0])

    # Workers.

    def plan_for_workers(self, how_many: int) -> None:
        """Kill workers, or stop them for a while."""
        for _ in range(how_many):
            self.plan(self._chance.choice((self._kill_one, self._kill_one, self._stop_one)))
        self.plan(self._kill_all)

    def plan_for_helpers(self) -> None:
        """Kill the processes that end programs together with this one, and that fork workers."""
        self.plan(partial(self._kill_helper, "_reaper"))
        self.plan(partial(self._kill_helper, "forkserver"))

    def workers(self) -> list[psutil.Process]:
        """The processes that functions have run in lately, of those that this one started."""
        with open(self._log, "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 2000))
            lines = [line.split() for line in log.read().decode().splitlines()[1:]]
        pids = {int(words[2]) for words in lines if len(words) == 3}
        return sorted(
            (each for each in psutil.Process().children(recursive=True) if each.pid in pids),
            key=lambda each: each.pid,
        )

    def _kill_one(self) -> None:
        if found := self.workers():
            _send(self._chance.choice(found), signal.SIGKILL)

    def _kill_all(self) -> None:
        for worker in self.workers():
            _send(worker, signal.SIGKILL)

    def _stop_one(self) -> None:
        if found := self.workers():
            worker = self._chance.choice(found)
            _send(worker, signal.SIGSTOP)
            goes_on = partial(_send, worker, signal.SIGCONT)
            asyncio.get_running_loop().call_later(self._chance.uniform(0.01, 1.0), goes_on)

    def _kill_helper(self, word: str) -> None:
        for child in psutil.Process().children():
            with suppress(psutil.Error):
                if any(word in each for each in child.cmdline()):
                    child.kill()

    # Disks.

    def plan_for_disk(self, disk: Path) -> None:
        """Fill a disk for a part of the run."""
        filler = disk / "filler"
        self.plan(partial(_fill, filler), 0.1, 0.4)
        self.plan(partial(filler.unlink, missing_ok=True), 0.5, 0.9)


def _send(process: psutil.Process, number: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _fill(filler: Path) -> None:
    with open(filler, "ab", buffering=0) as file:
        for size in (1 << 16, 4096, 1):  # as tmpfs gives whole pages
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def distorted(kind: type[Any], seed: int) -> type[Any]:
    """A class of backends that report late, twice and out of order.

    Just before some reports arrive it calls its objects' `ends_next` with the attempt's uid.

    Args:
        kind: The class of those that report as they should.
        seed: What each report's fate follows from, with the task and the state.
    """

    class Distorted(kind):  # type: ignore[misc]
        """Reports as it should not, but leaves nothing out."""

        capabilities = kind.capabilities

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._distorted: dict[Any, Any] = {}
            self.ends_next: Callable[[str], None] = lambda uid: None

        def register_callback(self, func: Any = None, **kwargs: Any) -> None:
            told = kwargs.get("callback", func)
            loop = asyncio.get_running_loop()
            self._distorted[told] = partial(_report, seed, loop, told, self)
            super().register_callback(self._distorted[told])

        def unregister_callback(self, func: Any) -> None:
            super().unregister_callback(self._distorted.pop(func, func))

    return Distorted


def _report(
    seed: int,
    loop: asyncio.AbstractEventLoop,
    told: Any,
    backend: Any,
    task: Any,
    state: Any,
    **more: Any,
) -> None:
    chance = random.Random(f"{seed} {task['uid'].partition('.task.')[2]} {state}")
    times = [0.0 if chance.random() < 0.7 else chance.expovariate(50)]
    if chance.random() < 0.2:
        times.append(chance.expovariate(50))
    if state in TERMINAL and chance.random() < 0.1:
        # Once it has ended, it runs, or has ended otherwise.
        other = chance.choice((TasksMainStates.RUNNING, TasksMainStates.CANCELED))
        if other is TasksMainStates.RUNNING or not times[0]:
            loop.call_soon_threadsafe(loop.call_later, 0.02, partial(told, task, other))
    if state in TERMINAL and chance.random() < 0.02:
        loop.call_soon_threadsafe(backend.ends_next, task["uid"])
    for seconds in times:
        if seconds:
            again = partial(told, task, state, **more)
            # Late ones come on the loop's thread, as what is at once may come on another.
            loop.call_soon_threadsafe(loop.call_later, seconds, again)
        else:
            told(task, state, **more)
