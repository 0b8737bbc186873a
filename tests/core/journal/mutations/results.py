"""Prints the result of each call of a program. Each program has a copy, which is not mutated."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any


async def show(calls: Mapping[str, Any]) -> None:
    """Print one line for each call: its number, its name, and its result or error."""
    results = await asyncio.gather(*calls.values(), return_exceptions=True)
    for (name, future), result in zip(calls.items(), results, strict=True):
        failed = isinstance(result, BaseException)
        print(future.uid, name, type(result).__name__ if failed else repr(result))
