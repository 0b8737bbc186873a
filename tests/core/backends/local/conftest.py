"""Fixtures of the local backend's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from rhapsody.backends.local import LocalExecutionBackend
from rhapsody_testing import Driver


@pytest_asyncio.fixture
async def driver() -> AsyncIterator[Driver]:
    """A driver of a backend with functions on threads; modules with other backends replace it."""
    async with LocalExecutionBackend(resources={"cores": 2}) as backend, Driver(backend) as driver:
        yield driver
