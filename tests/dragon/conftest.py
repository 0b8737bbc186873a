"""Tests of the Dragon backend, which are skipped where Dragon cannot start."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from rhapsody import BackendUnavailableError
from rhapsody_dragon import DragonExecutionBackend


@pytest.fixture(scope="session", autouse=True)
def quick_start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Replace a command that Dragon calls six times, for a second each, to find GPUs."""
    directory = tmp_path_factory.mktemp("commands")
    command = directory / "dragon-config"
    command.write_text("#!/bin/sh\nexit 1\n")
    command.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")
        yield


@pytest.fixture(scope="session", autouse=True)
def dragon(quick_start: None) -> None:
    """Start Dragon once, and skip all tests if that is impossible."""

    async def start() -> None:
        await (await DragonExecutionBackend()).shutdown()

    try:
        asyncio.run(start())
    except BackendUnavailableError as error:
        pytest.skip(str(error))
