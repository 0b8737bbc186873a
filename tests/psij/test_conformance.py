"""The conformance kit on PSI/J's local executor."""

from __future__ import annotations

import pytest

from rhapsody.testing import BackendConformance
from rhapsody_psij import PsijExecutionBackend


class TestPsijShared(BackendConformance):
    """With jobs that run several tasks, which are faster than a job per task."""

    separate_processes = True
    cycles = 3
    fan = 100
    time_limit = 60

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
