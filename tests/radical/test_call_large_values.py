"""Time to send large values to and from a real pilot."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from rhapsody_testing import Driver
from tests.radical.calls import Block
from tests.radical.pilots import backend


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.asyncio
@pytest.mark.parametrize("functions", ["raptor", "executable"])
async def test_the_time_to_send_values_grows_with_their_size(
    tmp_path: Path, functions: Any
) -> None:
    size = 50_000_000
    made = backend(work_dir=tmp_path / "work", functions=functions)
    try:
        async with Driver(made, work_dir=tmp_path / "here") as driver:
            await _seconds(driver, len, b"", 0)  # RAPTOR is there
            for kind in (Block, bytes):
                times = []
                for some in (size // 10, size):
                    there = await _seconds(driver, len, kind(some), some)
                    back = await _seconds(driver, kind, some, kind(some))
                    times.append((there, back))
                (small_there, small_back), (large_there, large_back) = times
                assert large_there < 20 * small_there, times
                assert large_back < 20 * small_back, times
            assert await asyncio.to_thread(_left, tmp_path) == []
    finally:
        await made.shutdown()


def _left(directory: Path) -> list[Path]:
    return [path for kind in ("arguments", "result") for path in directory.rglob(f"*.{kind}")]


async def _seconds(driver: Driver, function: Any, argument: Any, expected: Any) -> float:
    began = time.monotonic()
    end = await driver.run_one(driver.call(function, argument))
    taken = time.monotonic() - began
    assert end.error is None, str(end)
    assert end.value == expected
    return taken
