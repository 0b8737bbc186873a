"""Says what tasks wait for where no worker can take them: Dask itself waits without a word.

Looked at a few seconds after tasks were sent, or a worker was lost, and again every
minute as long as there is something to say. Nothing is asked while there is nothing open.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from rhapsody_dask.calls import Call, named

log: logging.Logger = logging.getLogger(__name__)

FIRST = 5.0
"""Seconds after which it is looked what tasks wait for."""

AGAIN = 60.0
"""Seconds between two lines."""


class Waits:
    """What the open tasks of one backend wait for.

    Args:
        client: Dask's client.
        calls: The open tasks by their keys.
        address: The scheduler's address.
    """

    def __init__(self, client: Any, calls: Mapping[str, Call], address: str) -> None:
        self._client = client
        self._calls = calls
        self._address = address
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """Has it looked soon: tasks were sent, or a worker has gone."""
        if self._timer is None:
            self._look_in(FIRST)

    def close(self) -> None:
        """Looks no more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._looking is not None:
            self._looking.cancel()

    def _look_in(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._begin)

    def _begin(self) -> None:
        self._timer = None
        if self._calls:
            self._looking = asyncio.ensure_future(self._look())

    async def _look(self) -> None:
        from rhapsody_dask.worker.entry import stuck

        try:
            workers, keys = await self._client.run_on_scheduler(stuck)
        except OSError:  # where the connection is gone, the client tells of it
            return
        text = self._text(workers, [self._calls[key] for key in keys if key in self._calls])
        if text is not None:
            log.warning(text)
            self._look_in(AGAIN)

    def _text(self, workers: list[str], calls: list[Call]) -> str | None:
        if not workers and self._calls:
            return (
                f"{len(self._calls)} tasks wait for a worker: the Dask scheduler at "
                f"{self._address} has none"
            )
        if not calls:
            return None
        demand = calls[0].demand
        wanted = [*map(str, demand.workers)]
        wanted += [f"{name}={amount:g}" for name, amount in demand.resources]
        others = f", and {len(calls) - 1} more such tasks" if len(calls) > 1 else ""
        return (
            f"{named(calls[0])} waits for a worker with {', '.join(wanted)}{others}: the Dask "
            f"scheduler at {self._address} has {', '.join(workers)}"
        )
