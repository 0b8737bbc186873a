"""One cluster of two worker processes for all tests of a run, and backends that use it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from rhapsody import WorkflowEngine
from rhapsody_dask import DaskExecutionBackend


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A LocalCluster of two processes with one thread each, as a user would make it."""
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
    """A client of Dask's own on that cluster, to see what Dask does without us."""
    from distributed import Client

    async with Client(cluster.scheduler_address, asynchronous=True, set_as_default=False) as client:
        yield client


@pytest_asyncio.fixture
async def flow(backend: DaskExecutionBackend) -> AsyncIterator[WorkflowEngine]:
    """An engine on that backend."""
    async with asyncio.timeout(60):
        async with WorkflowEngine.create(backend=backend) as engine:
            yield engine
