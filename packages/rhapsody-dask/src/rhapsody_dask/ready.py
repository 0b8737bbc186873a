"""Waits for a service whose `ready` is a callable, which runs on the engine's side."""

from __future__ import annotations

from collections.abc import Callable

from rhapsody.sdk import call_ready
from rhapsody_dask.calls import Call


async def watch(call: Call, failed: Callable[[Call, BaseException], None]) -> None:
    """Calls it, see `call_ready`; its value is the service's readiness."""
    try:
        value = await call_ready(call.ready, call.task)
    except Exception as error:  # the user's callable
        failed(call, error)
    else:
        call.readiness.set(value)
