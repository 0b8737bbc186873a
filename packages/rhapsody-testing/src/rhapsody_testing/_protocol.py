"""Checks of the calls between an engine and a backend: reports, cancellation and resources."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import pytest

from rhapsody import (
    CapabilityError,
    Resources,
    StateMapper,
    TaskDescription,
    WorkflowEngine,
    current_task,
)
from rhapsody.backends import Capabilities
from rhapsody.sdk import TaskKind, memory_in_bytes
from rhapsody_testing._suite import (
    CANCELED,
    DONE,
    FAILED,
    FUNCTIONS,
    ISOLATED,
    RUNNING,
    Need,
    Suite,
    Ticking,
    binds,
    call,
    cancel,
    cancels,
    check,
    each_kind,
    failing,
    honors,
    quick,
    until,
)
from rhapsody_testing._tools import Driver
from rhapsody_testing._work import variable


def _is_usage(key: str, value: object) -> bool:
    """Return True if `rhapsody.task.Usage` has the key, and the value is valid for it."""
    number = int if key in ("peak_memory", "read_bytes", "written_bytes") else (int, float)
    known = key == "cpu_seconds" or number is int
    return known and isinstance(value, number) and not isinstance(value, bool) and value >= 0


class ReportChecks(Suite):
    """Checks of a backend's declarations, and of the reports that the callback receives."""

    @check("declaration", dry=True)
    async def test_it_declares_what_it_is(self, backend: Any) -> None:
        assert isinstance(backend.name, str) and backend.name
        assert isinstance(backend.capabilities, Capabilities)
        assert self.kinds, "the backend does not declare any kind of task"
        for attribute in ("uid", "path"):
            value = getattr(backend.session, attribute, None)
            assert isinstance(value, str) and value, f"`session.{attribute}` is {value!r}"

    @check("states", dry=True)
    async def test_its_states_map_has_the_canonical_states(self, backend: Any) -> None:
        states = backend.get_task_states_map()
        assert isinstance(states, StateMapper), (
            f"get_task_states_map() must return a StateMapper, got {states!r}"
        )
        for main in ("DONE", "FAILED", "CANCELED", "RUNNING"):
            assert states.to_main_state(getattr(states, main)) == main
        terminal = {str(states.to_main_state(native)) for native in states.terminal_states}
        assert terminal == {"DONE", "FAILED", "CANCELED"}

    @check("states", dry=True)
    async def test_each_task_is_reported_terminal_exactly_once(self, driver: Driver) -> None:
        tasks = [quick(driver, kind) for kind in self.kinds for _ in range(8)]
        tasks += [failing(driver, kind) for kind in self.kinds for _ in range(4)]
        await driver.submit(*tasks)
        waiting = asyncio.gather(*(driver.finished(task) for task in tasks))
        # After an unknown state a task never finishes: do not wait for it.
        while not waiting.done() and not driver.faults:
            await asyncio.wait([waiting], timeout=0.05)
        waiting.cancel()
        await asyncio.sleep(self.settle)  # a second report may follow
        if self.capabilities.reports_running and not driver.faults:
            silent = [task["name"] for task in tasks if RUNNING not in driver.history(task)[:-1]]
            assert not silent, f"not reported RUNNING: {silent}"

    @check("states")
    @each_kind
    async def test_a_finished_task_holds_its_outcome(self, driver: Driver, kind: TaskKind) -> None:
        ends = await driver.run(quick(driver, kind), failing(driver, kind))
        assert [end.state for end in ends] == [DONE, FAILED], str(ends)
        for end in ends:
            outcome = "return_value" if end.state is DONE else "exception"
            keys = ["exit_code", "stdout", "stderr"] if kind == "executable" else [outcome]
            missing = [key for key in keys if key not in end.task]
            assert not missing, f"a {end.state} {kind} has no {missing}"
            worker = end.task.get("worker")
            assert not self.names_workers or (isinstance(worker, str) and worker), (
                f"a finished task must name its host or worker in 'worker', got {worker!r}; if the "
                "backend cannot know it, set `names_workers = False`"
            )
            used = end.task.get("usage", {})
            wrong = {key: value for key, value in used.items() if not _is_usage(key, value)}
            assert not wrong, f"'usage' must contain the keys of `rhapsody.task.Usage`: {wrong}"
        if kind != "executable":
            assert ends[1].error is not None, (
                f"'exception' must be an exception, got {ends[1].task['exception']!r}"
            )

    @check("states", "reports_running", "shared_file_system", times=2)
    @each_kind
    async def test_running_is_reported_when_the_work_begins(
        self, driver: Driver, kind: TaskKind
    ) -> None:
        """Submit tasks, if possible more than can run at once. None ends before it is released."""
        count = min(32, max(8, 2 * (self.cores or 0)))
        tasks = [Ticking(driver, kind) for _ in range(count)]
        reported = started = 0

        def agree() -> bool:
            nonlocal reported, started
            running = [RUNNING in driver.history(each.task) for each in tasks]
            working = [each.has_started for each in tasks]
            reported, started = sum(running), sum(working)
            return started > 0 and running == working

        await driver.submit(*(each.task for each in tasks))
        try:
            async with self._current.clock.within(self.time_limit / 2):
                await until(agree)
        except TimeoutError:
            raise AssertionError(
                f"of {count} tasks submitted together, {reported} were reported RUNNING, but "
                f"{started} had started"
            ) from None
        await asyncio.gather(*(each.finish() for each in tasks))

    @check("submission", dry=True)
    async def test_every_batch_is_accepted_as_it_is(self, driver: Driver) -> None:
        kind = self.kinds[0]
        tasks = []
        for size in (1, 5, 1, 20):
            batch = [quick(driver, kind) for _ in range(size)]
            handed = list(batch)
            await driver.submit_batch(handed)
            same = [mine is given for mine, given in zip(batch, handed, strict=False)]
            assert same == [True] * size, (
                f"submit_tasks changed its list, from {size} to {len(handed)} tasks"
            )
            tasks += batch
        ends = [await driver.finished(task) for task in tasks]
        assert all(end.state is DONE for end in ends), str(ends[:3])

    @check("submission")
    async def test_one_bad_task_does_not_spoil_its_batch(self, driver: Driver) -> None:
        batch = [make(driver, kind) for kind in self.kinds for make in (quick, failing, quick)]
        ends = await driver.run(*batch)
        assert [end.state for end in ends] == [DONE, FAILED, DONE] * len(self.kinds)

    @check("submission", "shared_file_system")
    async def test_submitting_does_not_wait_for_the_end(self, driver: Driver) -> None:
        tickings = [Ticking(driver, kind) for kind in self.kinds]
        await driver.submit(*(each.task for each in tickings))
        await asyncio.gather(*(each.finish() for each in tickings))

    @check("submission", FUNCTIONS)
    async def test_a_task_may_come_with_a_later_attempt(self, driver: Driver) -> None:
        task = call(driver, self.kinds[0], "add", 1)
        # Attempts 1 and 2 ran on another backend.
        task["uid"], task["attempt"] = task["uid"][:-1] + "3", 3
        end = await driver.run_one(task)
        assert end.value == 2, str(end)

    @check("timeouts", dry=True)
    async def test_its_end_is_seconds_or_none(self, driver: Driver) -> None:
        for task in (None, driver.command("true")):
            left = driver.backend.seconds_left(task)
            number = isinstance(left, int | float) and not isinstance(left, bool)
            assert left is None or (number and left >= 0), (
                f"seconds_left must return None or a number of at least 0, got {left!r}"
            )


_MAX_BLOCKERS = 64

CANNOT_STOP = Need(
    "the backend declares that it cancels a running {kind}",
    lambda suite, kind: suite.capabilities.cancellation(kind) != "running",
)
COOPERATIVE = Need(
    "the backend can stop a function that is running, or cannot cancel functions",
    lambda suite, _: (
        suite.capabilities.sync_functions and suite.capabilities.cancel_functions == "queued"
    ),
)


class Cancellation(Suite):
    """Checks of `cancel_task`: its results and effects, and the reports that follow."""

    @check("cancellation", dry=True)
    async def test_unknown_and_finished_tasks_are_not_canceled(self, driver: Driver) -> None:
        assert await driver.cancel("no.such.task.000001.1") is False
        tasks = [quick(driver, kind) for kind in self.kinds]
        await driver.run(*tasks)
        assert [await driver.cancel(task) for task in tasks] == [False] * len(tasks)
        await asyncio.sleep(self.settle)
        assert [driver.history(task)[-1] for task in tasks] == [DONE] * len(tasks)

    @check("cancellation", cancels("queued"), "shared_file_system")
    @each_kind
    async def test_a_waiting_task_is_canceled(self, driver: Driver, kind: TaskKind) -> None:
        blockers = [Ticking(driver, kind) for _ in range(_MAX_BLOCKERS)]
        traces = [self.place / f"trace.{number}" for number in range(3)]
        victims = [_tracing(driver, kind, str(trace)) for trace in traces]
        await driver.submit(*(blocker.task for blocker in blockers), *victims)
        await blockers[0].began()
        before, started = -1, 0
        while started > before:  # a busy machine starts them slowly
            await asyncio.sleep(self.settle)
            before, started = started, sum(blocker.has_started for blocker in blockers)
        if started == _MAX_BLOCKERS or any(trace.exists() for trace in traces):
            pytest.skip(f"no task waits: the backend runs {_MAX_BLOCKERS} tasks at once")
        # Concurrently, because a slow backend continues to start tasks in the meantime.
        await asyncio.gather(*(cancel(driver, victim) for victim in victims))
        # A backend that starts tasks slowly would need minutes to run all blockers.
        waiting = [blocker for blocker in blockers if not blocker.has_started]
        await asyncio.gather(*(driver.cancel(blocker.task) for blocker in waiting))
        ends = await asyncio.gather(*(blocker.finish() for blocker in blockers))
        for blocker, end in zip(blockers, ends, strict=True):
            canceled = end.state is CANCELED and blocker in waiting
            assert end.state is DONE or canceled, (
                f"a task that was not canceled must end DONE: {end}"
            )
        ran = [trace.name for trace in traces if trace.exists()]
        assert not ran, f"{len(ran)} of 3 canceled tasks ran"

    @check("cancellation", cancels("running"), "shared_file_system")
    @each_kind
    async def test_a_running_task_is_stopped(self, driver: Driver, kind: TaskKind) -> None:
        routes = [route for route in self.routes if route.kind == kind]
        tickings = {route.name: Ticking(driver, kind) for route in routes}
        for route in routes:
            route.take(tickings[route.name].task)
        tickings = tickings or {f"an {kind}": Ticking(driver, kind)}
        bystander = Ticking(driver, kind)
        await driver.submit(*(each.task for each in (*tickings.values(), bystander)))

        async def stop(ticking: Ticking) -> bool:
            await ticking.began()
            await cancel(driver, ticking.task)
            return await ticking.is_still()

        stopped = await asyncio.gather(*map(stop, tickings.values()))
        going = [name for name, still in zip(tickings, stopped, strict=True) if not still]
        assert not going, f"reported CANCELED, but still running: {', '.join(going)}"
        await bystander.began()
        end = await bystander.finish()
        assert end.state is DONE, f"a task that was not canceled must end DONE: {end}"
        assert (await driver.run_one(quick(driver, kind))).state is DONE, (
            "a task submitted after the cancellation must end DONE"
        )

    @check("cancellation", "executables", cancels("running", "executable"), "shared_file_system")
    async def test_an_executable_is_stopped_as_a_group(self, driver: Driver) -> None:
        stubborn = Ticking(driver, "executable", "trap '' TERM; ")
        await stubborn.start()
        await cancel(driver, stubborn.task)
        assert await stubborn.is_still(), "a process that ignores SIGTERM is still running"

    @check("cancellation", CANNOT_STOP, "shared_file_system")
    @each_kind
    async def test_an_unstoppable_task_is_reported_when_it_ends(
        self, driver: Driver, kind: TaskKind
    ) -> None:
        ticking = Ticking(driver, kind)
        await ticking.start()
        answer = await driver.cancel(ticking.task)
        assert isinstance(answer, bool), f"cancel_task must return a bool, got {answer!r}"
        await asyncio.sleep(self.settle)
        early = [state for state in driver.history(ticking.task) if state in (DONE, CANCELED)]
        assert not early or await ticking.is_still(), (
            f"the task was reported {early}, but is still running"
        )
        await ticking.finish()

    @check("cancellation", COOPERATIVE)
    async def test_a_function_can_see_that_it_was_canceled(self, driver: Driver) -> None:
        seconds = 10 * self.time_limit  # more than the check's limit

        def look() -> None:
            end = time.monotonic() + seconds
            while not current_task().cancelled and time.monotonic() < end:
                time.sleep(0.01)

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
            await cancel(driver, each.task)
        still = await asyncio.gather(*(each.is_still() for each in tickings))
        assert all(still), f"a task of kind {kind} still runs after its terminal state"


def _tracing(driver: Driver, kind: TaskKind, path: str) -> TaskDescription:
    """Describe a task that creates a file."""
    if kind == "executable":
        return driver.command(["touch", path])
    return call(driver, kind, "note_run", path)


_TOO_MUCH = {
    "cores": Resources(cores=1_000_000),
    "gpus": Resources(gpus=1_000_000),
    "memory": Resources(memory=2**60),
    "ranks": Resources(ranks=1_000_000),
}


class ResourceRequests(Suite):
    """Checks of requests for resources: limits, environment variables and rejected requests."""

    @check("resources", FUNCTIONS)
    @pytest.mark.parametrize("resource", ["cores", "fractional_cores", "gpus", "memory"])
    async def test_resources_bound_what_runs_at_once(self, driver: Driver, resource: str) -> None:
        if resource not in self.capabilities.resources:
            pytest.skip(f"the backend does not declare the resource {resource!r}")
        total = self._total("cores" if resource == "fractional_cores" else resource)
        match resource:
            case "cores":
                each = self.cores_per_task or total
                request, allowed = Resources(cores=each), total // each
            case "fractional_cores":
                request, allowed = Resources(cores=0.5), 2 * total
            case "gpus":
                request, allowed = Resources(cores=0, gpus=1), total
            case "memory":
                total, each = (memory_in_bytes(m) for m in (total, self.memory_per_task or total))
                cores = 0 if "cores" in self.capabilities.resources else 1
                request, allowed = Resources(cores=cores, memory=each), total // each
        most = await self._most_at_once(driver, request, 2 * allowed + 1)
        assert most <= allowed, f"{most} tasks with {request} ran at once, more than {allowed}"

    @check("resources", "sync_functions", honors("cores"))
    async def test_all_cores_are_used(self, driver: Driver) -> None:
        cores = self._total("cores")
        if cores == 1:
            pytest.skip("the backend has only one core")
        most = 0
        for seconds in (0.1, 0.5, 1.0):  # workers may need a while to start
            most = await self._most_at_once(driver, Resources(), 2 * cores, seconds)
            if most == cores:
                return
        raise AssertionError(f"at most {most} tasks ran at once on {cores} cores")

    @check("resources")
    async def test_more_than_the_backend_has_is_refused(self, driver: Driver) -> None:
        for resource in self.capabilities.resources & _TOO_MUCH.keys():
            kind = self.kinds[
                -1 if resource == "ranks" else 0
            ]  # an executable, if the backend runs them
            end = await driver.run_one(quick(driver, kind) | {"resources": _TOO_MUCH[resource]})
            assert isinstance(end.error, CapabilityError), f"{_TOO_MUCH[resource]}: {end}"
            assert resource in str(end.error), "the error must name the resource"

    @check("tasks-without-cores", "functions", honors("cores"))
    async def test_coroutines_without_cores_wait_together(self, driver: Driver) -> None:
        cores = self._total("cores")
        count = max(10, 2 * cores)
        most = await self._most_at_once(driver, Resources(cores=0), count, 0.2, "async_function")
        assert most > cores, f"only {most} of {count} waiting tasks ran at once on {cores} cores"

    @check("resources", "executables", binds("cores"))
    async def test_cores_set_the_thread_counts(self, driver: Driver) -> None:
        cores = min(self._total("cores"), 2)
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        request = Resources(cores=cores)
        command = " ".join(["echo", *(f"${name}" for name in names)])
        own = {"OMP_NUM_THREADS": "7"}
        counts, kept = await driver.run(
            driver.command(command, resources=request),
            driver.command("echo $OMP_NUM_THREADS", resources=request, environment=own),
        )
        assert counts.stdout == " ".join([str(cores)] * 3) + "\n", f"{names}: {counts}"
        assert kept.stdout == "7\n", "the task's own variable must take precedence"

    @check("resources", "executables", binds("gpus"))
    async def test_gpus_are_assigned_to_executables(self, driver: Driver) -> None:
        gpus = self._total("gpus")

        def task(count: int, seconds: int) -> TaskDescription:
            request = Resources(cores=0, gpus=count)
            command = f"echo $CUDA_VISIBLE_DEVICES; sleep {seconds}"
            return driver.command(command, resources=request)

        ends = await driver.run(*(task(1, seconds=1) for _ in range(gpus)))  # at the same time
        seen = sorted((end.stdout or "").strip() for end in ends)
        assert len(set(seen)) == gpus and all(seen), (
            f"{gpus} tasks must see different GPUs, but saw {seen}"
        )
        whole = await driver.run_one(task(gpus, seconds=0))
        assert sorted((whole.stdout or "").strip().split(",")) == seen, str(whole)

    @check("resources", "sync_functions", ISOLATED, binds("gpus"))
    async def test_gpus_are_assigned_to_functions(self, driver: Driver) -> None:
        task = driver.call(variable, "CUDA_VISIBLE_DEVICES")
        end = await driver.run_one(task | {"resources": Resources(gpus=1)})
        assert isinstance(end.value, str) and end.value.isdigit(), str(end)

    @check("resources", "task_settings")
    async def test_an_undeclared_setting_is_refused(self, flow: WorkflowEngine) -> None:
        task = self.adder(flow)
        with pytest.raises(CapabilityError, match="kit_4711"):
            await task.options(task_description={"kit_4711": 1})(1)
        await task(1)

    def _total(self, name: str) -> Any:
        value = getattr(self, name)
        assert value is not None, (
            f"the backend declares the resource {name!r}: set `{name} = ...` in the test class to "
            "the amount that the backend returned by make_backend has"
        )
        return value

    async def _most_at_once(
        self,
        driver: Driver,
        request: Resources,
        count: int,
        seconds: float = 0.1,
        kind: TaskKind | None = None,
    ) -> int:
        """Run tasks that sleep, and return the maximum number that slept at the same time."""
        kind = kind or self.kinds[0]
        tasks = [call(driver, kind, "interval", seconds) for _ in range(count)]
        ends = await driver.run(*(task | {"resources": request} for task in tasks))
        assert all(end.state is DONE for end in ends), f"with {request}: {ends[0]}"
        steps = sorted(step for end in ends for step in zip(end.value, (1, -1), strict=True))
        return max(itertools.accumulate(change for _, change in steps))
