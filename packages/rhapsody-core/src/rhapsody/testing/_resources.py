"""Checks of resources: what is declared is honoured, all else is refused."""

from __future__ import annotations

from typing import Any

from rhapsody.errors import CapabilityError
from rhapsody.quantities import memory_in_bytes
from rhapsody.task import Resources, TaskDescription
from rhapsody.testing._driver import Driver
from rhapsody.testing._functions import most_at_once
from rhapsody.testing._graphs import adder
from rhapsody.testing._rules import (
    EXECUTABLES,
    ISOLATED,
    SETTINGS,
    SYNC,
    Need,
    binds,
    honours,
    runs,
    skip,
)
from rhapsody.testing._running import check
from rhapsody.testing._tasks import DONE, FAILED, quick
from rhapsody.testing._trial import Trial
from rhapsody.testing._work import interval, interval_async, variable

ALL = ("cores", "gpus", "memory", "ranks")
TOO_MUCH = {
    "cores": Resources(cores=1_000_000),
    "gpus": Resources(gpus=1_000_000),
    "memory": Resources(memory=2**60),
    "ranks": Resources(ranks=1_000_000),
}
LIMITED = Need(
    "resources",
    "the backend declares none of the resources that a machine can run out of",
    lambda capabilities, _: bool(capabilities.resources & set(ALL)),
)
WORKS = runs("function", "async_function")


class Resourcefulness:
    """Slots, variables and refusals."""

    @check("no more tasks run at once than their cores allow", WORKS, honours("cores"))
    async def test_cores_bound_what_runs_at_once(self, trial: Trial) -> None:
        cores = _owned(trial, "cores")
        driver = await trial.driver()
        most = await _most_at_once(trial, driver, Resources(cores=1), 2 * cores + 2)
        trial.require(most <= cores, f"on {cores} cores {most} tasks of one core ran at once")
        each = trial.kit.cores_per_task or cores
        if each > 1:
            most = await _most_at_once(trial, driver, Resources(cores=each), 2 * cores // each + 1)
            trial.require(
                most <= cores // each, f"on {cores} cores {most} tasks of {each} cores ran at once"
            )

    @check("tasks of half a core share cores", WORKS, honours("fractional_cores"))
    async def test_fractions_of_cores_are_counted(self, trial: Trial) -> None:
        cores = _owned(trial, "cores")
        driver = await trial.driver()
        most = await _most_at_once(trial, driver, Resources(cores=0.5), 4 * cores + 2)
        trial.require(most <= 2 * cores, f"on {cores} cores {most} tasks of 0.5 cores ran at once")
        each = trial.kit.cores_per_task or cores
        await _most_at_once(trial, driver, Resources(cores=each), 1)  # all are free again

    @check("as many tasks run at once as there are cores", SYNC, honours("cores"))
    async def test_all_cores_are_used(self, trial: Trial) -> None:
        cores = _owned(trial, "cores")
        if cores == 1:
            skip("the backend has one core")
        driver = await trial.driver()
        most = 0
        for seconds in (0.1, 0.5, 1.0):  # workers may need a while to start
            most = await _most_at_once(trial, driver, Resources(), 2 * cores, seconds)
            if most == cores:
                return
        raise trial.check.error(f"on {cores} cores no more than {most} tasks ran at once")

    @check("no more tasks run at once than their GPUs allow", WORKS, honours("gpus"))
    async def test_gpus_bound_what_runs_at_once(self, trial: Trial) -> None:
        gpus = _owned(trial, "gpus")
        driver = await trial.driver()
        most = await _most_at_once(trial, driver, Resources(cores=0, gpus=1), 2 * gpus + 2)
        trial.require(most <= gpus, f"on {gpus} GPUs {most} tasks of one GPU ran at once")

    @check("no more tasks run at once than their memory allows", WORKS, honours("memory"))
    async def test_memory_bounds_what_runs_at_once(self, trial: Trial) -> None:
        memory = memory_in_bytes(_owned(trial, "memory"))
        each = memory_in_bytes(trial.kit.memory_per_task or memory)
        driver = await trial.driver()
        cores = 0 if "cores" in trial.capabilities.resources else 1
        most = await _most_at_once(
            trial, driver, Resources(cores=cores, memory=each), 2 * memory // each + 1
        )
        trial.require(
            most <= memory // each,
            f"with {memory} bytes of memory (`memory`) {most} tasks of {each} bytes ran at once",
        )

    @check("a task that needs more than there is fails with CapabilityError", LIMITED)
    async def test_more_than_there_is_is_refused(self, trial: Trial) -> None:
        names = [name for name in ALL if name in trial.capabilities.resources]
        driver = await trial.driver()
        kinds = trial.kinds()
        for name in names:
            kind = "executable" if name == "ranks" and "executable" in kinds else kinds[0]
            task = quick(driver, kind)
            task["resources"] = TOO_MUCH[name]
            trial.doing(f"waiting for a task that needs far too many {name} to be refused")
            await driver.submit(task)
            end = await driver.finished(task)
            trial.require(
                end.state is FAILED and isinstance(end.error, CapabilityError),
                f"{TOO_MUCH[name]}: {end}",
            )
            trial.require(name in str(end.error), f"the error does not name {name}: {end.error}")

    @check(
        "an executable's thread-count variables follow its cores",
        EXECUTABLES,
        binds("cores"),
    )
    async def test_cores_set_the_thread_counts(self, trial: Trial) -> None:
        cores = min(_owned(trial, "cores"), 2)
        driver = await trial.driver()
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        task = driver.command(" ".join(["echo", *(f"${name}" for name in names)]))
        task["resources"] = Resources(cores=cores)
        end = await driver.run_one(task)
        expected = " ".join([str(cores)] * 3) + "\n"
        trial.require(end.stdout == expected, f"with {cores} cores {names} are: {end}")
        task = driver.command("echo $OMP_NUM_THREADS", environment={"OMP_NUM_THREADS": "7"})
        task["resources"] = Resources(cores=cores)
        end = await driver.run_one(task)
        trial.require(end.stdout == "7\n", f"the task's own OMP_NUM_THREADS=7 is lost: {end}")

    @check("an executable sees the GPUs it was given, and no others", EXECUTABLES, binds("gpus"))
    async def test_gpus_are_given_to_executables(self, trial: Trial) -> None:
        gpus = _owned(trial, "gpus")
        driver = await trial.driver()

        def make() -> TaskDescription:
            return driver.command("echo $CUDA_VISIBLE_DEVICES; sleep 0.2")

        ends = await driver.run(*(_with(make(), Resources(cores=0, gpus=1)) for _ in range(gpus)))
        seen = sorted((end.stdout or "").strip() for end in ends)
        trial.require(
            len(set(seen)) == gpus and all(seen),
            f"{gpus} tasks at once saw the GPUs {seen}, not one each",
        )
        whole = await driver.run_one(_with(make(), Resources(cores=0, gpus=gpus)))
        listed = sorted((whole.stdout or "").strip().split(","))
        trial.require(listed == seen, f"a task with all GPUs saw {listed}, not {seen}")

    @check("a function in a process of its own sees its GPUs", SYNC, ISOLATED, binds("gpus"))
    async def test_gpus_are_given_to_functions(self, trial: Trial) -> None:
        gpus = _owned(trial, "gpus")
        driver = await trial.driver()
        task = driver.call(variable, "CUDA_VISIBLE_DEVICES")
        end = await driver.run_one(_with(task, Resources(gpus=1)))
        trial.require(
            isinstance(end.value, str) and end.value.isdigit() and int(end.value) >= 0,
            f"with 1 of {gpus} GPUs CUDA_VISIBLE_DEVICES is: {end}",
        )

    @check("a resource that is not declared is refused before the task is submitted")
    async def test_an_undeclared_resource_is_refused(self, trial: Trial) -> None:
        given = {
            "cores": Resources(cores=2),
            "gpus": Resources(gpus=1),
            "memory": Resources(memory=1024),
            "ranks": Resources(ranks=2),
        }
        declared = trial.capabilities.resources
        undeclared = [name for name in ALL if name not in declared]
        if "fractional_cores" not in declared and "cores" in declared:
            given["cores"] = Resources(cores=1.5)
            undeclared.append("cores")
        if not undeclared:
            skip("the backend declares every resource")
        flow = await trial.engine()
        for name in undeclared:
            future = adder(trial, flow).options(resources=given[name])(1)
            try:
                value = await future
            except CapabilityError as error:
                trial.require(name in str(error), f"the error does not name {name}: {error}")
            else:
                raise trial.check.error(f"a task with {given[name]} ran and gave {value!r}")

    @check("a setting that is not declared is refused before the task is submitted", SETTINGS)
    async def test_an_undeclared_setting_is_refused(self, trial: Trial) -> None:
        flow = await trial.engine()
        task = adder(trial, flow)
        future = task.options(task_description={"kit_4711": 1})(1)
        try:
            value = await future
        except CapabilityError as error:
            trial.require("kit_4711" in str(error), f"the error does not name it: {error}")
        else:
            raise trial.check.error(f"a task with 'kit_4711' ran and gave {value!r}")
        trial.doing("waiting for a task without settings")
        await task(1)


def _owned(trial: Trial, name: str) -> Any:
    """How much of the resource the test class says there is."""
    value = getattr(trial.kit, name)
    if value is None:
        raise trial.check.error(
            f"the backend declares the resource {name!r}: say in the test class how many "
            f"make_backend's backend has, `{name} = ...`"
        )
    return value


def _with(task: TaskDescription, resources: Resources) -> TaskDescription:
    task["resources"] = resources
    return task


async def _most_at_once(
    trial: Trial, driver: Driver, resources: Resources, count: int, seconds: float = 0.1
) -> int:
    function = interval if trial.capabilities.sync_functions else interval_async
    tasks = [_with(driver.call(function, seconds), resources) for _ in range(count)]
    trial.doing(f"waiting for {count} tasks with {resources}")
    ends = await driver.run(*tasks)
    for end in ends:
        trial.require(end.state is DONE, f"with {resources}: {end}")
    return most_at_once([end.value for end in ends])
