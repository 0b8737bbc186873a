"""Checks of what a backend reports: callbacks, states, submission."""

from __future__ import annotations

import asyncio

from rhapsody.backends.base import Capabilities
from rhapsody.states import StateMapper, TasksMainStates
from rhapsody.task import TaskDescription
from rhapsody.testing._driver import KNOWN_STATES, ONE_TERMINAL, Driver
from rhapsody.testing._rules import RUNNING, SHARED, skip
from rhapsody.testing._running import check
from rhapsody.testing._tasks import CANCELED, DONE, FAILED, Ticking, failing, quick, until
from rhapsody.testing._trial import Trial

WHEN_RUNNING = "RUNNING is reported when the work begins, not while it waits, not at its end"


class Reports:
    """What it says of itself, what the callback gets, and how often."""

    @check("name, capabilities and session are declared", dry=True)
    async def test_it_declares_what_it_is(self, trial: Trial) -> None:
        backend = await trial.backend()
        name, session = backend.name, backend.session
        trial.require(isinstance(name, str) and name, f"`name` is {name!r}, not a name")
        trial.require(
            isinstance(backend.capabilities, Capabilities),
            f"`capabilities` is {backend.capabilities!r}, not a Capabilities",
        )
        for attribute in ("uid", "path"):
            value = getattr(session, attribute, None)
            trial.require(
                isinstance(value, str) and value, f"`session.{attribute}` is {value!r}, not text"
            )

    @check(ONE_TERMINAL, dry=True)
    async def test_each_task_is_reported_terminal_exactly_once(self, trial: Trial) -> None:
        driver = await trial.driver()
        kinds = trial.kinds()
        trial.require(kinds, "the backend declares that it runs nothing")
        tasks = [quick(driver, kind) for kind in kinds for _ in range(8)]
        tasks += [failing(driver, kind) for kind in kinds for _ in range(4)]
        trial.doing("waiting for one terminal callback of each task")
        await driver.run(*tasks)
        await trial.clock.elapse(trial.kit.settle)  # a second one may follow
        for fault in driver.faults:
            trial.require(fault.rule != ONE_TERMINAL, fault.detail)
        for task in tasks:
            ends = [
                report for report in driver.of(task) if report.state in (DONE, FAILED, CANCELED)
            ]
            trial.require(len(ends) == 1, f"task {task['name']!r} was reported {ends}")

    @check("tasks that succeed are DONE, tasks that fail are FAILED")
    async def test_success_is_done_and_failure_is_failed(self, trial: Trial) -> None:
        driver = await trial.driver()
        for kind in trial.kinds():
            end = await driver.run_one(quick(driver, kind))
            trial.require(end.state is DONE, f"a good {kind}: {end}")
            end = await driver.run_one(failing(driver, kind))
            trial.require(end.state is FAILED, f"a failing {kind}: {end}")

    @check("a finished task's dict holds its results")
    async def test_a_finished_task_holds_its_results(self, trial: Trial) -> None:
        driver = await trial.driver()
        for kind in trial.kinds():
            executable = kind == "executable"
            good = ["exit_code", "stdout", "stderr"] if executable else ["return_value"]
            end = await driver.run_one(quick(driver, kind))
            missing = [key for key in good if key not in end.task]
            trial.require(not missing, f"a DONE {kind} has no {missing}: {end}")
            bad = ["exit_code", "stdout", "stderr"] if executable else ["exception"]
            end = await driver.run_one(failing(driver, kind))
            missing = [key for key in bad if key not in end.task]
            trial.require(not missing, f"a FAILED {kind} has no {missing}: {end}")
            if kind != "executable":
                trial.require(
                    end.error is not None,
                    f"a FAILED {kind} has {end.task['exception']!r} as its exception",
                )

    @check("get_task_states_map() is a StateMapper with the four canonical states", dry=True)
    async def test_its_states_map_has_the_canonical_states(self, trial: Trial) -> None:
        backend = await trial.backend()
        states = backend.get_task_states_map()
        trial.require(isinstance(states, StateMapper), f"it is {states!r}")
        for main in ("DONE", "FAILED", "CANCELED", "RUNNING"):
            native = getattr(states, main)
            back = states.to_main_state(native)
            trial.require(back == main, f"{main} is {native!r}, which maps back to {back}")
        terminal = {str(states.to_main_state(native)) for native in states.terminal_states}
        expected = {"DONE", "FAILED", "CANCELED"}
        trial.require(terminal == expected, f"its terminal states mean {sorted(terminal)}")

    @check(KNOWN_STATES, dry=True)
    async def test_every_reported_state_is_known(self, trial: Trial) -> None:
        driver = await trial.driver()
        trial.doing("waiting for terminal states that the mapper knows")
        tasks = [make(driver, kind) for kind in trial.kinds() for make in (quick, failing)]
        await driver.submit(*tasks)
        waiting = [asyncio.ensure_future(driver.finished(task)) for task in tasks]
        try:
            # A state that is not known ends no task: do not wait for the limit.
            while not all(future.done() for future in waiting) and not driver.faults:
                await asyncio.wait(waiting, timeout=0.05)
        finally:
            for future in waiting:
                future.cancel()
        unknown = [fault.detail for fault in driver.faults if fault.rule == KNOWN_STATES]
        trial.require(not unknown, "; ".join(unknown[:3]))

    @check("a running state comes before the terminal one", RUNNING, dry=True)
    async def test_running_is_reported_before_the_end(self, trial: Trial) -> None:
        driver = await trial.driver()
        for kind in trial.kinds():
            task = quick(driver, kind)
            await driver.run_one(task)
            states = driver.history(task)
            trial.require(
                TasksMainStates.RUNNING in states[:-1] and states.index(states[-1]) > 0,
                f"a {kind} was reported {[*map(str, states)]}",
            )

    @check(WHEN_RUNNING, RUNNING, SHARED, times=2)
    async def test_running_is_reported_when_the_work_begins(self, trial: Trial) -> None:
        """Hands over more tasks than are likely to run at once, none of which ends by itself.

        Those that are reported as running must begin while the others go on; those that
        have begun must be reported. Then they are let go, and the same holds of the next ones.
        """
        driver = await trial.driver()
        count = min(32, max(8, 2 * (trial.kit.cores or 0)))
        for kind in trial.kinds():
            tasks = [Ticking(trial, driver, kind) for _ in range(count)]
            waiting = list(tasks)
            try:
                await driver.submit(*(each.task for each in tasks))
                for _ in range(2):
                    running = await _running(trial, driver, waiting) if waiting else []
                    for each in running:
                        waiting.remove(each)
                        each.release()
                        await driver.finished(each.task)
            finally:
                for each in waiting:
                    each.release()
            for each in tasks:
                await driver.finished(each.task)

    @check("the worker that ran a task is named")
    async def test_the_worker_is_named(self, trial: Trial) -> None:
        if not trial.kit.names_workers:
            skip("names_workers = False: the system behind the backend does not say")
        driver = await trial.driver()
        for kind in trial.kinds():
            for make in (quick, failing):
                end = await driver.run_one(make(driver, kind))
                worker = end.task.get("worker")
                trial.require(
                    isinstance(worker, str) and worker,
                    f"the description of a {kind} that ended must have the host or worker that "
                    f"ran it in 'worker'; it has {worker!r}. Where the system behind the backend "
                    "does not say, set `names_workers = False`",
                )

    @check("one task's problem is its FAILED callback, not a raise of submit_tasks")
    async def test_one_bad_task_does_not_spoil_its_batch(self, trial: Trial) -> None:
        driver = await trial.driver()
        kinds = trial.kinds()
        batch = [make(driver, kind) for kind in kinds for make in (quick, failing, quick)]
        ends = await driver.run(*batch)
        expected = [DONE, FAILED, DONE] * len(kinds)
        for end, state in zip(ends, expected, strict=True):
            trial.require(end.state is state, f"expected {state}: {end}")

    @check("the list of submitted tasks is not changed", dry=True)
    async def test_the_batch_is_left_as_it_was(self, trial: Trial) -> None:
        driver = await trial.driver()
        batch = [quick(driver, kind) for kind in trial.kinds() for _ in range(3)]
        handed = list(batch)
        await driver.submit_batch(handed)
        for task in batch:
            await driver.finished(task)
        same = len(handed) == len(batch) and all(
            mine is given for mine, given in zip(batch, handed, strict=True)
        )
        trial.require(same, f"of a list of {len(batch)} tasks {len(handed)} are left")

    @check("submit_tasks returns when the tasks are accepted, not when they ended", SHARED)
    async def test_submitting_does_not_wait_for_the_end(self, trial: Trial) -> None:
        driver = await trial.driver()
        ticking = [Ticking(trial, driver, kind) for kind in trial.kinds()]
        trial.doing("waiting for submit_tasks to return while its tasks run")
        await driver.submit(*(each.task for each in ticking))
        for each in ticking:
            each.release()
            await driver.finished(each.task)

    @check("submissions that follow one another are all accepted", dry=True)
    async def test_batch_after_batch_is_accepted(self, trial: Trial) -> None:
        driver = await trial.driver()
        kind = trial.kinds()[0]
        tasks: list[TaskDescription] = []
        for size in (1, 5, 1, 20):
            batch = [quick(driver, kind) for _ in range(size)]
            await driver.submit(*batch)
            tasks += batch
        ends = [await driver.finished(task) for task in tasks]
        trial.require(all(end.state is DONE for end in ends), f"{[*map(str, ends[:3])]}")


async def _running(trial: Trial, driver: Driver, tasks: list[Ticking]) -> list[Ticking]:
    """Waits until some of the tasks run, and proves that the reports and the work agree."""
    name = f"{len(tasks)} tasks {tasks[0].task['name']!r}"

    def reported(each: Ticking) -> bool:
        return TasksMainStates.RUNNING in driver.history(each.task)

    trial.doing(f"waiting for the first of {name} to run")
    await until(lambda: any(each.has_begun() or reported(each) for each in tasks))
    found = [each for each in tasks if each.has_begun() or reported(each)]
    try:
        async with trial.clock.within(trial.kit.time_limit / 2):
            for each in found:
                await each.began()
                await driver.running(each.task)
    except TimeoutError:
        both = sum(reported(each) for each in found), sum(each.has_begun() for each in found)
        raise trial.check.error(
            f"of {name} that were handed over at once, {both[0]} were reported RUNNING, and the "
            f"work of {both[1]} had begun"
        ) from None
    return found
