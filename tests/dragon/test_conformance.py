"""The conformance kit on a real runtime, which all checks share except those that stop it."""

from __future__ import annotations

import os
from typing import ClassVar

import pytest

from rhapsody_dragon import DragonExecutionBackend
from rhapsody_testing import BackendConformance

pytestmark = pytest.mark.timeout(600)


class TestDragon(BackendConformance):
    separate_processes = True
    time_limit = 60.0
    shutdown_limit = 30.0
    cycles = 2
    cores = 2
    gpus = 2
    memory = str(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    expected_failures: ClassVar = {
        "test_coroutines_without_cores_wait_together": "each function takes a worker",
    }

    async def make_backend(self) -> DragonExecutionBackend:
        return DragonExecutionBackend(cores=2, gpus=2)

    async def make_failing_backend(self) -> DragonExecutionBackend:
        return DragonExecutionBackend(start_timeout=0.001)
