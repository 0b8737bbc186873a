"""One cluster of two worker processes for all tests of a run, and backends that use it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from rhapsody import WorkflowEngine
from rhapsody_dask import DaskExecutionBackend

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ignore sockets of connections that were canceled during their TLS handshake.

    Such connections occur when a cluster ends. `TCPClient.connect` of tornado leaves their sockets
    to the garbage collector.
    """
    for item in items:
        if item.path.is_relative_to(HERE):
            ignored = "ignore:unclosed <ssl.SSLSocket:ResourceWarning"
            item.add_marker(pytest.mark.filterwarnings(ignored))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A LocalCluster of two processes with one thread each, as a user would create it."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        dashboard_address="127.0.0.1:0",
        resources={"cores": 1, "memory": 1e9},
    ) as made:
        yield made


@pytest_asyncio.fixture
async def backend(cluster: Any) -> AsyncIterator[DaskExecutionBackend]:
    """A started backend on that cluster."""
    async with asyncio.timeout(60):
        async with DaskExecutionBackend(cluster=cluster) as started:
            yield started


@pytest_asyncio.fixture
async def raw(cluster: Any) -> AsyncIterator[Any]:
    """A client of Dask on that cluster, for comparison with Dask alone."""
    from distributed import Client

    async with Client(cluster.scheduler_address, asynchronous=True, set_as_default=False) as client:
        yield client


@pytest_asyncio.fixture
async def flow(backend: DaskExecutionBackend) -> AsyncIterator[WorkflowEngine]:
    """An engine on that backend."""
    async with asyncio.timeout(60):
        async with WorkflowEngine.create(backend=backend) as engine:
            yield engine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mortal_backend() -> AsyncIterator[DaskExecutionBackend]:
    """A backend with its own cluster, whose workers tests may kill; it must leave no processes."""
    before = children()
    resources = {"n_workers": 2, "threads": 1, "memory_limit": "400 MB"}
    async with asyncio.timeout(60):
        backend = await DaskExecutionBackend(resources)
    yield backend
    async with asyncio.timeout(60):
        await backend.shutdown()
        while children() - before:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest_asyncio.fixture(loop_scope="module")
async def mortal(mortal_backend: DaskExecutionBackend) -> AsyncIterator[WorkflowEngine]:
    """An engine on that backend, with two workers."""
    async with asyncio.timeout(100):
        await mortal_backend.client.wait_for_workers(2)
        engine = await WorkflowEngine.create(backend=mortal_backend)
        yield engine
        await engine.shutdown(skip_execution_backend=True)


def children() -> set[int]:
    """Return the processes below this one."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended, a zombie included
            if "resource_tracker" not in " ".join(process.cmdline()):
                found.add(process.pid)
    return found


@pytest.fixture
def empty() -> Iterator[Any]:
    """A cluster without workers; each worker that joins has its own directory."""
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
