"""Functions that use a known amount of CPU time or memory."""

from __future__ import annotations

import asyncio
import time


def burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


async def burn_async(seconds: float) -> None:
    await asyncio.sleep(0)
    burn(seconds)


def touch(size: int) -> None:
    data = bytearray(size)
    data[::4096] = b"1" * len(data[::4096])
