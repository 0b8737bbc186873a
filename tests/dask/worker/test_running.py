"""Function tasks on workers in processes of their own."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from rhapsody import WorkflowEngine, current_task
from rhapsody.errors import CapabilityError
from rhapsody.states import StateMapper, TasksMainStates
from rhapsody.testing import Driver
from rhapsody_dask import DaskExecutionBackend

pytestmark = pytest.mark.asyncio


class OddError(Exception):
    def __init__(self, first: int, *, second: str) -> None:
        super().__init__(f"{first} {second}")
        self.first = first
        self.second = second


class Counter:
    def __init__(self, start: int) -> None:
        self.start = start

    def add(self, x: int) -> int:
        return self.start + x


def _tell(x: int, y: int = 0) -> tuple[int, int]:
    return x, y


async def test_closures_lambdas_methods_and_partials_are_run(flow: WorkflowEngine) -> None:
    base = 40

    def closure(x: int) -> int:
        return base + x

    calls = [closure, lambda x: base + x, Counter(40).add]
    assert await asyncio.gather(*(flow.function_task(call)(2) for call in calls)) == [42] * 3
    partial = flow.function_task(functools.partial(_tell, y=5))
    assert await partial(1) == (1, 5)


async def test_an_exception_keeps_its_type_attributes_and_remote_traceback(
    flow: WorkflowEngine,
) -> None:
    @flow.function_task
    def bad() -> None:
        raise OddError(1, second="two")

    with pytest.raises(OddError) as caught:
        await bad()
    assert (caught.value.first, caught.value.second) == (1, "two")
    remote = str(caught.value.__cause__)
    assert f'File "{__file__}", line ' in remote
    assert "in bad" in remote
    assert "rhapsody_dask" not in remote


async def test_an_exception_that_takes_no_attributes_fails_its_task_alone(
    flow: WorkflowEngine,
) -> None:
    @dataclass(frozen=True)
    class FrozenError(Exception):
        number: int

    @flow.function_task
    def bad() -> None:
        raise FrozenError(3)

    with pytest.raises(FrozenError) as caught:
        await asyncio.wait_for(bad(), 20)
    assert caught.value.number == 3
    assert "in bad" in str(caught.value.__cause__)


async def test_an_exit_keeps_its_code(flow: WorkflowEngine) -> None:
    """Dask has tblib pickle exceptions, which loses it: the program ended with 0."""

    @flow.function_task
    def leave() -> None:
        raise SystemExit(3)

    future = leave()
    await asyncio.wait([future])
    error = future.exception()
    assert isinstance(error, SystemExit)
    assert error.code == 3


async def test_what_cannot_be_pickled_is_named(flow: WorkflowEngine) -> None:
    @flow.function_task
    def take(x: Any) -> Any:
        return threading.Lock() if x is None else x

    with pytest.raises(TypeError, match=r"positional argument 0 .lock. cannot be pickled"):
        await take(threading.Lock())
    with pytest.raises(TypeError, match=r"its result .lock. cannot be pickled back"):
        await take(None)
    assert await take(1) == 1


async def test_a_module_that_a_worker_lacks_is_named(
    flow: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys
    import types

    module = types.ModuleType("only_here")
    exec("def twice(x): return 2 * x", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    with pytest.raises(ModuleNotFoundError, match="needs the module 'only_here', which worker"):
        await flow.function_task(module.twice)(1)


async def test_a_task_knows_itself_and_what_it_prints_is_kept(flow: WorkflowEngine) -> None:
    @flow.function_task
    def name() -> tuple[str, int]:
        print("to the user")
        return current_task().name, current_task().attempt

    future = name()
    assert await future == ("name", 1)
    assert future.stdout == "to the user\n"


async def test_a_function_runs_on_the_named_worker(
    backend: DaskExecutionBackend, flow: WorkflowEngine
) -> None:
    @flow.function_task
    def where() -> str:
        from distributed import get_worker

        return str(get_worker().address)

    addresses = list((await backend.client.scheduler.identity(n_workers=-1))["workers"])
    assert len(addresses) == 2
    for address in addresses:
        assert await where(task_description={"workers": [address]}) == address
    said = r"'dask' does not support the key 'wrokers' .* did you mean 'workers'\?"
    with pytest.raises(CapabilityError, match=said):
        await where(task_description={"wrokers": addresses})


async def test_dasks_own_retries_are_passed_on(flow: WorkflowEngine, tmp_path: Any) -> None:
    trace = str(tmp_path / "trace")

    @flow.function_task
    def third_time() -> int:
        with open(trace, "a") as file:
            file.write("x")
        with open(trace) as file:
            count = len(file.read())
        if count < 3:
            raise KeyError("not yet")
        return count

    assert await third_time(task_description={"retries": 2}) == 3


async def test_dasks_own_retries_log_the_users_error(
    backend: DaskExecutionBackend, flow: WorkflowEngine, raw: Any
) -> None:
    def bad(who: str) -> None:
        raise KeyError(f"always {who}")

    with pytest.raises(KeyError):
        await raw.submit(bad, "alone", retries=1)
    with pytest.raises(KeyError):
        await flow.function_task(bad)("ours", task_description={"retries": 1})
    logs = await backend.client.get_worker_logs()
    text = "".join(line for lines in logs.values() for _, line in lines)
    assert "KeyError('always alone')" in text
    assert "TaskRaised(\"KeyError: 'always ours'\")" in text.replace("\\", "")


async def test_tasks_have_their_names_in_dask(
    backend: DaskExecutionBackend, flow: WorkflowEngine
) -> None:
    @flow.function_task
    def key() -> str:
        from distributed import get_worker

        return str(next(iter(get_worker().active_keys)))

    from dask.utils import key_split

    found = await key.options(name="my_own-name")()
    assert key_split(found) == "my_own-name"


async def test_running_is_reported_when_a_worker_begins(flow: WorkflowEngine) -> None:
    @flow.function_task
    async def wait() -> None:
        await asyncio.sleep(60)

    futures = [wait() for _ in range(4)]
    async with asyncio.timeout(20):
        while sum(f.state is TasksMainStates.RUNNING for f in futures) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)  # time enough for a wrong report about the others
    states = [future.state for future in futures]
    assert states.count(TasksMainStates.RUNNING) == 2  # of four, on two threads
    for future in futures:
        future.cancel()
    for future in futures:
        await future.ended()


async def test_coroutines_without_cores_share_a_worker(
    flow: WorkflowEngine, tmp_path: Path
) -> None:
    @flow.function_task(resources={"cores": 0})
    async def wait_for_the_others(number: int) -> int:
        (tmp_path / str(number)).touch()
        while len(os.listdir(tmp_path)) < 20:  # noqa: ASYNC110 - they may run in other processes
            await asyncio.sleep(0.01)
        return 1

    async with asyncio.timeout(30):
        assert sum(await asyncio.gather(*map(wait_for_the_others, range(20)))) == 20


def _descriptors() -> int:
    return psutil.Process().num_fds()


async def test_many_coroutines_without_cores_need_no_loop_each(
    backend: DaskExecutionBackend, flow: WorkflowEngine, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    worker, *_ = (await backend.client.scheduler.identity(n_workers=-1))["workers"]
    here = {"workers": [worker]}

    @flow.function_task(resources={"cores": 0}, task_description=here)
    async def wait(path: str, number: int) -> int:
        print(number)
        while not os.path.exists(path):  # noqa: ASYNC110, ASYNC240 - files have no event
            await asyncio.sleep(0.05)
        return number

    before = await flow.function_task(_descriptors)(task_description=here)
    futures = [wait(str(gate), number) for number in range(100)]
    async with asyncio.timeout(30):
        while any(f.state is not TasksMainStates.RUNNING for f in futures):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    after = await flow.function_task(_descriptors)(task_description=here)
    assert after - before < 50
    assert futures[7].cancel()
    await futures[7].ended()
    gate.touch()
    del futures[7]
    assert sum(await asyncio.gather(*futures)) == sum(range(100)) - 7
    assert futures[0].stdout == "0\n"


async def test_variables_are_set_where_a_worker_has_one_thread(flow: WorkflowEngine) -> None:
    @flow.function_task(environment={"MINE": "yes"})
    def read() -> str | None:
        import os

        return os.environ.get("MINE")

    assert await read() == "yes"


async def test_more_than_a_worker_declares_is_refused(flow: WorkflowEngine) -> None:
    @flow.function_task
    def noop() -> None: ...

    with pytest.raises(CapabilityError, match="most that one worker has is cores=1"):
        await noop.options(resources={"cores": 2})()
    with pytest.raises(CapabilityError, match=r'--resources "gpus=1"'):
        await noop.options(resources={"gpus": 1})()
    with pytest.raises(CapabilityError, match="memory"):
        await noop.options(resources={"memory": "1 TB"})()
    with pytest.raises(CapabilityError, match="ranks"):
        await noop.options(resources={"ranks": 2})()
    await noop.options(resources={"memory": "10 MB"})()


async def test_a_batch_with_resources_asks_the_scheduler_once(
    cluster: Any, flow: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = cluster.scheduler.handlers
    asked = []

    def identity(n_workers: int = -1, **options: Any) -> Any:
        if n_workers == -1:
            asked.append(options)
        return cluster.scheduler.identity(n_workers=n_workers)

    monkeypatch.setitem(handlers, "identity", identity)

    @flow.function_task(resources={"memory": "1 MB"})
    def double(x: int) -> int:
        return 2 * x

    assert sum(await asyncio.gather(*flow.map(double, range(50)))) == 2450
    assert 1 <= len(asked) <= 10


async def test_dasks_states_are_known(backend: DaskExecutionBackend) -> None:
    mapper = backend.get_task_states_map()
    assert mapper.to_main_state("memory") is TasksMainStates.DONE
    assert mapper.to_main_state("processing") is TasksMainStates.SUBMITTED
    assert mapper.to_main_state("long-running") is TasksMainStates.RUNNING
    assert StateMapper("dask").terminal_states[0] == mapper.DONE


async def test_all_tasks_can_be_cancelled_at_once(
    backend: DaskExecutionBackend, flow: WorkflowEngine
) -> None:
    @flow.function_task
    async def wait() -> None:
        await asyncio.sleep(60)

    futures = [wait() for _ in range(10)]
    await flow.submit()
    async with asyncio.timeout(20):
        while len(backend.still_running) < 10:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert await backend.cancel_all_tasks() == 10
        assert await backend.cancel_all_tasks() == 0
        results = await asyncio.gather(*futures, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)


async def test_a_task_cancelled_while_it_is_packed_is_cancelled_and_harms_no_other(
    backend: DaskExecutionBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = backend._submission.pack

    async def packed(call: Any, packer: Any) -> Any:
        if call.task["function"] is not int:
            return await pack(call, packer)
        await backend.cancel_task(call.uid)
        async with asyncio.timeout(30):
            while call.uid in backend.still_running:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        raise CapabilityError("it does not fit")

    monkeypatch.setattr(backend._submission, "pack", packed)
    async with Driver(backend) as driver:
        ends = await driver.run(driver.call(int), driver.call(float))
        assert [end.state for end in ends] == [TasksMainStates.CANCELED, TasksMainStates.DONE]
        assert driver.faults == []
