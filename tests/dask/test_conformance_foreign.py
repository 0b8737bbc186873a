"""The conformance kit on a scheduler and workers that were started by hand, with TLS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rhapsody_dask import DaskExecutionBackend
from rhapsody_testing import BackendConformance
from tests.dask.clusters import CannotStart, foreign, uses_dask


@pytest.mark.long
class TestDaskForeign(BackendConformance):
    cores = 2
    cores_per_task = 1
    gpus = 2
    memory = 2_000_000_000
    memory_per_task = 1_000_000_000
    separate_processes = True
    ends_with_program = False  # a task on the cluster runs to its end
    cycles = 4
    fan = 300
    time_limit = 60
    # What a client of Dask holds, and what its imports register.
    adds = frozenset({"threads", "descriptors", "at-fork handlers"})
    leaves_behind: ClassVar = (
        "thread Dask-*",
        "thread Profile",
        "thread TCP-Executor*",
        "process *dask*",
        # The reaper of a worker's programs stays while another backend uses the worker.
        "process * -I -S -c *",
    )
    given: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _cluster(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        directory: Path = tmp_path_factory.mktemp("cluster")
        resources = ("--resources", "cores=1 gpus=1 memory=1e9")
        with foreign(directory, options=resources) as cluster:
            cls.given = {
                "scheduler_file": cluster["scheduler_file"],
                "security": cluster["security"],
            }
            cls.create_kwargs = cls.given
            yield

    async def make_backend(self) -> DaskExecutionBackend:
        return DaskExecutionBackend(**self.given, grace=1)

    async def make_failing_backend(self) -> DaskExecutionBackend:
        return CannotStart(**self.given)

    def library_function(self) -> Any:
        return uses_dask()
