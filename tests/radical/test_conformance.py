"""The conformance kit on a real pilot, which all checks share except those that stop it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import pytest

from rhapsody_testing import BackendConformance
from tests.radical.pilots import FUNCTION_CORES, backend, resources

pytestmark = [pytest.mark.timeout(3000), pytest.mark.long]


@pytest.fixture(scope="module", autouse=True)
def two_gpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Describe `local.localhost` as a machine with two GPUs instead of one."""
    directory = tmp_path_factory.mktemp("configuration")
    file = directory / ".radical/pilot/configs/resource_local.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"localhost": {"gpus_per_node": 2}}')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RADICAL_CONFIG_USER_DIR", str(directory))
        yield


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
    gpus = 2
    memory = "4 GiB"  # what RADICAL-Pilot says of a node of `local.localhost`
    separate_processes = True
    ends_with_program = False  # the client cancels the pilot, which takes longer than the kit waits
    leaves_behind = ()
    # Not in the current directory, where its session goes by default.
    create_kwargs: ClassVar[Mapping[str, Any]] = {
        "work_dir": os.path.join(tempfile.gettempdir(), "rhapsody-radical-tests")
    }

    async def make_backend(self) -> Any:
        return backend(resources(runtime=60))  # longer than all timeouts of the kit

    async def make_failing_backend(self) -> Any:
        return backend(resources(resource="local.nowhere"))


class TestCommandsOnRaptor(TestRadicalPilot):
    """The same pilot, whose RAPTOR worker also starts the commands."""

    async def make_backend(self) -> Any:
        return backend(resources(runtime=60), commands="raptor")
