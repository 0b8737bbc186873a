"""The conformance kit on a LocalCluster of threads in this process."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from rhapsody_dask import DaskExecutionBackend
from rhapsody_testing import BackendConformance
from tests.dask.clusters import CannotStart, uses_dask

RESOURCES = {
    "processes": False,
    "n_workers": 1,
    "threads": 2,
    "gpus": 2,
    "memory_limit": "1 GiB",
    "security": False,
}


@pytest.mark.long
class TestDaskThreads(BackendConformance):
    cores = 2
    gpus = 2
    memory = "1 GiB"
    shares_memory = False  # each task unpacks its own
    cycles = 4
    fan = 300
    time_limit = 60
    create_args = (RESOURCES,)
    # Scheduler and worker put their own directories into the path; a child watches over
    # the programs that the worker runs.
    adds = frozenset({"threads", "children", "descriptors", "sys.path", "at-fork handlers"})
    leaves_behind: ClassVar = (
        "thread Dask-*",
        "thread Profile",
        "thread TCP-Executor*",
        "thread IO loop*",
        "temporary rhapsody-dask-*",  # which all clusters of the user share
        "process * -I -S -c*",  # that child, while another backend of this class is there
    )

    async def make_backend(self) -> DaskExecutionBackend:
        return DaskExecutionBackend(RESOURCES, grace=1)

    async def make_failing_backend(self) -> DaskExecutionBackend:
        return CannotStart(RESOURCES)

    def library_function(self) -> Any:
        return uses_dask()
