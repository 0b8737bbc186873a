"""The conformance kit on PSI/J's local executor and on Slurm."""

from __future__ import annotations

from typing import ClassVar

import pytest

from rhapsody_psij import PsijExecutionBackend
from rhapsody_testing import BackendConformance


class TestPsijShared(BackendConformance):
    """With jobs that run several tasks, which are faster than a job per task."""

    separate_processes = True
    cycles = 2
    fan = 50
    closures = 10
    time_limit = 60
    # If Python is killed while it looks for a temporary directory, the file of its test remains.
    leaves_behind: ClassVar = ("temporary ????????",)

    async def make_backend(self) -> PsijExecutionBackend:
        return PsijExecutionBackend(max_jobs=4, tasks_per_job=50)

    async def make_failing_backend(self) -> PsijExecutionBackend:
        return PsijExecutionBackend("nonexistent")


@pytest.mark.long
class TestPsijLocal(TestPsijShared):
    """With one job per task."""

    fan = 40
    time_limit = 150

    async def make_backend(self) -> PsijExecutionBackend:
        return PsijExecutionBackend()


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("cluster")
class TestPsijSlurm(TestPsijShared):
    """With jobs of a real Slurm."""

    cores = 2
    cores_per_task = 2
    memory = "2000 MB"
    memory_per_task = "2000 MB"
    time_limit = 150
    gpus = 2
    create_args: ClassVar = ("slurm",)
    expected_failures: ClassVar = {
        "test_all_cores_are_used": "the tasks of a job run one after the other",
        "test_gpus_are_assigned_to_executables": "the tasks of a job have the same GPUs in turn",
        "test_coroutines_without_cores_wait_together": "each job takes at least one core",
    }

    async def make_backend(self) -> PsijExecutionBackend:
        return PsijExecutionBackend("slurm", tasks_per_job=10, poll_interval=1)
