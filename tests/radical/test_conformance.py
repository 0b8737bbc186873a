"""The conformance kit on a real pilot, which all checks share except those that stop it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from rhapsody.testing import BackendConformance
from tests.radical.pilots import FUNCTION_CORES, backend, resources

pytestmark = [pytest.mark.timeout(3000), pytest.mark.long]


class TestRadicalPilot(BackendConformance):
    time_limit = 240.0
    settle = 0.3
    loop_gap = 0.25
    shutdown_limit = 60.0
    big_bytes = 1_000_000
    output_bytes = 5_000_000
    fan = 200
    cycles = 3
    cores = FUNCTION_CORES
    gpus = 1
    memory = "4 GiB"  # what RADICAL-Pilot says of a node of `local.localhost`
    separate_processes = True
    leaves_behind = ()
    # Not in the current directory, where its session goes by default.
    create_kwargs: ClassVar[Mapping[str, Any]] = {
        "work_dir": os.path.join(tempfile.gettempdir(), "rhapsody-radical-tests")
    }

    async def make_backend(self) -> Any:
        return backend(resources(runtime=60))  # longer than all timeouts of the kit

    async def make_failing_backend(self) -> Any:
        return backend(resources(resource="local.nowhere"))
