"""Checks of starting and stopping, of the event loop, and of the resources of a backend."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import tracemalloc
import weakref
from collections.abc import Awaitable, Callable, Container, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pytest

from rhapsody.sdk import TaskKind
from rhapsody_testing._program import start_program
from rhapsody_testing._suite import (
    DONE,
    ENDS_WITH_PROGRAM,
    FUNCTIONS,
    Need,
    NewBackend,
    NewEngine,
    Suite,
    Ticking,
    call,
    check,
    each_kind,
    quick,
    state_of,
)
from rhapsody_testing._system import (
    Gap,
    Heartbeat,
    Holdings,
    NamedPipe,
    ProcessSettings,
    end_processes,
    fork_handlers,
    holdings,
    leftovers,
    listed,
    marked,
    settled,
)
from rhapsody_testing._tools import Driver, started
from rhapsody_testing._work import process_and_memory

_TRIES = 3
_SUBMISSIONS = 4
_BATCH, _ROUNDS = 20, 5
_ENDS = ("process", "thread", "task", "temporary")
_HELD = {"threads": "thread", "children": "process", "descriptors": "file"}
_WORDS = {*_HELD, "sys.path", "at-fork handlers"}
_FIRST_FUNCTIONS = Need(
    "ordinary functions run on the same workers",
    lambda suite, kind: kind != "async_function" or "function" not in suite.kinds,
)
Way = Literal["await", "async with", "create"]
WAYS: tuple[Way, ...] = ("await", "async with", "create")


@dataclass(frozen=True, slots=True)
class Life:
    """Measurements of one backend that was started, ran a task of each kind and was shut down.

    Attributes:
        way: The way in which the backend was started.
        backend: A weak reference to the backend.
        gap: The longest pause of the loop.
        shutdown: Number of seconds that the shutdown took, after all tasks had ended.
        left: The resources that the backend left behind.
        memory: Memory of this process in bytes after the shutdown.
    """

    way: Way
    backend: weakref.ref[Any]
    gap: Gap
    shutdown: float
    left: Holdings
    memory: int


class Lifecycle(Suite):
    """Checks of starting and stopping a backend.

    Most of the checks share the measurements of a few backends.
    """

    @check("starting-and-stopping", dry=True, times=2)
    @pytest.mark.parametrize("way", WAYS)
    async def test_it_starts_and_stops(self, way: Way) -> None:
        while not any(life.way == way for life in self._current.lives):
            await self._lives(len(self._current.lives) + 1)

    @check("the-users-program", dry=True, times=3)
    async def test_it_changes_nothing_of_the_program(self, new_backend: NewBackend) -> None:
        # The shared backend may change the program while it runs.
        await self._current.discard(self.time_limit)
        program, adds = self._current.program, frozenset(self.adds)
        await self._lives(1)
        # Signal handlers may be those of a library that the first life imported.
        found = [
            w for w in ProcessSettings.now().since(program, frozenset()) if "handler of" not in w
        ]
        program.restore()
        assert not found, f"changed by earlier starts and shutdowns: {'; '.join(found)}"
        made = await new_backend()
        own = type(made).__module__.partition(".")[0]
        with marked() as mark, fork_handlers(own) as forks:

            async def compare(moment: str, allowed: Set[str]) -> None:
                kinds = [kind for name, kind in _HELD.items() if name not in allowed]

                def new() -> Holdings:
                    return leftovers(held, self.leaves_behind, kinds, mark)

                def look() -> list[str]:
                    words = ProcessSettings.now().since(program, allowed)
                    if "at-fork handlers" not in adds:
                        words += [f"{module} registered an at-fork handler" for module in forks]
                    return words + [f"new {' '.join(text.split())}" for text in new().values()]

                found = await settled(look, 10 * self.settle)
                end_processes(new())
                assert not found, (
                    f"after {moment}: {'; '.join(found)}. `adds` allows {sorted(_WORDS)} while the "
                    "backend runs; `leaves_behind` allows what a library keeps intentionally"
                )

            held = holdings(mark)
            try:
                backend = await started(made)
                await compare("the start", adds)
                async with Driver(backend, work_dir=self.place) as driver:
                    await driver.run(*(quick(driver, kind) for kind in self.kinds))
                    await compare("a few tasks", adds)
                await backend.shutdown()
                del backend, made, driver
                gc.collect()
                await compare("the shutdown", frozenset())
            finally:
                program.restore()

    @check("starting-and-stopping", dry=True)
    async def test_the_engine_starts_and_stops_it(
        self, new_backend: NewBackend, new_engine: NewEngine
    ) -> None:
        backend = await new_backend()
        flow = await new_engine(backend)
        await self.adder(flow)(1)
        await flow.shutdown()
        assert await state_of(backend) == "shutdown"

    @check("starting-and-stopping", dry=True)
    async def test_use_before_the_start_is_an_error(self, new_backend: NewBackend) -> None:
        backend = await new_backend()
        if await state_of(backend) != "initialized":
            pytest.skip("make_backend returns a backend that has already been started")
        with pytest.raises(Exception, match="await"):
            await backend.submit_tasks([Driver(backend).command("true")])
        await backend.shutdown()
        assert await state_of(backend) == "shutdown", "a shutdown before the start must be harmless"

    @check("starting-and-stopping", FUNCTIONS)
    async def test_two_backends_do_not_mix(self, driver: Driver, new_backend: NewBackend) -> None:
        kind = self.kinds[0]
        async with self.drive(await new_backend()) as second:
            tasks = call(driver, kind, "add", 1), call(second, kind, "add", 2)
            ends = await asyncio.gather(driver.run_one(tasks[0]), second.run_one(tasks[1]))
            assert [end.value for end in ends] == [2, 3]
            await second.backend.shutdown()
        end = await driver.run_one(call(driver, kind, "add", 3))
        assert end.value == 4, (
            f"a task failed after another backend of the class was shut down: {end}"
        )

    @check("starting-and-stopping", dry=True)
    async def test_a_failed_start_leaves_nothing_running(self) -> None:
        with marked() as mark:
            before = holdings()
            backend = await self.make_failing_backend()
            if backend is NotImplemented:
                pytest.skip("the class does not define make_failing_backend")
            try:
                await backend
            except Exception:  # any error will do
                state = await state_of(backend)
            else:
                pytest.fail("the backend of make_failing_backend started without an error")
            assert state in ("error", "shutdown"), (
                f"after a failed start, the state is {state!r}, not 'error' or 'shutdown'"
            )
            await backend.shutdown()
            left = await self._left(before, _ENDS, mark)
        assert not left, listed(left)

    @check("declaration", dry=True)
    async def test_its_declaration_imports_no_library(self, new_backend: NewBackend) -> None:
        name = str((await new_backend()).name)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _DECLARE, name),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode == 0, f"loading the entry point failed: {err.decode()[-500:]}"
        found = json.loads(out)
        if found is None:
            pytest.skip(f"no entry point in the group rhapsody.backends is named {name!r}")
        assert not found, f"the entry point must not import libraries: {', '.join(found)}"

    @check("the-event-loop", dry=True, times=3)
    async def test_start_and_shutdown_do_not_block_the_loop(self) -> None:
        async def live(count: int) -> Gap:
            gap: Gap = (await self._lives(count))[count - 1].gap
            return gap

        await _require_free_loop(live, self.loop_gap, "loop_gap")

    @check("the-event-loop", times=3, fan=True)
    @pytest.mark.parametrize("what", ["a batch", "a few tasks"])
    async def test_a_submission_does_not_block_the_loop(self, driver: Driver, what: str) -> None:
        kinds = self.kinds
        # A warm-up, so that resources that are created on first use are not measured.
        await driver.run(*(quick(driver, kind) for kind in kinds))

        async def measure(_: int) -> Gap:
            with Heartbeat(self._current.clock) as heartbeat:
                for _ in range(rounds):
                    await driver.run(*(quick(driver, kind) for kind in kinds * each))
            if each > 1:
                return heartbeat.worst
            return Gap(*(seconds / rounds for seconds in heartbeat.total))

        if what == "a batch":
            rounds, each = 1, self.few(_BATCH)
            await _require_free_loop(measure, self.loop_gap, "loop_gap")
        else:
            rounds, each = _SUBMISSIONS, 1
            await _require_free_loop(measure, self.submission_gap, "submission_gap")

    @check("what-shutdown-leaves", dry=True, times=2)
    async def test_shutdown_leaves_nothing_behind(self) -> None:
        for count in (1, 2):
            for life in await self._lives(count):
                assert not life.left, listed(life.left)

    @check("starting-and-stopping", dry=True, times=2)
    async def test_an_idle_backend_is_shut_down_quickly(self) -> None:
        for count in (1, 2):
            took = min(life.shutdown for life in await self._lives(count))
            if took <= self.shutdown_limit:
                return
        raise AssertionError(
            f"shutdown() took at least {took:.2f} s in two tries; `shutdown_limit` allows "
            f"{self.shutdown_limit:g} s"
        )

    @check("what-shutdown-leaves", dry=True, times=4)
    async def test_nothing_grows_over_cycles(self) -> None:
        lives = await self._lives(self.cycles)
        # Objects that exist once per process are created in the first cycles.
        first, last = lives[min(2, max(0, len(lives) - 2))], lives[-1]
        assert not last.left, f"in cycle {len(lives)}: {listed(last.left)}"
        await asyncio.sleep(self.settle)  # pending callbacks run
        gc.collect()
        alive = sum(life.backend() is not None for life in lives)
        assert alive <= 1, f"{alive} of {len(lives)} backends are still in memory after shutdown"
        grown = last.memory - first.memory
        assert grown <= self.memory_growth, (
            f"the process grew by {grown} bytes; `memory_growth` allows {self.memory_growth}"
        )

    @check("what-shutdown-leaves", "shared_file_system", times=2)
    async def test_shutdown_ends_work_in_flight(self, new_backend: NewBackend) -> None:
        kinds = self.kinds
        with marked() as mark:
            before = holdings(mark)
            backend = await new_backend()
            async with self.drive(backend) as driver:
                ticking = [Ticking(driver, kind) for kind in kinds for _ in range(3)]
                tasks = [each.task for each in ticking]
                tasks += [quick(driver, kind) for kind in kinds for _ in range(5)]
                await driver.submit(*tasks)
                await ticking[0].began()
                # Shutdown may wait for work that cannot be stopped, which therefore ends soon.
                stops = self.capabilities.cancellation
                stuck = [each for each in ticking if stops(each.kind) != "running"]
                for each in stuck:
                    asyncio.get_running_loop().call_later(0.3, each.release)
                await backend.shutdown()
                assert await state_of(backend) == "shutdown"
                for task in tasks:
                    await driver.finished(task)
                for each in stuck:
                    await each.finish()
                    while not await each.is_still(0.1):
                        pass
                still = await asyncio.gather(*(each.is_still() for each in ticking))
                assert all(still), "work continues after the shutdown"
            left = await self._left(before, _ENDS, mark)
        assert not left, listed(left)

    @check(
        "tasks-that-outlive-the-program",
        ENDS_WITH_PROGRAM,
        _FIRST_FUNCTIONS,
        "shared_file_system",
        times=2,
    )
    @each_kind
    async def test_a_task_ends_with_a_killed_program(self, kind: TaskKind) -> None:
        with marked() as mark, NamedPipe(self.place / "held") as pipe:
            before = holdings(mark)
            program = await start_program(self, Suite, kind, pipe.path)
            ending = asyncio.ensure_future(program.wait())
            opening = asyncio.ensure_future(pipe.opened.wait())
            try:
                await asyncio.wait([ending, opening], return_when=asyncio.FIRST_COMPLETED)
                text = pipe.path.with_name("program.err").read_text(errors="replace")
                assert not ending.done(), (
                    "a new process could not create the backend and run a task, see "
                    f"`ends_with_program`: {text[-2000:]}"
                )
            finally:
                opening.cancel()
                with suppress(ProcessLookupError):
                    program.kill()
                await ending
            limit, continues = 10 * self.settle, False
            try:
                async with self._current.clock.within(limit):
                    await pipe.closed.wait()
            except TimeoutError:
                continues = True
            left = await self._left(before, ("process",), mark)
        running = f"; processes that are still running: {', '.join(left.values())}" if left else ""
        assert not continues, (
            f"the {kind.replace('_', ' ')} continued for {limit:g} s after its program was killed "
            f"by SIGKILL{running}. Pass the processes that run tasks to `rhapsody.sdk.Reaper`; "
            "`ends_with_program = False` allows it if something else, such as a batch system, "
            "starts and ends them"
        )
        assert not left, f"after its program was killed by SIGKILL, {listed(left)}"

    @check("memory", FUNCTIONS, times=2, fan=True)
    async def test_finished_tasks_are_released(self, backend: Any) -> None:
        size, batch = min(400_000, self.big_bytes), self.few(_BATCH)
        count = _ROUNDS * batch
        kind = self.kinds[0]
        workers: dict[int, list[int]] = {}

        async def run(rounds: int) -> None:
            for _ in range(rounds):
                async with Driver(backend, work_dir=self.place) as driver:
                    name = "process_memory_and_data"
                    tasks = [call(driver, kind, name, size) for _ in range(batch)]
                    for end in await driver.run(*tasks):
                        assert end.state is DONE, str(end)
                        process, memory, _ = end.value
                        workers.setdefault(process, []).append(memory)

        def kept() -> list[int]:
            """Return a list with the number of bytes kept per task; empty if that is acceptable."""
            gc.collect()
            each = (tracemalloc.get_traced_memory()[0] - before) // count
            return [each] if each > self.growth_per_task else []

        tracing = tracemalloc.is_tracing()
        if not tracing:
            tracemalloc.start(1)
        try:
            await run(2)
            await asyncio.sleep(self.settle)
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            await run(_ROUNDS)
            left = await settled(kept, 10 * self.settle)
        finally:
            if not tracing:
                tracemalloc.stop()
        assert not left, (
            f"the program keeps {left[0]} bytes for each of {count} finished tasks; "
            f"`growth_per_task` allows {self.growth_per_task}"
        )
        workers.pop(os.getpid(), None)
        share = max(4_000_000, count * size // (2 * max(1, len(workers))))
        grown = {process: sizes[-1] - sizes[0] for process, sizes in workers.items()}
        assert all(more <= share for more in grown.values()), (
            f"worker processes must not keep delivered results, but grew by {grown} bytes"
        )

    async def _lives(self, count: int) -> list[Life]:
        """Measure backends until there are at least `count` measurements.

        Returns:
            All measurements, including those made for earlier checks.
        """
        lives: list[Life] = self._current.lives
        while len(lives) < count:
            way = WAYS[len(lives) % len(WAYS)]
            with marked() as mark:
                before = holdings(mark)
                with Heartbeat(self._current.clock) as heartbeat:
                    backend, shutdown = await self._live(way)
                gc.collect()
                # Files that stay open until the process ends are opened in the first life.
                left = await self._left(before, (*_ENDS, "file") if lives else _ENDS, mark)
            memory = process_and_memory()[1]
            lives.append(Life(way, backend, heartbeat.worst, shutdown, left, memory))
        return lives

    async def _live(self, way: Way) -> tuple[weakref.ref[Any], float]:
        """Start a backend, run a task of each kind, and shut the backend down.

        Returns:
            A weak reference to the backend, and the number of seconds that the shutdown took.
        """  # noqa: DOC501 - an AssertionError
        made = await self.make_backend()
        if way == "create":
            unused, kind = made, type(made)
            made = await kind.create(*self.create_args, **self.create_kwargs)
            await unused.shutdown()
            assert isinstance(made, kind), f"create returned {made!r}"
        else:
            state = await state_of(made)
            assert state in ("initialized", "running"), f"before the start, the state is {state!r}"

        try:
            if way == "async with":
                entered = await made.__aenter__()
                assert entered is made, f"`async with` returned {entered!r}, not the backend"
            elif way == "await":  # starting twice has the effect of one start
                for backend in await asyncio.gather(started(made), started(made)):
                    assert backend is made, f"await returned {backend!r}, not the backend"
            state = await state_of(made)
            assert state == "running", f"after the start, the state is {state!r}"
            async with Driver(made, work_dir=self.place) as driver:
                tasks = [quick(driver, kind) for kind in self.kinds]
                if "executable" in self.kinds:  # without a sandbox, so the backend must choose one
                    tasks.append(driver.describe("nowhere", executable="echo 2"))
                await driver.run(*tasks)
        finally:
            began = self._current.clock.now()
            if way == "async with":
                await made.__aexit__(None, None, None)
            else:
                await asyncio.gather(made.shutdown(), made.shutdown())
            took = self._current.clock.now() - began
        await made.shutdown()
        state = await state_of(made)
        assert state == "shutdown", f"after the shutdown, the state is {state!r}"
        try:
            await made.submit_tasks([Driver(made).command("true")])
        except Exception:  # any error will do
            return weakref.ref(made), took
        raise AssertionError("submit_tasks did not raise an error after the shutdown")

    async def _left(self, before: Holdings, kinds: Container[str], mark: str) -> Holdings:
        """Return the leftovers that remain after a wait, and kill the processes among them."""
        look = partial(leftovers, before, self.leaves_behind, kinds, mark)
        if left := await settled(look, 10 * self.settle):
            gc.collect()  # a connection that ended during the wait may be in a reference cycle
            left = await settled(look, self.settle)
        end_processes(left)
        return left


async def _require_free_loop(
    measure: Callable[[int], Awaitable[Gap]], most: float, attribute: str
) -> None:
    """Fail if the backend has blocked the loop for too long in three tries.

    A try in which the process could not run for a while is ignored, because the cause of the pause
    is not known. The check passes after one try within the limit, or after six tries in total.
    """
    blocked = []
    for count in range(1, 2 * _TRIES + 1):
        gap = await measure(count)
        if gap.seen <= most:
            return
        if gap.counted > most:
            blocked.append(gap.counted)
        assert len(blocked) < _TRIES, (
            f"the loop was blocked for at least {min(blocked):.2f} s in each of {_TRIES} tries; "
            f"`{attribute}` allows {most:g} s. Run blocking calls on a thread: "
            "`await rhapsody.sdk.in_thread(function)`"
        )


# Describe the backend, and print the modules of required distributions that were imported.
# Print null if no distribution declares the backend.
_DECLARE = """
import json, re, sys
from importlib.metadata import packages_distributions
from rhapsody import BackendRegistry

def same(name):
    return re.sub("[-_.]+", "-", name).lower()

name, found = sys.argv[1], None
if name in BackendRegistry.list_backends():
    requires = BackendRegistry.describe(name).requires
    needed = {same(re.match("[A-Za-z0-9._-]+", text)[0]) for text in requires}
    modules = {each.partition(".")[0] for each in sys.modules}
    owners = packages_distributions()
    found = sorted(m for m in modules if needed & {same(owner) for owner in owners.get(m, ())})
print(json.dumps(found))
"""
