"""Checks of resources: what is declared is honored, all else is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from rhapsody.errors import CapabilityError
from rhapsody.quantities import memory_in_bytes
from rhapsody.task import Resources
from rhapsody.testing._engine import adder
from rhapsody.testing._functions import most_at_once
from rhapsody.testing._suite import FUNCTIONS, ISOLATED, Suite, binds, check, honors
from rhapsody.testing._tasks import (
    DONE,
    FAILED,
    call,
    function_kinds,
    kinds_of,
    quick,
    with_resources,
)
from rhapsody.testing._work import variable

if TYPE_CHECKING:
    from rhapsody import WorkflowEngine
    from rhapsody.backends.base import Capabilities
    from rhapsody.testing._driver import Driver

_TOO_MUCH = {
    "cores": Resources(cores=1_000_000),
    "gpus": Resources(gpus=1_000_000),
    "memory": Resources(memory=2**60),
    "ranks": Resources(ranks=1_000_000),
}
_SOME = {
    "cores": Resources(cores=2),
    "fractional_cores": Resources(cores=1.5),
    "gpus": Resources(gpus=1),
    "memory": Resources(memory=1024),
    "ranks": Resources(ranks=2),
}


class ResourceRequests(Suite):
    """Slots, variables and refusals."""

    @check("resources", FUNCTIONS)
    @pytest.mark.parametrize("resource", ["cores", "fractional_cores", "gpus", "memory"])
    async def test_resources_bound_what_runs_at_once(self, driver: Driver, resource: str) -> None:
        _require_declared(self.capabilities, resource)
        cores = 0 if "cores" in self.capabilities.resources else 1
        amounts: list[tuple[Resources, int]] = []
        match resource:
            case "cores":
                total = self._total("cores")
                each = self.cores_per_task or total
                amounts = [(Resources(cores=1), total)]
                if each > 1:
                    amounts.append((Resources(cores=each), total // each))
            case "fractional_cores":
                total = self._total("cores")
                amounts = [(Resources(cores=0.5), 2 * total)]
            case "gpus":
                amounts = [(Resources(cores=0, gpus=1), self._total("gpus"))]
            case "memory":
                memory = memory_in_bytes(self._total("memory"))
                each = memory_in_bytes(self.memory_per_task or memory)
                amounts = [(Resources(cores=cores, memory=each), memory // each)]
        for request, allowed in amounts:
            most = await self._most_at_once(driver, request, 2 * allowed + 1)
            assert most <= allowed, f"{most} tasks with {request} ran at once, not {allowed}"

    @check("resources", "sync_functions", honors("cores"))
    async def test_all_cores_are_used(self, driver: Driver) -> None:
        cores = self._total("cores")
        if cores == 1:
            pytest.skip("the backend has one core")
        most = 0
        for seconds in (0.1, 0.5, 1.0):  # workers may need a while to start
            most = await self._most_at_once(driver, Resources(), 2 * cores, seconds)
            if most == cores:
                return
        raise AssertionError(f"on {cores} cores no more than {most} tasks ran at once")

    @check("resources")
    @pytest.mark.parametrize("resource", list(_TOO_MUCH))
    async def test_more_than_the_backend_has_is_refused(
        self, driver: Driver, resource: str
    ) -> None:
        _require_declared(self.capabilities, resource)
        kinds = kinds_of(self.capabilities)
        kind = "executable" if resource == "ranks" and "executable" in kinds else kinds[0]
        end = await driver.run_one(with_resources(quick(driver, kind), _TOO_MUCH[resource]))
        refused = end.state is FAILED and isinstance(end.error, CapabilityError)
        assert refused, f"{_TOO_MUCH[resource]}: {end}"
        assert resource in str(end.error), "the error must name the resource"

    @check("resources", "executables", binds("cores"))
    async def test_cores_set_the_thread_counts(self, driver: Driver) -> None:
        cores = min(self._total("cores"), 2)
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        counts = driver.command(" ".join(["echo", *(f"${name}" for name in names)]))
        own = driver.command("echo $OMP_NUM_THREADS", environment={"OMP_NUM_THREADS": "7"})
        request = Resources(cores=cores)
        ends = await driver.run(*(with_resources(task, request) for task in (counts, own)))
        assert ends[0].stdout == " ".join([str(cores)] * 3) + "\n", f"{names}: {ends[0]}"
        assert ends[1].stdout == "7\n", "the task's own variable has precedence"

    @check("resources", "executables", binds("gpus"))
    async def test_gpus_are_assigned_to_executables(self, driver: Driver) -> None:
        gpus = self._total("gpus")

        def task(count: int) -> Any:
            command = driver.command("echo $CUDA_VISIBLE_DEVICES; sleep 0.2")
            return with_resources(command, Resources(cores=0, gpus=count))

        ends = await driver.run(*(task(1) for _ in range(gpus)))
        seen = sorted((end.stdout or "").strip() for end in ends)
        assert len(set(seen)) == gpus and all(seen), f"{gpus} tasks saw the GPUs {seen}"
        whole = await driver.run_one(task(gpus))
        assert sorted((whole.stdout or "").strip().split(",")) == seen, str(whole)

    @check("resources", "sync_functions", ISOLATED, binds("gpus"))
    async def test_gpus_are_assigned_to_functions(self, driver: Driver) -> None:
        task = driver.call(variable, "CUDA_VISIBLE_DEVICES")
        end = await driver.run_one(with_resources(task, Resources(gpus=1)))
        assert isinstance(end.value, str) and end.value.isdigit(), str(end)

    @check("resources")
    @pytest.mark.parametrize("resource", list(_SOME))
    async def test_an_undeclared_resource_is_refused(
        self, flow: WorkflowEngine, resource: str
    ) -> None:
        if resource in self.capabilities.resources:
            pytest.skip(f"the backend declares the resource {resource!r}")
        if resource == "fractional_cores" and "cores" not in self.capabilities.resources:
            pytest.skip("the backend does not declare the resource 'cores'")
        name = "cores" if resource == "fractional_cores" else resource
        with pytest.raises(CapabilityError, match=name):
            await adder(flow).options(resources=_SOME[resource])(1)

    @check("resources", "task_settings")
    async def test_an_undeclared_setting_is_refused(self, flow: WorkflowEngine) -> None:
        task = adder(flow)
        with pytest.raises(CapabilityError, match="kit_4711"):
            await task.options(task_description={"kit_4711": 1})(1)
        await task(1)

    def _total(self, name: str) -> Any:
        value = getattr(self, name)
        assert value is not None, (
            f"the backend declares the resource {name!r}: say in the test class how many "
            f"make_backend's backend has, `{name} = ...`"
        )
        return value

    async def _most_at_once(
        self,
        driver: Driver,
        resources: Resources,
        count: int,
        seconds: float = 0.1,
    ) -> int:
        kind = function_kinds(self.capabilities)[0]
        tasks = [call(driver, kind, "interval", seconds) for _ in range(count)]
        ends = await driver.run(*(with_resources(task, resources) for task in tasks))
        assert all(end.state is DONE for end in ends), f"with {resources}: {ends[0]}"
        return most_at_once([end.value for end in ends])


def _require_declared(capabilities: Capabilities, resource: str) -> None:
    if resource not in capabilities.resources:
        pytest.skip(f"the backend does not declare the resource {resource!r}")
