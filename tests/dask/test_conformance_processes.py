"""The conformance kit on a LocalCluster of worker processes."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from rhapsody_dask import DaskExecutionBackend
from rhapsody_testing import BackendConformance
from tests.dask.clusters import CannotStart, uses_dask

RESOURCES = {"n_workers": 2, "threads": 1, "gpus": 1, "memory_limit": "1 GiB"}


class TestDaskProcesses(BackendConformance):
    cores = 2
    cores_per_task = 1
    gpus = 2
    memory = "2 GiB"
    memory_per_task = "1 GiB"
    separate_processes = True
    closures = 20  # one of the two workers runs at least 10, and may keep 8
    cycles = 4
    fan = 300
    time_limit = 60
    create_args = (RESOURCES,)
    # Scheduler and nannies put their own directories into the path.
    adds = frozenset({"threads", "children", "descriptors", "sys.path", "at-fork handlers"})
    leaves_behind: ClassVar = (
        "thread Dask-*",
        "thread Profile",
        "thread TCP-Executor*",
        "thread IO loop*",
        "temporary rhapsody-dask-*",  # which all clusters of the user share
    )

    async def make_backend(self) -> DaskExecutionBackend:
        return DaskExecutionBackend(RESOURCES, grace=1)

    async def make_failing_backend(self) -> DaskExecutionBackend:
        return CannotStart({**RESOURCES, "n_workers": 1})

    def library_function(self) -> Any:
        return uses_dask()


@pytest.mark.long
class TestDaskGroups(TestDaskProcesses):
    """With short calls in groups."""

    async def make_backend(self) -> DaskExecutionBackend:
        return DaskExecutionBackend(RESOURCES, grace=1, batch_calls=True)
