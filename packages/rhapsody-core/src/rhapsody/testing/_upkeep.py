"""Checks of good manners: the loop is not held up, nothing is left behind, nothing grows."""

from __future__ import annotations

import asyncio
import gc
import os
import tracemalloc
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from rhapsody.testing._clock import Gap, Heartbeat
from rhapsody.testing._driver import Driver
from rhapsody.testing._machine import (
    Holdings,
    Leftover,
    end_processes,
    left_behind,
    listed,
    marked,
    memory_in_use,
)
from rhapsody.testing._program import Subject, changes
from rhapsody.testing._rules import FUNCTIONS, SHARED
from rhapsody.testing._running import NOTHING_WRITTEN, check
from rhapsody.testing._tasks import DONE, Ticking, quick
from rhapsody.testing._trial import Trial, state_of
from rhapsody.testing._work import process_memory_and_data, process_memory_and_data_async


class Upkeep:
    """The loop, and what a backend holds."""

    @check("start and shutdown do not block the loop", dry=True, times=3)
    async def test_the_loop_is_not_held_up_by_start_and_shutdown(self, trial: Trial) -> None:
        async def live(count: int) -> Gap:
            return (await _lives(trial, count))[count - 1].gap

        await _require_free_loop(trial, live, "start, first tasks and shutdown")

    @check(
        "shutdown leaves nothing behind",
        dry=True,
        times=2,
    )
    async def test_shutdown_leaves_nothing_behind(self, trial: Trial) -> None:
        for count in (1, 2):
            left = [each for life in await _lives(trial, count) for each in life.left]
            if left:
                raise trial.check.error(f"left behind: {listed(left)}")

    @check("an idle backend is shut down within `shutdown_limit`", dry=True, times=2)
    async def test_shutdown_does_not_take_long(self, trial: Trial) -> None:
        limit = trial.kit.shutdown_limit
        for count in (1, 2):
            took = [life.shutdown for life in await _lives(trial, count)]
            if min(took) <= limit:
                return
        trial.require(
            False,
            f"it took {min(took):.2f} s, longer than the {limit:g} s of `shutdown_limit`, in the "
            "better of two tries",
        )

    @check(NOTHING_WRITTEN, dry=True)
    async def test_the_current_directory_is_left_alone(self, trial: Trial) -> None:
        written = [name for life in await _lives(trial, 1) for name in life.written]
        trial.require(not written, f"it left {sorted(written)} in {os.getcwd()}")

    @check("a backend changes nothing of the program that uses it", dry=True, times=3)
    async def test_it_changes_nothing_of_the_program(self, trial: Trial) -> None:
        """Compares the program before, during and after the life of a backend.

        The backend is one of the check's own, also with `backend_scope = "class"`: its
        class is imported and its `create` called in a new process, with `create_args` and
        `create_kwargs`. Where these cannot be pickled, or with `stands_alone = False`, that
        is done in this process, and what was changed before the check, such as by an
        import, is not seen.
        """
        kit = trial.kit
        subject = Subject(
            kind=type(await trial.fresh()),
            args=kit.create_args,
            kwargs=kit.create_kwargs,
            adds=frozenset(kit.adds),
            leaves_behind=kit.leaves_behind,
            patience=10 * kit.settle,
            work_dir=trial.work_dir,
        )
        trial.doing("looking at a program that uses the backend")
        found = await changes(subject, trial.clock, in_new=kit.stands_alone)
        trial.require(not found, "; ".join(found))

    @check("nothing grows over start and stop cycles", dry=True, times=4)
    async def test_nothing_grows_over_cycles(self, trial: Trial) -> None:
        lives = await _lives(trial, trial.kit.cycles)
        # What is made once per process comes in the first cycles.
        settled, last = lives[min(2, max(0, len(lives) - 2))], lives[-1]
        left = last.held.since(settled.held, trial.kit.leaves_behind)
        trial.require(not left, lambda: f"after {len(lives)} cycles there are also {listed(left)}")
        await trial.clock.elapse(trial.kit.settle)  # what is on its way through the loop
        gc.collect()
        alive = sum(life.backend() is not None for life in lives)
        trial.require(
            alive <= 1, f"{alive} of {len(lives)} backends that were shut down are still in memory"
        )
        grown = last.memory - settled.memory
        trial.require(
            grown <= trial.kit.memory_growth,
            f"the process grew by {grown} bytes, more than the {trial.kit.memory_growth} of "
            "`memory_growth`",
        )

    @check("shutdown ends all running work, each task once", SHARED, times=2)
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
                trial.clock,
                within=10 * trial.kit.settle,
                files=False,
                mark=mark,
            )
            end_processes(left)
        trial.require(not left, lambda: f"left behind: {listed(left)}")

    @check("submitting and running do not block the loop", times=3)
    async def test_the_loop_is_not_held_up_by_tasks(self, trial: Trial) -> None:
        driver = await trial.driver()
        kinds = trial.kinds()
        # Whatever is started on first use is judged by the check of the start.
        await driver.run(*(quick(driver, kind) for kind in kinds))

        async def work(count: int) -> Gap:
            tasks = [quick(driver, kind) for kind in kinds for _ in range(20)]
            with Heartbeat(trial.clock) as heartbeat:
                await driver.run(*tasks)
            return heartbeat.worst

        await _require_free_loop(trial, work, "submitting and running")

    @check("no submission blocks the loop for long in total", times=3)
    async def test_a_submission_takes_little_of_the_loop(self, trial: Trial) -> None:
        driver = await trial.driver()
        kinds = trial.kinds()
        await driver.run(*(quick(driver, kind) for kind in kinds))

        async def work(count: int) -> Gap:
            with Heartbeat(trial.clock) as heartbeat:
                for _ in range(_SUBMISSIONS):
                    await driver.run(*(quick(driver, kind) for kind in kinds))
            return Gap(*(seconds / _SUBMISSIONS for seconds in heartbeat.total))

        what = "a submission of one task of each kind, with all pauses added up,"
        await _require_free_loop(trial, work, what, "submission_gap")

    @check("little memory is kept for a finished task, in the program and on workers", FUNCTIONS)
    async def test_finished_tasks_are_given_up(self, trial: Trial) -> None:
        """Run tasks with big results, forget them, and measure the remaining memory.

        The memory that Python allocates in the program counts, and the size of the
        processes of workers.
        """
        driver = await trial.driver()
        size = min(400_000, trial.kit.big_bytes)
        sync = trial.capabilities.sync_functions
        function = process_memory_and_data if sync else process_memory_and_data_async
        workers: dict[int, tuple[int, int]] = {}

        async def run(rounds: int) -> None:
            for _ in range(rounds):
                tasks = [driver.call(function, size) for _ in range(_BATCH)]
                ends = await driver.run(*tasks)
                for end in ends:
                    trial.require(end.state is DONE, f"{end}")
                    process, memory, data = end.value
                    trial.require(len(data) == size, f"of {size} bytes {len(data)} came back")
                    if process != os.getpid():
                        workers[process] = workers.get(process, (memory, 0))[0], memory
                driver.forget()

        tracing = tracemalloc.is_tracing()
        if not tracing:
            tracemalloc.start(1)
        try:
            await run(2)
            before = await _traced(trial)
            await run(_ROUNDS)
            limit, count = trial.kit.growth_per_task, _ROUNDS * _BATCH
            end = trial.clock.now() + 10 * trial.kit.settle
            while (kept := (await _traced(trial) - before) // count) > limit:
                if trial.clock.now() >= end:
                    break
        finally:
            if not tracing:
                tracemalloc.stop()
        trial.require(
            kept <= limit,
            f"for each of {count} finished tasks, whose results have {size} bytes, the program "
            f"keeps {kept} bytes; `growth_per_task` allows {limit}",
        )
        share = max(4_000_000, count * size // (2 * max(1, len(workers))))
        for process, (first, last) in workers.items():
            trial.require(
                last - first <= share,
                f"worker process {process} grew by {last - first} bytes while {count} tasks "
                f"returned {size} bytes each: it must not keep results that were delivered",
            )


@dataclass(frozen=True, slots=True)
class Life:
    """What was seen of one backend's whole life, with a task of each kind in it.

    Attributes:
        backend: The backend, if it is still in memory.
        gap: For how long it held up the loop at most.
        shutdown: How long its shutdown took, with nothing left to do.
        left: What it left behind, in words.
        written: The files that it left in the current directory.
        held: What the process held afterwards.
        memory: The process's size afterwards.
    """

    backend: weakref.ref[Any]
    gap: Gap
    shutdown: float
    left: tuple[Leftover, ...]
    written: tuple[str, ...]
    held: Holdings
    memory: int


async def _lives(trial: Trial, count: int) -> list[Life]:
    """At least so many lives, with those that other checks of the class have seen."""
    lives: list[Life] = trial.lives
    while len(lives) < count:
        trial.doing(f"in start and stop cycle {len(lives) + 1} of {count}")
        # Files that are opened once per process come in the first.
        lives.append(await _seen(trial, files=bool(lives)))
    return lives


async def _seen(trial: Trial, *, files: bool) -> Life:
    with marked() as mark:
        before, files_before = Holdings.now(mark), _files_here()
        with Heartbeat(trial.clock) as heartbeat:
            backend, shutdown = await _life(trial)
        written = tuple(name for name, _ in _files_here() - files_before)
        gc.collect()
        within = 10 * trial.kit.settle
        left = await left_behind(
            before, trial.kit.leaves_behind, trial.clock, within=within, files=files, mark=mark
        )
        end_processes(left)
    return Life(
        backend=backend,
        gap=heartbeat.worst,
        shutdown=shutdown,
        left=tuple(left),
        written=written,
        held=Holdings.now(),
        memory=memory_in_use(),
    )


def _files_here() -> set[tuple[str, int]]:
    """What is in the current directory, and when each file was written."""
    found = set()
    for entry in os.scandir():
        with suppress(FileNotFoundError):  # it goes meanwhile
            is_file = entry.is_file(follow_symlinks=False)
            written = entry.stat(follow_symlinks=False).st_mtime_ns if is_file else 0
            found.add((entry.name, written))
    return found


async def _life(trial: Trial) -> tuple[weakref.ref[Any], float]:
    """One backend's whole life, with a task of each kind in it; how long its shutdown took."""
    backend = await trial.kit.make_backend()
    driver = Driver(backend, work_dir=trial.work_dir)
    try:
        async with driver:
            await driver.run(*(quick(driver, kind) for kind in trial.kinds()))
            if trial.capabilities.executables:  # nobody says where; it is not to be here
                await driver.run(driver.describe("nowhere", executable="echo 2"))
    finally:
        trial.doing("waiting for the shutdown of an idle backend")
        began = trial.clock.now()
        await backend.shutdown()
    return weakref.ref(backend), trial.clock.now() - began


async def _require_free_loop(
    trial: Trial,
    measure: Callable[[int], Awaitable[Gap]],
    what: str,
    attribute: Literal["loop_gap", "submission_gap"] = "loop_gap",
) -> None:
    """Raises where the backend held the loop up in each of three tries.

    A try in which the process stood still proves neither: what held the loop up may have
    passed meanwhile. After as many of those the backend is believed.
    """
    most, held = getattr(trial.kit, attribute), []
    for count in range(1, 2 * _TRIES + 1):
        gap = await measure(count)
        if gap.seen <= most:
            return
        if gap.counted > most:
            held.append(gap.counted)
        if len(held) == _TRIES:
            raise trial.check.error(
                f"{what} blocked the loop for {min(held):.2f} s, longer than the {most:g} s of "
                f"`{attribute}`, in each of {_TRIES} tries"
            )


async def _traced(trial: Trial) -> int:
    """Return the memory that Python has allocated, after pending objects were freed."""
    await trial.clock.elapse(trial.kit.settle)
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


_TRIES = 3
_SUBMISSIONS = 4
_BATCH = 20
_ROUNDS = 5
