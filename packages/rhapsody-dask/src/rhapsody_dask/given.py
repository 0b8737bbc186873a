"""Futures of Dask's own among a task's arguments: their values go to the task, as with Dask alone.

The user has them from a client of the same scheduler, this backend's or another. They
are found while arguments are packed, and replaced in lists, tuples, dicts and sets at
any depth; what other objects hold stays a future.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rhapsody_dask.shared import Entry

PATIENCE = 5.0
"""Seconds until the scheduler has to know a future that its client has just made."""


@functools.cache
def future_type() -> Any:
    """The class of Dask's futures; Dask is imported only when a backend starts."""
    from distributed import Future

    return Future


def swapped(value: Any, swap: Callable[[Any], Any]) -> Any:
    """The value with others in the place of Dask's futures; the same object where there are none.

    Args:
        value: What to look through.
        swap: Gives what takes the place of a future.
    """
    kind = type(value)
    if kind is future_type():
        return swap(value)
    if kind is dict:
        pairs = {swapped(key, swap): swapped(one, swap) for key, one in value.items()}
        same = all(key in value and value[key] is one for key, one in pairs.items())
        return value if same else pairs
    if kind in (list, tuple, set, frozenset):
        before = list(value)
        after = [swapped(one, swap) for one in before]
        same = all(a is b for a, b in zip(before, after, strict=True))
        return value if same else kind(after)
    return value


async def entry_of(client: Any, future: Any) -> Entry:
    """What stands for a future of Dask's own with the backend's client.

    Raises:
        ValueError: It was given up, or is of another scheduler.
    """
    from rhapsody_dask.shared import Entry
    from rhapsody_dask.worker.entry import knows

    cure = "await it, and pass the value"
    theirs = future.client
    if future.status in ("cancelled", "lost") or getattr(theirs, "status", None) != "running":
        raise ValueError(f"an argument is Dask's {future!r}, which has no value to come: {cure}")
    if theirs is not client:
        # What `scheduler_info` gives, which blocks on clients that are not asynchronous.
        here, there = (one._scheduler_identity.get("id") for one in (client, theirs))
        if here != there:
            raise ValueError(f"an argument is Dask's {future!r}, of another scheduler: {cure}")
        try:
            async with asyncio.timeout(PATIENCE):
                # What its client has sent may be on the way still; nobody tells of its arrival.
                while not await client.run_on_scheduler(knows, future.key):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise ValueError(
                f"an argument is Dask's {future!r}, which its scheduler does not know: {cure}"
            ) from None
    return Entry(future.key, future_type()(future.key, client), 0)
