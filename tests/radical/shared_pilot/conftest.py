"""The pilot that all tests of this directory share, and a driver for it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from rhapsody import WorkflowEngine
from rhapsody_radical import RadicalExecutionBackend
from rhapsody_testing import Driver
from tests.radical.pilots import active, backend

MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None

VARIABLES = {
    "SHELLS_CHANGE_IT": 'a "b" $HOME `echo c` \\ d',
    "LINES_OF_TEXT": "a\nb",
    "PLAIN": "e f",
}
"""Variables of the program that starts the pilot."""


@pytest.fixture(scope="package")
def pilot_states() -> list[tuple[str, str]]:
    """The states of pilots that callbacks received, with their uids."""
    return []


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def made(pilot_states: list[tuple[str, str]]) -> AsyncIterator[RadicalExecutionBackend]:
    """A backend with one pilot, whose directory is on another file system than the packages."""
    with (
        tempfile.TemporaryDirectory(dir=MEMORY) as directory,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in VARIABLES.items():
            patch.setenv(name, value)
        patch.setenv("RHAPSODY_TEST_TOKEN", "hidden")
        made = backend(work_dir=directory, pre_exec=["export AT_FIRST=done"])
        made.register_pilot_callback(lambda *state: pilot_states.append(state))
        async with active(made):
            yield made


@pytest_asyncio.fixture(loop_scope="package")
async def driver(made: RadicalExecutionBackend, tmp_path: Path) -> AsyncIterator[Driver]:
    """A driver with its own directory."""
    async with Driver(made, work_dir=tmp_path) as driver:
        yield driver


@pytest_asyncio.fixture(loop_scope="package")
async def flow(made: RadicalExecutionBackend, tmp_path: Path) -> AsyncIterator[WorkflowEngine]:
    """An engine whose open tasks are canceled after the test, so that they free their cores."""
    flow = await WorkflowEngine.create(made, work_dir=tmp_path / "flow", handle_signals=False)
    try:
        yield flow
    finally:
        await flow.shutdown(skip_execution_backend=True)
