"""Dask futures as arguments."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rhapsody import WorkflowEngine

pytestmark = pytest.mark.asyncio


def _twice(x: int) -> int:
    return 2 * x


def _kind(held: Any) -> str:
    return type(held.future).__name__


async def test_dask_futures_are_rejected_as_arguments(flow: WorkflowEngine, raw: Any) -> None:
    future = raw.submit(_twice, 4, pure=False)
    twice = flow.function_task(_twice)
    for argument in (future, [future, 1]):
        with pytest.raises(TypeError, match="Await it, and pass its value"):
            await twice(argument)
    assert await twice(await future) == 16


async def test_dask_futures_inside_of_objects_stay_futures(flow: WorkflowEngine, raw: Any) -> None:
    """Parts of a persisted collection may be too large for one worker together."""
    held = SimpleNamespace(future=raw.submit(_twice, 4, pure=False))
    await held.future
    assert await flow.function_task(_kind)(held) == "Future"
