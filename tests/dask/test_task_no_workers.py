"""A cluster that has no workers yet, as batch systems and adaptive clusters have none at first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rhapsody import InputFile, OutputFile, WorkflowEngine
from rhapsody.errors import CapabilityError, DataError, SubmissionError
from rhapsody_dask import DaskExecutionBackend

pytestmark = pytest.mark.asyncio

BIG = 2_000_000


@pytest.fixture
def empty() -> Iterator[Any]:
    """A cluster without workers; each that comes has a directory of its own."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=0,
        threads_per_worker=1,
        dashboard_address="127.0.0.1:0",
        resources={"cores": 2},
        memory_limit="1 GB",
    ) as made:
        yield made


@pytest_asyncio.fixture
async def waiting(empty: Any, tmp_path: Path) -> AsyncIterator[WorkflowEngine]:
    """An engine on that cluster."""
    async with asyncio.timeout(60):
        backend = await DaskExecutionBackend(cluster=empty, timeout=5)
        async with WorkflowEngine.create(backend=backend, work_dir=tmp_path / "work") as flow:
            yield flow


async def _submitted(flow: WorkflowEngine, count: int) -> None:
    """Waits until Dask has that many tasks."""
    backend: Any = flow.backend
    async with asyncio.timeout(30):
        while len(backend._results.calls) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def _scale(cluster: Any, count: int) -> None:
    await asyncio.to_thread(cluster.scale, count)


async def test_a_task_with_resources_waits_for_the_first_worker(
    empty: Any, waiting: WorkflowEngine
) -> None:
    @waiting.function_task(resources={"cores": 2})
    def twice(x: int) -> int:
        return 2 * x

    @waiting.function_task(resources={"cores": 3})
    def greedy() -> None: ...

    future = twice(21)
    await _submitted(waiting, 1)
    await _scale(empty, 1)
    assert await future == 42
    with pytest.raises(CapabilityError, match="the most that one worker has is cores=2"):
        await greedy()


async def test_big_arguments_and_files_go_with_their_tasks(
    empty: Any, waiting: WorkflowEngine, tmp_path: Path
) -> None:
    np = pytest.importorskip("numpy")
    (tmp_path / "in.txt").write_text("from outside\n")

    @waiting.function_task
    def size(values: Any) -> int:
        return len(values)

    @waiting.function_task
    def read(source: InputFile, values: Any) -> str:
        with open(source) as file:
            return f"{len(values)} {file.read()}"

    blob = b"x" * BIG
    futures: list[Any] = [size(blob), size(blob), size(np.zeros(BIG // 8))]
    futures.append(read(InputFile(tmp_path / "in.txt"), blob))
    await _submitted(waiting, 4)
    await _scale(empty, 1)
    assert await asyncio.gather(*futures) == [BIG, BIG, BIG // 8, f"{BIG} from outside\n"]
    assert await size(blob) == BIG


async def test_promises_hold_whenever_the_workers_come(empty: Any, waiting: WorkflowEngine) -> None:
    @waiting.executable_task
    async def write(target: OutputFile) -> str:
        return f"echo written > {target.filename}"

    @waiting.executable_task
    async def forget(target: OutputFile) -> str:
        return "true"

    @waiting.executable_task
    async def read(source: InputFile, after: object) -> str:
        return f"cat {source.filename}"

    early = [write(OutputFile("out.txt")), forget(OutputFile("never"))]
    await _submitted(waiting, 2)
    await _scale(empty, 1)
    assert await read(InputFile("out.txt"), early[0]) == "written\n"
    with pytest.raises(DataError, match="did not write 'never'"):
        await early[1]
    late = write(OutputFile("out.txt"))
    assert await read(InputFile("out.txt"), late) == "written\n"
    with pytest.raises(DataError, match="did not write 'never'"):
        await forget(OutputFile("never"))


async def test_a_batch_that_could_not_be_shared_is_forgotten(
    backend: DaskExecutionBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scatter(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("no room")

    monkeypatch.setattr(backend.client, "scatter", scatter)
    async with asyncio.timeout(60), WorkflowEngine.create(backend=backend) as flow:

        @flow.function_task
        def size(values: bytes) -> int:
            return len(values)

        futures = [size.options(retries=0)(b"x" * BIG), size(b"y" * BIG)]
        for result in await asyncio.gather(*futures, return_exceptions=True):
            assert isinstance(result, SubmissionError)
        assert backend.still_running == []


async def test_a_submission_that_is_stopped_has_its_tasks_cancelled(
    backend: DaskExecutionBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scatter(*args: Any, **kwargs: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(backend.client, "scatter", scatter)
    async with (
        asyncio.timeout(60),
        WorkflowEngine.create(backend=backend, submit_timeout=0.5) as flow,
    ):

        @flow.function_task
        def size(values: bytes) -> int:
            return len(values)

        with pytest.raises(SubmissionError, match=r"within 0\.5 s"):
            await size(b"x" * BIG)
        while backend.still_running:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def _logged(caplog: pytest.LogCaptureFixture, words: str, count: int) -> None:
    async with asyncio.timeout(30):
        while sum(words in one.getMessage() for one in caplog.records) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_the_reason_why_tasks_wait_is_logged_and_repeated(
    empty: Any,
    waiting: WorkflowEngine,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rhapsody_dask.requests.FIRST", 0.1)
    monkeypatch.setattr("rhapsody_dask.requests.AGAIN", 0.1)
    task = waiting.function_task(int)
    first = task(1)
    await _logged(caplog, "tasks waiting: 1; the Dask scheduler at tcp://127.0.0.1:", 2)
    lost = task(2, task_description={"workers": ["tcp://127.0.0.1:9"]})
    await _scale(empty, 1)
    assert await first == 1
    await _logged(caplog, "waiting for a worker with tcp://127.0.0.1:9; the Dask scheduler at", 2)
    lost.cancel()
    await lost.ended()
    caplog.clear()
    assert await task(3) == 3
    assert not [one for one in caplog.records if one.name == "rhapsody_dask.requests"]


async def test_a_worker_that_is_unknown_is_refused_on_a_cluster_of_our_own() -> None:
    given = {"processes": False, "n_workers": 1, "threads": 1}
    backend = DaskExecutionBackend(given, security=False)
    async with asyncio.timeout(60), WorkflowEngine.create(backend=backend) as flow:
        task = flow.function_task(int)
        address, *_ = (await backend.client.scheduler.identity(n_workers=-1))["workers"]
        for known in (0, [address], ["no-one", address]):
            assert await task(1, task_description={"workers": known}) == 1
        with pytest.raises(CapabilityError, match=f"workers: no-one.* 0 at {address}"):
            await task(1, task_description={"workers": "no-one"})
        preferred = {"workers": "no-one", "allow_other_workers": True}
        assert await task(1, task_description=preferred) == 1
