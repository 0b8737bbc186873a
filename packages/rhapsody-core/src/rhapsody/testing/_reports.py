"""Checks of what a backend declares and reports: callbacks, states, submissions."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from rhapsody.backends.base import Capabilities
from rhapsody.states import StateMapper
from rhapsody.task import TaskKind
from rhapsody.testing._suite import Suite, check, each_kind
from rhapsody.testing._tasks import DONE, FAILED, RUNNING, Ticking, failing, kinds_of, quick, until

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
