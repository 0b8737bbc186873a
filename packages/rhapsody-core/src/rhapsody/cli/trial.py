"""What `rhapsody doctor -b NAME` adds: the backend is started with its settings, and ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from time import perf_counter
from typing import TYPE_CHECKING

from rhapsody.backends.options import backend_from_options

if TYPE_CHECKING:
    from rhapsody.backends.base import BaseExecutionBackend


def start(name: str, options: Iterable[str]) -> tuple[bool, str]:
    """Starts a backend and shuts it down.

    Args:
        name: The backend's name.
        options: Its settings as `KEY=VALUE`.

    Returns:
        Whether it started, and how that went in words.

    Raises:
        UsageError: There is no such backend, or it does not take a setting.
    """
    backend = backend_from_options(name, options)
    try:
        return True, asyncio.run(_start(backend))
    except Exception as error:  # a backend's own code and library
        return False, f"cannot be started: {type(error).__name__}: {error}"


async def _start(backend: BaseExecutionBackend) -> str:
    begin = perf_counter()
    try:
        if isinstance(backend, Awaitable):
            await backend
        text = f"started in {perf_counter() - begin:.2f} s"
        link = getattr(backend, "dashboard_link", None)
        return f"{text}; its dashboard is at {link}" if link else text
    finally:
        await backend.shutdown()
