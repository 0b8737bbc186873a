"""The program that `kills` kills: it reports that it has reached a moment, and waits.

Usage: `python -m tests.radical.victim DIRECTORY MOMENT SETTINGS`. The settings `pilot`, `fork` and
`keep` are JSON. At the moment, the program prints the process id of its fork, or 0 without one. The
session is in `DIRECTORY/work`, the sandboxes are in `DIRECTORY/tasks`.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rhapsody_radical.states import FINAL, PMGR_ACTIVE
from rhapsody_testing import Driver
from tests.radical.pilots import backend

FAMILY = "(setsid sleep 600 >/dev/null 2>&1 &); nohup sleep 600 >/dev/null 2>&1 & sleep 600"
"""A program, one in its background, and one with its own process session."""

STAYS = 600.0


class Victim:
    """The program.

    Args:
        directory: Where everything is.
        moment: One of `kills.MOMENTS`.
        settings: The others.
    """

    def __init__(self, directory: Path, moment: str, settings: dict[str, Any]) -> None:
        self._work = directory / "work"
        self._tasks = directory / "tasks"
        self._moment = moment
        self._fork = settings["fork"]
        self._made = backend(
            settings["pilot"],
            work_dir=self._work,
            keep_session=settings["keep"] or None,
            function_cores=1,
        )

    def _reached(self, *moments: str) -> bool:
        """Report the moment if it is the requested one, with a fork that outlives this process."""
        if self._moment not in moments:
            return False
        fork = os.fork() if self._fork else 0
        if self._fork and fork == 0:
            time.sleep(STAYS)
            os._exit(0)
        print(fork, flush=True)
        return True

    def _reached_when(self, moment: str, pattern: str) -> None:
        """Wait for a file on a thread, because the backend starts on the event loop's thread."""

        def wait() -> None:
            while not any(self._work.glob(pattern)):
                time.sleep(0.005)
            self._reached(moment)

        if self._moment == moment:
            threading.Thread(target=wait, daemon=True).start()

    async def live(self) -> None:
        """Take the backend to the moment and wait."""
        self._reached_when("starting", "radical.*/*")
        self._reached_when("submitting", "*/*/*/pilot.0000")
        await self._made
        if not self._reached("launched"):
            async with Driver(self._made, work_dir=self._tasks) as driver:
                await self._until(lambda: self._made.pilot_state == PMGR_ACTIVE)
                if not self._reached("active"):
                    await self._work_on(driver)
        await asyncio.sleep(STAYS)

    async def _work_on(self, driver: Driver) -> None:
        if self._moment == "service":
            service = driver.service(f"echo ready; {FAMILY}", ready="stdout:ready")
            await driver.submit(service)
            await driver.ready(service)
        elif self._moment.startswith("raptor"):
            call = driver.call(subprocess.call, ["sh", "-c", FAMILY])
            await driver.submit(call)
            await self._until(lambda: bool(self._made.masters))
            if not self._reached("raptor starting"):
                await driver.running(call)
        else:
            programs = [driver.command(FAMILY) for _ in range(2)]
            await driver.submit(*programs)
            for program in programs:
                await driver.running(program)
        if self._reached("executables", "service", "raptor calls"):
            return
        if self._moment.startswith("closing"):
            self._made.register_pilot_callback(self._on_pilot)
            closing = asyncio.ensure_future(self._made.shutdown())
            connection = self._made._connection
            await self._until(lambda: connection is not None and connection.closing)
            self._reached("closing")
            await closing

    def _on_pilot(self, _: str, state: str) -> None:
        if state in FINAL:
            self._reached("closing late")

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)


if __name__ == "__main__":
    asyncio.run(Victim(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])).live())
