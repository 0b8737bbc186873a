"""Event loop latency during the start, use and end of a pilot."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest

from rhapsody_testing import Driver
from tests.radical.pilots import backend

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(300), pytest.mark.long]

OWN = 0.03
"""Seconds of the processor that the loop may spend between two beats: other programs' use of caches
doubles what it takes, and what does not belong there, such as imports, takes many times as much."""

HELD = 0.5
"""Seconds that it may come round later than a bare thread on the same, busy machine."""


class Beats:
    """Task that measures the latency of the event loop and the processor time of its thread.

    Attributes:
        own: The longest processor time between two beats, by phase.
        held: The longest time between two beats, by phase.
        bare: The same for a thread that does nothing else, to measure the load of the machine.
    """

    def __init__(self) -> None:
        self.own: dict[str, float] = {}
        self.held: dict[str, float] = {}
        self.bare: dict[str, float] = {}
        self.phase = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._over.is_set():
            now = time.monotonic()
            self._over.wait(0.002)
            late = time.monotonic() - now - 0.002
            self.bare[self.phase] = max(self.bare.get(self.phase, 0.0), late)

    def end(self) -> None:
        self._over.set()
        self._thread.join()

    async def run(self) -> None:
        while True:
            spent, now = time.thread_time(), time.monotonic()
            await asyncio.sleep(0.002)
            spent, now = time.thread_time() - spent, time.monotonic() - now - 0.002
            self.own[self.phase] = max(self.own.get(self.phase, 0.0), spent)
            self.held[self.phase] = max(self.held.get(self.phase, 0.0), now)


@pytest.mark.usefixtures("no_collection")  # all garbage is charged to the thread it meets
async def test_the_loop_is_never_blocked(tmp_path: Path) -> None:
    made, beats = backend(work_dir=tmp_path / "work"), Beats()
    beats.phase = "start"
    beating = asyncio.create_task(beats.run())
    await asyncio.sleep(0)
    await made
    async with Driver(made, work_dir=tmp_path) as driver:
        beats.phase = "first tasks"
        await driver.run(driver.command("true"), driver.call(int))
        beats.phase = "submission"
        tasks = [driver.command("true") for _ in range(40)]
        await driver.run(*tasks, *(driver.call(int) for _ in range(40)))
    beats.phase = "close"
    await made.shutdown()
    beating.cancel()
    beats.end()
    late = {phase: held - beats.bare[phase] for phase, held in beats.held.items()}
    print({phase: (f"{beats.own[phase]:.4f}", f"{held:.3f}") for phase, held in late.items()})
    assert list(beats.own) == ["start", "first tasks", "submission", "close"]
    assert max(beats.own.values()) < OWN, beats.own
    assert max(late.values()) < HELD, (beats.held, beats.bare)
