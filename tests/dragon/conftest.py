"""Tests of the Dragon backend, which are skipped where Dragon cannot start."""

from __future__ import annotations

import asyncio

import pytest

from rhapsody import BackendUnavailableError
from rhapsody_dragon import DragonExecutionBackend


@pytest.fixture(scope="session", autouse=True)
def dragon() -> None:
    """Start Dragon once, and skip all tests if that is impossible."""

    async def start() -> None:
        await (await DragonExecutionBackend()).shutdown()

    try:
        asyncio.run(start())
    except BackendUnavailableError as error:
        pytest.skip(str(error))
