"""Checks of good manners: the loop is not held up, nothing is left behind, nothing grows."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

from rhapsody.testing._driver import Driver
from rhapsody.testing._machine import (
    Heartbeat,
    Holdings,
    Leftover,
    end_processes,
    left_behind,
    marked,
    memory_in_use,
)
from rhapsody.testing._rules import SHARED
from rhapsody.testing._running import check
from rhapsody.testing._tasks import Ticking, quick
from rhapsody.testing._trial import Trial, state_of


class Upkeep:
    """The loop, and what a backend holds."""

    @check("C4", "the loop is not held up by submitting and running", times=3)
    async def test_the_loop_is_not_held_up_by_tasks(self, trial: Trial) -> None:
        driver = await trial.driver()
        kinds = trial.kinds()
        # Whatever is started on first use is judged by the check of the start.
        await driver.run(*(quick(driver, kind) for kind in kinds))

        async def work() -> None:
            tasks = [quick(driver, kind) for kind in kinds for _ in range(20)]
            await driver.run(*tasks)

        await _require_free_loop(trial, work, "submitting and running")

    @check("C4", "the loop is not held up by start and shutdown", dry=True, times=3)
    async def test_the_loop_is_not_held_up_by_start_and_shutdown(self, trial: Trial) -> None:
        kinds = trial.kinds()

        async def work() -> None:
            backend = await trial.fresh()
            driver = await trial.driver(backend)
            await driver.run(*(quick(driver, kind) for kind in kinds))
            await backend.shutdown()

        await _require_free_loop(trial, work, "start, first tasks and shutdown")

    @check("C4", "shutdown leaves no process, thread, task or file behind", dry=True, times=2)
    async def test_shutdown_leaves_nothing_behind(self, trial: Trial) -> None:
        before: Holdings | None = None
        left: list[Leftover] = []
        with marked() as mark:
            first = Holdings.now(mark)
            for cycle in range(2):  # files that are opened once per process come in the first
                await _life(trial)
                if before is None:
                    before = Holdings.now(mark)
                left = await left_behind(
                    first if cycle == 0 else before,
                    trial.kit.leaves_behind,
                    within=10 * trial.kit.settle,
                    files=cycle > 0,
                    mark=mark,
                )
                if left:
                    break
                before = Holdings.now(mark)
            end_processes(left)
        trial.require(not left, f"left behind: {', '.join(map(str, left))}")

    @check("C4", "shutdown with work in flight ends all of it, each task once", SHARED, times=2)
    async def test_shutdown_ends_work_in_flight(self, trial: Trial) -> None:
        with marked() as mark:
            before = Holdings.now(mark)
            backend = await trial.fresh()
            driver = await trial.driver(backend)
            kinds = trial.kinds()
            ticking = [Ticking(trial, driver, kind) for kind in kinds for _ in range(3)]
            tasks = [each.task for each in ticking]
            for kind in kinds:
                tasks += [quick(driver, kind) for _ in range(5)]
            await driver.submit(*tasks)
            await ticking[0].began()
            # What cannot be stopped is let go a little later: shutdown may wait for it.
            stoppable = trial.capabilities.cancellation
            unstoppable = [each for each in ticking if stoppable(each.kind) != "running"]
            for each in unstoppable:
                asyncio.get_running_loop().call_later(0.3, each.release)
            trial.doing("waiting for shutdown with work in flight")
            await backend.shutdown()
            state = await state_of(backend)
            trial.require(state == "shutdown", f"after shutdown its state is {state!r}")
            trial.doing("waiting for a terminal state of each task after shutdown")
            for task in tasks:
                await driver.finished(task)
            for each in unstoppable:
                each.release()
                await each.let_go()
            for each in ticking:
                trial.require(await each.is_still(0.1), f"a {each.kind} goes on")
            left = await left_behind(
                before,
                trial.kit.leaves_behind,
                within=10 * trial.kit.settle,
                files=False,
                mark=mark,
            )
            end_processes(left)
        trial.require(not left, f"left behind: {', '.join(map(str, left))}")

    @check("C4", "nothing grows over start and stop cycles", dry=True, times=4)
    async def test_nothing_grows_over_cycles(self, trial: Trial) -> None:
        cycles = trial.kit.cycles
        settled: tuple[Holdings, int] | None = None
        backends: list[weakref.ref[Any]] = []
        for cycle in range(cycles):
            trial.doing(f"in start and stop cycle {cycle + 1} of {cycles}")
            backends.append(weakref.ref(await _life(trial)))
            gc.collect()
            if cycle == min(2, cycles - 1):
                settled = Holdings.now(), memory_in_use()
        assert settled is not None
        before, memory = settled
        left = await left_behind(before, trial.kit.leaves_behind, within=10 * trial.kit.settle)
        trial.require(not left, f"after {cycles} cycles there are also {', '.join(map(str, left))}")
        await asyncio.sleep(trial.kit.settle)  # what is on its way through the loop
        gc.collect()
        alive = sum(backend() is not None for backend in backends)
        trial.require(
            alive <= 1, f"{alive} of {cycles} backends that were shut down are still in memory"
        )
        grown = memory_in_use() - memory
        trial.require(
            grown <= trial.kit.memory_growth,
            f"the process grew by {grown} bytes, more than {trial.kit.memory_growth}",
        )


async def _life(trial: Trial) -> Any:
    """One backend's whole life, with a task of each kind in it."""
    backend = await trial.kit.make_backend()
    driver = Driver(backend, work_dir=trial.work_dir)
    try:
        async with driver:
            await driver.run(*(quick(driver, kind) for kind in trial.kinds()))
    finally:
        await backend.shutdown()
    return backend


async def _require_free_loop(trial: Trial, work: Callable[[], Awaitable[None]], what: str) -> None:
    best = float("inf")
    for _ in range(3):
        with Heartbeat() as heartbeat:
            await work()
        best = min(best, heartbeat.worst)
        if best <= trial.kit.loop_gap:
            return
    raise trial.check.error(
        f"{what} held the loop up for {best:.2f} s, longer than {trial.kit.loop_gap:g} s, "
        "in each of three tries"
    )
