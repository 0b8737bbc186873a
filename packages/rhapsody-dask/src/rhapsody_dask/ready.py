"""Waits for a service whose `ready` is a callable, which runs on the engine's side."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

from rhapsody.backends.local.aside import in_thread
from rhapsody.task import is_async
from rhapsody_dask.calls import Call


async def watch(call: Call, failed: Callable[[Call, BaseException], None]) -> None:
    """Calls it, on the loop where it is a coroutine function and else on a thread."""
    ready, task = call.ready, call.task
    try:
        if is_async(ready):
            value = await ready(task)
        else:
            value = await in_thread(partial(ready, task))
            if inspect.isawaitable(value):
                value = await value
    except Exception as error:  # the user's callable
        failed(call, error)
    else:
        call.readiness.set(value)
