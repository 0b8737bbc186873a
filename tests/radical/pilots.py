"""Backends with a small pilot on this machine, in a temporary directory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rhapsody_radical import RadicalExecutionBackend
from rhapsody_testing import Driver

FUNCTION_CORES = 2


def resources(**more: Any) -> dict[str, Any]:
    """The parameters of a pilot that pretends to have 8 cores, as `local.localhost` does."""
    return {"resource": "local.localhost", "cores": 4, "runtime": 20, **more}


def backend(pilots: Any = None, **settings: Any) -> RadicalExecutionBackend:
    """Return a backend that has not been started, in its own directory."""
    settings.setdefault("function_cores", FUNCTION_CORES)
    settings.setdefault("work_dir", os.path.join(tempfile.gettempdir(), "rhapsody-radical-tests"))
    return RadicalExecutionBackend(resources() if pilots is None else pilots, **settings)


@asynccontextmanager
async def active(made: RadicalExecutionBackend) -> AsyncIterator[RadicalExecutionBackend]:
    """Yield a backend with an active pilot that has run a task, and shut it down."""
    try:
        async with Driver(await made) as driver:
            end = await driver.run_one(driver.command("true"))
        if end.error is not None:
            raise end.error
        yield made
    finally:
        await made.shutdown()


def customise(directory: Path, patch: pytest.MonkeyPatch, text: str) -> None:
    """Make every Python that starts from now on run a text first, including the pilots' own."""
    (directory / "sitecustomize.py").write_text(text)
    patch.setenv("PYTHONPATH", f"{directory}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
