"""Fixtures for tests of RADICAL-Pilot, whose own leftovers are not failures."""

from __future__ import annotations

import gc
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from rhapsody.testing import Driver
from rhapsody_radical import RadicalExecutionBackend
from tests.radical.pilots import active, backend

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # files that its import leaves open
    from rhapsody_radical.pilot import rp  # noqa: F401

    gc.collect()

HERE = Path(__file__).parent

# RADICAL-Pilot leaves files and sockets to the garbage collector, and forks while threads run.
NOISE = (
    "ignore::ResourceWarning",
    "ignore:This process .* is multi-threaded:DeprecationWarning",
    "ignore:.*:DeprecationWarning:radical",
)


@pytest.fixture(scope="session", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty home directory: pilots' login shells would run what the user's profile says.

    Some of the tests kill such shells, which may leave locks of other programs behind.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("PIP_NO_CACHE_DIR", "1")
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RadicalExecutionBackend]:
    """One pilot for all tests of a module that leave it alive."""
    async with active(backend(work_dir=tmp_path_factory.mktemp("work"))) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def driver(made: RadicalExecutionBackend, tmp_path: Path) -> AsyncIterator[Driver]:
    """A driver with a directory of its own."""
    async with Driver(made, work_dir=tmp_path) as driver:
        yield driver


@pytest.fixture(scope="module", autouse=True)
def _collected() -> Iterator[None]:
    """Collect what RADICAL-Pilot left open, before warnings count."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    """The same for what is only collected at the end: pytest would call it an error."""
    warnings.simplefilter("ignore", ResourceWarning)
    gc.collect()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves RADICAL-Pilot's warnings out, in this directory alone."""
    for item in items:
        if HERE in item.path.parents:
            for noise in NOISE:
                item.add_marker(pytest.mark.filterwarnings(noise))
