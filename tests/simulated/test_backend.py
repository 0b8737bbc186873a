"""The simulated backend runs tasks in virtual time, on nodes with cores and GPUs."""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsody import (
    BackendUnavailableError,
    CapabilityError,
    InsufficientWalltimeError,
    RetryPolicy,
    TaskFuture,
    TaskLostError,
    TaskTimeoutError,
    WorkflowEngine,
)
from rhapsody_simulated import SimulatedExecutionBackend
from rhapsody_simulated.backend import Nodes
from rhapsody_testing import BackendConformance, EventRecorder
from tests._support.scripted import turns

HOUR = 3600.0


class TestConformance(BackendConformance):
    dry = True
    adds = frozenset()
    cores = 8
    gpus = 2
    memory = "1 GiB"

    async def make_backend(self) -> SimulatedExecutionBackend:
        return SimulatedExecutionBackend(nodes=1, cores=8, gpus=2)


async def took(backend: SimulatedExecutionBackend, *calls: Mapping[str, Any]) -> float:
    """Run tasks with these settings at the same time, and return the virtual time."""
    async with WorkflowEngine.create(backend, lost_retries=100) as flow:

        @flow.function_task
        def nothing() -> None:
            raise AssertionError("a simulation called the function")

        await asyncio.gather(*(nothing.options(**call)() for call in calls))
        return flow.clock.monotonic()


TWO = {"resources": {"cores": 2}}
GPU = {"resources": {"gpus": 1}}


@pytest.mark.parametrize(
    ("options", "calls", "expected"),
    [
        ({"cores": 2}, [{}] * 5, 3 * HOUR),
        ({"nodes": 5}, [{}] * 5, HOUR),
        ({"nodes": 2, "cores": 3}, [TWO] * 3, 2 * HOUR),  # on each node, one core stays free
        ({"cores": 2}, [{}, TWO, {}], 3 * HOUR),  # in the order of submission
        ({"cores": 2}, [{}, {"resources": {"cores": 0}}, {}], HOUR),
        ({"nodes": 2, "cores": 4, "gpus": 1}, [GPU] * 3 + [{}] * 5, 2 * HOUR),
        ({"nodes": 2, "cores": 2}, [{"resources": {"cores": 2, "ranks": 2}}] * 2, 2 * HOUR),
        ({"startup": 60}, [{}] * 2, 2 * (HOUR + 60)),
        ({"queue_time": "30 min"}, [{}], 1.5 * HOUR),
        ({"queue_time": 60, "walltime": "2h30m"}, [{}] * 2, 2 * HOUR + 60),
        # The first attempt of the third task is lost after half an hour.
        ({"queue_time": 60, "walltime": "2h30m"}, [{}] * 3, 3.5 * HOUR + 120),
        # The third task knows that it does not fit, and waits for the second job.
        (
            {"queue_time": 60, "walltime": "2h30m"},
            [{}] * 2 + [{"resources": {"walltime": "1h"}}],
            3.5 * HOUR + 120,
        ),
        ({"duration": {"nothing": 5, "long": "1 min"}}, [{}, {"name": "long"}], 65),
        ({"duration": lambda task: len(task["name"])}, [{}, {"name": "long"}], 11),
    ],
    ids=[
        "cores", "nodes", "cores of a node", "first come first served", "no cores", "GPUs",
        "ranks", "startup", "queue", "one job", "lost at the walltime", "walltime of a task",
        "durations by name", "durations by a function",
    ],
)  # fmt: skip
def test_virtual_time(
    options: Mapping[str, Any], calls: Sequence[Mapping[str, Any]], expected: float
) -> None:
    began = time.perf_counter()
    backend = SimulatedExecutionBackend(**{"duration": "1h", **options})
    assert asyncio.run(took(backend, *calls)) == pytest.approx(expected)
    assert time.perf_counter() - began < 60


def list_schedule(graph: Sequence[tuple[float, Sequence[int]]], slots: int) -> float:
    """Return the makespan of tasks with one core, which start in the order they become ready.

    Args:
        graph: The duration of each task, and the positions of the tasks that it depends on.
        slots: The number of cores.
    """
    ready = [(0.0, position) for position, (_, parents) in enumerate(graph) if not parents]
    free, ends = [0.0] * slots, dict[int, float]()
    heapq.heapify(ready)
    while ready:
        since, position = heapq.heappop(ready)
        end = ends[position] = max(since, heapq.heappop(free)) + graph[position][0]
        heapq.heappush(free, end)
        for child, (_, parents) in enumerate(graph):
            if position in parents and all(parent in ends for parent in parents):
                heapq.heappush(ready, (max(ends[parent] for parent in parents), child))
    return max(ends.values(), default=0.0)


async def simulated(graph: Sequence[tuple[float, Sequence[int]]], slots: int) -> float:
    def duration(task: Any) -> float:
        position: int = task["args"][0]
        return graph[position][0]

    backend = SimulatedExecutionBackend(cores=slots, duration=duration)
    async with WorkflowEngine.create(backend) as flow:
        task = flow.function_task(lambda *_: None)
        futures: list[TaskFuture[Any]] = []
        for position, (_, parents) in enumerate(graph):
            futures.append(task(position, *(futures[parent] for parent in parents)))
        await asyncio.gather(*futures)
        return flow.clock.monotonic()


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(1, 5), st.integers(0))
def test_the_makespan_is_that_of_a_list_schedule(size: int, slots: int, seed: int) -> None:
    """No two tasks end at the same time; the order of their dependents would then be undefined."""
    numbers = random.Random(seed)
    graph = [
        (numbers.uniform(0.5, 9), numbers.sample(range(each), min(each, numbers.randrange(4))))
        for each in range(size)
    ]
    expected = list_schedule(graph, slots)
    assert asyncio.run(simulated(graph, slots)) == pytest.approx(expected)


def test_the_same_attempts_are_lost_with_the_same_seed() -> None:
    def run(seed: int) -> list[tuple[str, int]]:
        recorder = EventRecorder()

        async def main() -> None:
            backend = SimulatedExecutionBackend(cores=10, failure_rate=0.2, seed=seed)
            async with WorkflowEngine.create(backend, observers=[recorder]) as flow:
                task = flow.function_task(lambda: None)
                await asyncio.gather(*(task() for _ in range(50)))
                assert 0 < flow.stats.lost < 30

        asyncio.run(main())
        return [(each.uid, each.attempt) for each in recorder.events if each.error]

    assert run(1) == run(1) != run(2)


@pytest.mark.asyncio
async def test_waits_and_timeouts_of_the_engine_are_virtual() -> None:
    backend = SimulatedExecutionBackend(cores=2, duration=HOUR, failure_rate=1.0)
    async with WorkflowEngine.create(backend, lost_retries=0) as flow:
        lost = flow.function_task(retries=RetryPolicy(2, wait=10 * HOUR, on=TaskLostError))
        with pytest.raises(TaskLostError, match="its simulated worker failed"):
            await lost(lambda: None)()
    backend = SimulatedExecutionBackend(duration=HOUR)
    async with WorkflowEngine.create(backend) as flow:
        with pytest.raises(TaskTimeoutError):
            await flow.function_task(timeout="30 min")(lambda: None)()
        assert flow.clock.monotonic() == HOUR / 2


@pytest.mark.asyncio
async def test_the_times_of_events_are_virtual() -> None:
    recorder = EventRecorder()
    backend = SimulatedExecutionBackend(duration=HOUR)
    async with WorkflowEngine.create(backend, observers=[recorder]) as flow:
        await flow.function_task(lambda: None)()
    first, *_, last = recorder.events
    assert last.time - first.time == pytest.approx(HOUR)
    assert flow.summary is not None
    assert flow.summary.seconds == HOUR
    assert flow.summary.backends == {"simulated": {"virtual_seconds": HOUR, "jobs": 1}}


@pytest.mark.asyncio
async def test_the_time_of_the_engine_may_be_added() -> None:
    backend = SimulatedExecutionBackend(cores=100, duration=1.0, engine_time=True)
    async with WorkflowEngine.create(backend) as flow:
        task = flow.function_task(lambda: None)
        await asyncio.gather(*(task() for _ in range(100)))
        assert 1.0 < flow.clock.monotonic() < 10


@pytest.mark.asyncio
async def test_a_service_runs_until_it_is_canceled() -> None:
    backend = SimulatedExecutionBackend(duration=HOUR)
    async with WorkflowEngine.create(backend) as flow:
        service = flow.executable_task(service=True)(lambda: "serve")()
        await service
        await flow.function_task(lambda: None)()
        service.cancel()
        assert flow.clock.monotonic() == HOUR


@pytest.mark.asyncio
async def test_canceled_tasks_free_their_cores() -> None:
    async with WorkflowEngine.create(SimulatedExecutionBackend(duration=HOUR)) as flow:
        task = flow.function_task(lambda: None)
        running, waiting, other = task(), task(), task()
        await turns()
        assert running.started_at == flow.clock.time()
        running.cancel()
        waiting.cancel()
        await other
        assert flow.clock.monotonic() == HOUR
        assert flow.backend.cores_in_use() == (0, 1)  # type: ignore[attr-defined]


@pytest.mark.asyncio
async def test_tasks_that_can_never_run() -> None:
    backend = SimulatedExecutionBackend(nodes=2, cores=4, walltime=HOUR, duration={"known": 1})
    async with WorkflowEngine.create(backend) as flow:
        for settings_, error, text in (
            ({"resources": {"cores": 5}}, CapabilityError, r"needs 1 x \(5 cores, 0 GPUs\), but"),
            ({"resources": {"ranks": 9}}, CapabilityError, "has 2 x "),
            ({"resources": {"walltime": "2h"}}, InsufficientWalltimeError, "may need 7200 s"),
            ({"name": "other"}, ValueError, "duration has no entry for task 'other'"),
        ):
            with pytest.raises(error, match=text):
                await flow.function_task(**settings_)(lambda: None)()


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("nodes", 0, ValueError),
        ("cores", 1.5, TypeError),
        ("gpus", -1, ValueError),
        ("failure_rate", 2, ValueError),
        ("failure_rate", "often", TypeError),
        ("duration", -1, ValueError),
        ("duration", {"a": "soon"}, ValueError),
        ("walltime", 0, ValueError),
    ],
)
def test_invalid_options(argument: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=argument):
        SimulatedExecutionBackend(**{argument: value})


def test_another_event_loop_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with pytest.raises(BackendUnavailableError, match=r"an event loop of asyncio, got .*Other"):
            await SimulatedExecutionBackend()

    class Other:
        pass

    monkeypatch.setattr("rhapsody_simulated.backend.get_running_loop", Other)
    asyncio.run(main())


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(1, 5))))
def test_no_node_is_overcommitted(requests: Sequence[tuple[int, int, int]]) -> None:
    nodes = Nodes(3, 4, 2)
    taken = [places for each in requests if (places := nodes.take(*each))]
    for node in range(3):
        mine = [place for places in taken for place in places if place.node == node]
        assert sum(place.cores for place in mine) <= 4
        assert sum(place.gpus for place in mine) <= 2
    for places in taken:
        nodes.release(places)
    assert nodes.free_cores == 12
    assert nodes.take(4, 2, 3) is not None
