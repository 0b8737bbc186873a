"""Checks of the calls between an engine and a backend: declaration, states, cancellation."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from rhapsody.backends.base import Capabilities
from rhapsody.context import current_task
from rhapsody.states import StateMapper
from rhapsody.task import TaskDescription, TaskKind
from rhapsody.testing._suite import CANNOT_STOP, Need, Suite, cancels, check, each_kind
from rhapsody.testing._system import alive
from rhapsody.testing._tasks import (
    CANCELED,
    DONE,
    FAILED,
    RUNNING,
    Ticking,
    call,
    failing,
    kinds_of,
    quick,
    routes_of,
    until,
)

if TYPE_CHECKING:
    from rhapsody.testing._driver import Driver


_RESULTS = {
    (DONE, False): ["return_value"],
    (FAILED, False): ["exception"],
    (DONE, True): ["exit_code", "stdout", "stderr"],
    (FAILED, True): ["exit_code", "stdout", "stderr"],
}


class Reports(Suite):
    """What a backend says of itself, and what the callback receives."""

    @check("declaration", dry=True)
    async def test_it_declares_what_it_is(self, backend: Any) -> None:
        assert isinstance(backend.name, str) and backend.name
        assert isinstance(backend.capabilities, Capabilities)
        assert kinds_of(backend.capabilities), "the backend declares that it runs nothing"
        for attribute in ("uid", "path"):
            value = getattr(backend.session, attribute, None)
            assert isinstance(value, str) and value, f"`session.{attribute}` is {value!r}"

    @check("states", dry=True)
    async def test_its_states_map_has_the_canonical_states(self, backend: Any) -> None:
        states = backend.get_task_states_map()
        assert isinstance(states, StateMapper), f"get_task_states_map() returned {states!r}"
        for main in ("DONE", "FAILED", "CANCELED", "RUNNING"):
            assert states.to_main_state(getattr(states, main)) == main
        terminal = {str(states.to_main_state(native)) for native in states.terminal_states}
        assert terminal == {"DONE", "FAILED", "CANCELED"}

    @check("states", dry=True)
    async def test_each_task_is_reported_terminal_exactly_once(self, driver: Driver) -> None:
        kinds = kinds_of(self.capabilities)
        tasks = [quick(driver, kind) for kind in kinds for _ in range(8)]
        tasks += [failing(driver, kind) for kind in kinds for _ in range(4)]
        await driver.submit(*tasks)
        waiting = asyncio.gather(*(driver.finished(task) for task in tasks))
        # A state that is not known ends no task: do not wait for the limit.
        while not waiting.done() and not driver.faults:
            await asyncio.wait([waiting], timeout=0.05)
        waiting.cancel()
        await asyncio.sleep(self.settle)  # a second one may follow

    @check("states")
    @each_kind
    async def test_a_finished_task_holds_its_outcome(self, driver: Driver, kind: TaskKind) -> None:
        ends = await driver.run(quick(driver, kind), failing(driver, kind))
        assert [end.state for end in ends] == [DONE, FAILED], str(ends)
        for end in ends:
            keys = _RESULTS[end.state, kind == "executable"]
            missing = [key for key in keys if key not in end.task]
            assert not missing, f"a {end.state} {kind} has no {missing}"
        if kind != "executable":
            assert ends[1].error is not None, f"its exception is {ends[1].task['exception']!r}"

    @check("states")
    @each_kind
    async def test_the_worker_is_named(self, driver: Driver, kind: TaskKind) -> None:
        if not self.names_workers:
            pytest.skip("names_workers = False: the system behind the backend does not report it")
        for end in await driver.run(quick(driver, kind), failing(driver, kind)):
            worker = end.task.get("worker")
            assert isinstance(worker, str) and worker, (
                f"the description of a finished task must name the host or worker in 'worker', "
                f"which is {worker!r}. If the system behind the backend does not report it, set "
                "`names_workers = False`"
            )

    @check("states", "reports_running", dry=True)
    @each_kind
    async def test_running_comes_before_the_end(self, driver: Driver, kind: TaskKind) -> None:
        task = quick(driver, kind)
        await driver.run_one(task)
        states = driver.history(task)
        assert RUNNING in states[:-1], f"it was reported {[*map(str, states)]}"

    @check("states", "reports_running", "shared_file_system", times=2)
    @each_kind
    async def test_running_is_reported_when_the_work_begins(
        self, driver: Driver, kind: TaskKind
    ) -> None:
        """Submit more tasks than can run at once, none of which ends before it is released."""
        count = min(32, max(8, 2 * (self.cores or 0)))
        tasks = [Ticking(driver, kind) for _ in range(count)]
        waiting = list(tasks)
        await driver.submit(*(each.task for each in tasks))
        for _ in range(2):
            running = await self._running(driver, waiting) if waiting else []
            for each in running:
                waiting.remove(each)
                each.release()
                await driver.finished(each.task)
        for each in waiting:
            each.release()
        for each in waiting:
            await driver.finished(each.task)

    async def _running(self, driver: Driver, tasks: list[Ticking]) -> list[Ticking]:
        """Wait until some of the tasks run; their reports and their work must agree."""

        def reported(each: Ticking) -> bool:
            return RUNNING in driver.history(each.task)

        await until(lambda: any(each.begun or reported(each) for each in tasks))
        found = [each for each in tasks if each.begun or reported(each)]
        try:
            async with self._current.clock.within(self.time_limit / 2):
                for each in found:
                    await each.began()
                    await driver.running(each.task)
        except TimeoutError:
            counts = sum(map(reported, found)), sum(each.begun for each in found)
            raise AssertionError(
                f"of {len(tasks)} tasks that were submitted at once, {counts[0]} were reported "
                f"RUNNING, and the work of {counts[1]} had begun"
            ) from None
        return found

    @check("submission", dry=True)
    async def test_every_batch_is_accepted_as_it_is(self, driver: Driver) -> None:
        kind = kinds_of(self.capabilities)[0]
        tasks = []
        for size in (1, 5, 1, 20):
            batch = [quick(driver, kind) for _ in range(size)]
            handed = list(batch)
            await driver.submit_batch(handed)
            same = [mine is given for mine, given in zip(batch, handed, strict=False)]
            assert same == [True] * size, f"of a list of {size} tasks {len(handed)} are left"
            tasks += batch
        ends = [await driver.finished(task) for task in tasks]
        assert all(end.state is DONE for end in ends), str(ends[:3])

    @check("submission")
    async def test_one_bad_task_does_not_spoil_its_batch(self, driver: Driver) -> None:
        kinds = kinds_of(self.capabilities)
        batch = [make(driver, kind) for kind in kinds for make in (quick, failing, quick)]
        ends = await driver.run(*batch)
        assert [end.state for end in ends] == [DONE, FAILED, DONE] * len(kinds)

    @check("submission", "shared_file_system")
    async def test_submitting_does_not_wait_for_the_end(self, driver: Driver) -> None:
        tickings = [Ticking(driver, kind) for kind in kinds_of(self.capabilities)]
        await driver.submit(*(each.task for each in tickings))
        for each in tickings:
            each.release()
            await driver.finished(each.task)

    @check("timeouts", dry=True)
    async def test_its_end_is_seconds_or_none(self, driver: Driver) -> None:
        for left in (
            driver.backend.seconds_left(),
            driver.backend.seconds_left(driver.command("true")),
        ):
            number = isinstance(left, int | float) and not isinstance(left, bool)
            assert left is None or (number and left >= 0), f"seconds_left returned {left!r}"


_MOST_AT_ONCE = 64

COOPERATIVE = Need(
    "the backend stops running functions, or cancels none",
    lambda capabilities, *_: (
        capabilities.sync_functions and capabilities.cancel_functions == "queued"
    ),
)


class Cancellation(Suite):
    """What `cancel_task` returns, what it stops, and what is reported."""

    @check("cancellation", dry=True)
    async def test_unknown_and_finished_tasks_are_not_canceled(self, driver: Driver) -> None:
        assert await driver.cancel("no.such.task.000001.1") is False
        tasks = [quick(driver, kind) for kind in kinds_of(self.capabilities)]
        await driver.run(*tasks)
        assert [await driver.cancel(task) for task in tasks] == [False] * len(tasks)
        await asyncio.sleep(self.settle)
        assert [driver.history(task)[-1] for task in tasks] == [DONE] * len(tasks)

    @check("cancellation", cancels("queued"), "shared_file_system")
    @each_kind
    async def test_a_waiting_task_is_canceled(self, driver: Driver, kind: TaskKind) -> None:
        blockers = [Ticking(driver, kind) for _ in range(_MOST_AT_ONCE)]
        traces = [self.place / f"trace.{number}" for number in range(3)]
        victims = [_tracing(driver, kind, str(trace)) for trace in traces]
        await driver.submit(*(blocker.task for blocker in blockers), *victims)
        await blockers[0].began()
        before, begun = -1, 0
        while begun > before:  # a busy machine starts them slowly
            await asyncio.sleep(self.settle)
            before, begun = begun, sum(blocker.begun for blocker in blockers)
        try:
            if begun == _MOST_AT_ONCE or any(trace.exists() for trace in traces):
                pytest.skip(f"nothing waits: the backend starts {_MOST_AT_ONCE} tasks at once")
            # All at once: a backend that is slow to start tasks continues to do so meanwhile.
            await asyncio.gather(*(_cancel(driver, victim) for victim in victims))
        finally:
            for blocker in blockers:
                blocker.release()
        for blocker in blockers:
            end = await driver.finished(blocker.task)
            assert end.state is DONE, f"a task that was not canceled: {end}"
        ran = [trace.name for trace in traces if trace.exists()]
        assert not ran, f"{len(ran)} of 3 canceled tasks ran"

    @check("cancellation", cancels("running"), "shared_file_system")
    @each_kind
    async def test_a_running_task_is_stopped(self, driver: Driver, kind: TaskKind) -> None:
        routes = [route for route in routes_of(self.capabilities) if route.kind == kind]
        tickings = [Ticking(driver, kind) for _ in range(max(1, len(routes)))]
        for route, ticking in zip(routes, tickings, strict=False):
            route.take(ticking.task)
        bystander = Ticking(driver, kind)
        await driver.submit(*(each.task for each in (*tickings, bystander)))
        names = [route.name for route in routes] or [f"an {kind}"]
        open_names = set(names)

        async def cancel(name: str, ticking: Ticking) -> None:
            await ticking.began()
            answers = await asyncio.gather(*(driver.cancel(ticking.task) for _ in range(2)))
            assert answers[0] is True, f"cancel_task of {name}, which runs, returned {answers[0]!r}"
            end = await driver.finished(ticking.task)
            assert end.state is CANCELED, f"{name} was canceled while it ran: {end}"
            open_names.discard(name)

        try:
            await asyncio.gather(*map(cancel, names, tickings))
        except asyncio.CancelledError as error:
            error.add_note(f"waiting for the end of {', '.join(sorted(open_names))}")
            raise
        still = await asyncio.gather(*(ticking.is_still() for ticking in tickings))
        going = [name for name, ended in zip(names, still, strict=True) if not ended]
        assert not going, f"reported CANCELED while the work goes on: {', '.join(going)}"
        await bystander.began()
        bystander.release()
        end = await driver.finished(bystander.task)
        assert end.state is DONE, f"a neighbor of canceled tasks: {end}"
        assert (await driver.run_one(quick(driver, kind))).state is DONE, "a task afterwards"

    @check("cancellation", "executables", cancels("running", "executable"), "shared_file_system")
    async def test_an_executable_is_stopped_as_a_group(self, driver: Driver) -> None:
        note = self.place / "pids"
        command = (
            f"trap '' TERM; (trap '' TERM; while :; do sleep 0.1; done) & "
            f"echo $$ $! > '{note}.part'; mv '{note}.part' '{note}'; "
            "while :; do sleep 0.1; done"
        )
        task = driver.command(command)
        await driver.submit(task)
        await until(note.exists)
        pids = [int(word) for word in note.read_text().split()]
        await _cancel(driver, task)
        end = time.monotonic() + 2  # a killed process may take a while to disappear
        while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < end:
            await asyncio.sleep(0.01)
        assert not left, f"of the processes {pids}, which ignore SIGTERM, {left} still run"

    @check("cancellation", CANNOT_STOP, "shared_file_system")
    @each_kind
    async def test_an_unstoppable_task_is_reported_when_it_ends(
        self, driver: Driver, kind: TaskKind
    ) -> None:
        ticking = Ticking(driver, kind)
        await driver.submit(ticking.task)
        await ticking.began()
        answer = await driver.cancel(ticking.task)
        assert isinstance(answer, bool), f"cancel_task returned {answer!r}"
        await asyncio.sleep(self.settle)
        early = [state for state in driver.history(ticking.task) if state in (DONE, CANCELED)]
        assert not early or await ticking.is_still(), f"it was reported {early} while it goes on"
        ticking.release()
        await driver.finished(ticking.task)

    @check("cancellation", COOPERATIVE)
    async def test_a_function_can_see_that_it_was_canceled(self, driver: Driver) -> None:
        seconds = self.time_limit

        def look() -> str:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                if current_task().cancelled:
                    return "saw it"
                time.sleep(0.01)
            raise TimeoutError("current_task().cancelled stayed False")

        task = driver.call(look)
        await driver.submit(task)
        if self.capabilities.reports_running:
            await driver.running(task)
        else:
            await asyncio.sleep(self.settle)
        await driver.cancel(task)
        await driver.finished(task)

    @check("cancellation", cancels("running"), "shared_file_system")
    @each_kind
    async def test_a_cancellation_at_once_is_not_lost(self, driver: Driver, kind: TaskKind) -> None:
        tickings = [Ticking(driver, kind) for _ in range(3)]
        await driver.submit(*(each.task for each in tickings))
        for each in tickings:
            await _cancel(driver, each.task)
        still = await asyncio.gather(*(each.is_still() for each in tickings))
        assert all(still), f"a {kind} goes on after its terminal state"


async def _cancel(driver: Driver, task: TaskDescription) -> None:
    answer = await driver.cancel(task)
    assert answer is True, f"cancel_task returned {answer!r}"
    end = await driver.finished(task)
    assert end.state is CANCELED, str(end)


def _tracing(driver: Driver, kind: TaskKind, path: str) -> TaskDescription:
    """Describe a task that leaves a trace."""
    if kind == "executable":
        return driver.command(["touch", path])
    return call(driver, kind, "note_run", path)
